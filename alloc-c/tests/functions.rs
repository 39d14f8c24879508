//! Every exported function does what its standard says: one case for each in `programs/standard.c` (C) and
//! `programs/operators.cpp` (C++), in programs linked with the shared library and the static one, and with it
//! preloaded.

mod common;

use common::{Way, cases, command, compile, library, run, succeeds, text};
use std::collections::BTreeSet;
use std::process::Command;

/// Runs all cases of a program; each in a process of its own. Returns how many there were.
fn run_all(source: &str, way: Way, environment: &[(&str, &str)]) -> usize {
    let program = compile(source, way);
    let cases = cases(&program, way);
    assert!(cases.len() > 15, "{source}: {cases:?}");
    for case in &cases {
        succeeds(command(&program, way).arg(case).envs(environment.iter().copied()));
    }
    cases.len()
}

#[test]
fn c_linked() {
    assert_eq!(run_all("standard.c", Way::Shared, &[]), 24);
}

#[test]
fn c_static() {
    assert_eq!(run_all("standard.c", Way::Static, &[]), 24);
}

#[test]
fn c_preloaded() {
    assert_eq!(run_all("standard.c", Way::Preload, &[]), 24);
}

#[test]
fn c_in_every_mode() {
    for environment in [
        [("RSEQ_ALLOC", "index=cpu_id"), ("EXPECTED_MODE", "")],
        [("RSEQ_ALLOC", "index=arenas"), ("EXPECTED_MODE", "arenas: asked for by an option")],
        [("GLIBC_TUNABLES", "glibc.pthread.rseq=0"), ("EXPECTED_MODE", "")],
    ] {
        run_all("standard.c", Way::Shared, &environment);
    }
}

#[test]
fn cxx_linked() {
    assert_eq!(run_all("operators.cpp", Way::Shared, &[]), 20);
}

#[test]
fn cxx_static() {
    assert_eq!(run_all("operators.cpp", Way::Static, &[]), 20);
}

#[test]
fn cxx_preloaded() {
    assert_eq!(run_all("operators.cpp", Way::Preload, &[]), 20);
}

#[test]
fn c_static_pie() {
    assert_eq!(run_all("standard.c", Way::StaticPie, &[]), 24);
}

#[test]
fn cxx_static_pie() {
    assert_eq!(run_all("operators.cpp", Way::StaticPie, &[]), 20);
}

/// The library exports what has a case and nothing else.
#[test]
fn exports() {
    let output = run(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let exported: BTreeSet<String> =
        text(&output.stdout).lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
    let tested: BTreeSet<String> = ["standard.c", "operators.cpp"]
        .into_iter()
        .flat_map(|source| cases(&compile(source, Way::Shared), Way::Shared))
        .collect();
    assert_eq!(exported, tested);
}

/// The soname, that it stays when it is closed, that it is initialised first, that its symbols are bound when it is
/// loaded, and that its thread-local block needs no allocation.
#[test]
fn dynamic_section() {
    let output = run(Command::new("readelf").args(["-dW"]).arg(library()));
    let section = text(&output.stdout);
    for wanted in ["[librseqalloc.so.0]", "NODELETE", "INITFIRST", "BIND_NOW", "STATIC_TLS"] {
        assert!(section.contains(wanted), "no {wanted} in\n{section}");
    }
    assert!(!section.contains("libstdc++"), "{section}");
}
