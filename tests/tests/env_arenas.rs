//! Options by environment: arenas asked for by `RSEQ_ALLOC`, and wrong values, which are named in one warning line
//! and ignored.

use std::time::Duration;

use alloc_core::{Mode, RseqAlloc};
use integration::child;
use integration::configuration::{Configuration, execute_with, expect_arenas};
use integration::harness::Check;

/// Set in a child that only prints its mode.
const PRINT_MODE: &str = "INTEGRATION_PRINT_MODE";

integration::configuration!(
    RseqAlloc::new(),
    Configuration {
        name: "env_arenas",
        enter,
        promise,
        // What asked for arenas makes no difference afterwards: the test `arenas` runs the rest.
        body: &[integration::body::THREADS],
        checks: &[
            Check::new("right_values_are_silent", right_values_are_silent),
            Check::new("wrong_values_are_named_and_ignored", wrong_values_are_named_and_ignored),
            Check::new("no_variable_no_warning", no_variable_no_warning),
        ],
    }
);

fn enter() {
    if std::env::var_os(PRINT_MODE).is_some() {
        println!("{}", alloc_core::mode());
        std::process::exit(0);
    }
    execute_with("RSEQ_ALLOC", "index=arenas");
}

fn promise(mode: &Mode) -> Result<(), String> {
    expect_arenas(mode, "")
}

/// The mode and the warnings of a process with this value of `RSEQ_ALLOC`.
fn with(value: Option<&str>) -> (String, String) {
    let mut command = child::again();
    command.env(PRINT_MODE, "1").env_remove("RSEQ_ALLOC");
    if let Some(value) = value {
        command.env("RSEQ_ALLOC", value);
    }
    let finished = child::run(&mut command, Duration::from_secs(20));
    finished.expect_success(&format!("a child under RSEQ_ALLOC={value:?}"));
    (finished.stdout.trim().to_owned(), finished.stderr)
}

/// Promise: without the variable nothing is said, and the mode is the automatic one.
fn no_variable_no_warning() {
    let (mode, warnings) = with(None);
    assert_eq!(warnings, "", "warnings without a reason");
    assert!(!mode.starts_with("arenas") || integration::configuration::best_index().is_none(), "{mode}");
}

/// Promise: every documented key and value is taken without a word.
fn right_values_are_silent() {
    let (automatic, _) = with(None);
    for value in ["index=auto", "decay=0", "decay=10000", "budget=4194304", "index=auto,decay=10000,budget=4194304"] {
        let (mode, warnings) = with(Some(value));
        assert_eq!((mode.as_str(), warnings.as_str()), (automatic.as_str(), ""), "RSEQ_ALLOC={value}");
    }
    let (mode, warnings) = with(Some("index=cpu_id,decay=1"));
    assert_eq!(warnings, "");
    assert!(mode.starts_with("cpu_id") || automatic.starts_with("arenas"), "{mode}");
    let (mode, warnings) = with(Some("budget=1048576,index=arenas"));
    assert_eq!(warnings, "");
    assert!(mode.starts_with("arenas"), "{mode}");
}

/// Promise: a wrong value or key is named in exactly one warning line; it is ignored, the rest is obeyed.
fn wrong_values_are_named_and_ignored() {
    let (automatic, _) = with(None);
    for (value, named) in [
        ("index=nonsense", "nonsense"),
        ("index=", "index"),
        ("decay=soon", "soon"),
        ("decay=-1", "-1"),
        ("decay=99999999999999999999999", "99999999999999999999999"),
        ("budget=lots", "lots"),
        ("colour=blue", "colour"),
        ("index", "index"),
        ("index=ARENAS", "ARENAS"),
    ] {
        let (mode, warnings) = with(Some(value));
        assert_eq!(mode, automatic, "RSEQ_ALLOC={value} changed the mode");
        assert_eq!(warnings.lines().count(), 1, "RSEQ_ALLOC={value}: one line, not {warnings:?}");
        assert!(warnings.starts_with("rseq-alloc: "), "RSEQ_ALLOC={value}: says who speaks: {warnings:?}");
        assert!(warnings.contains(named), "RSEQ_ALLOC={value}: names {named}: {warnings:?}");
    }
    let (mode, warnings) = with(Some("decay=soon,index=arenas"));
    assert!(mode.starts_with("arenas"), "the right value beside a wrong one is obeyed: {mode}");
    assert!(warnings.contains("soon"), "{warnings:?}");
}
