//! Whole programs on the allocator: the system's own under `LD_PRELOAD`, threads, forks, and frees that end the
//! process.

mod common;

use common::{Way, cases, command, compile, library, run, succeeds, text};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says what is not tested, past the harness that would keep it to itself.
fn skipped(what: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {what}").expect("stderr can be written to");
}

/// What a shell script of the system's programs prints with the allocator preloaded, and without.
fn same_with_and_without(script: &str, environment: (&str, &str)) {
    let shell = |way| {
        let mut command = command("/bin/sh", way);
        run(command.args(["-ec", script]).env(environment.0, environment.1))
    };
    let (without, with) = (shell(Way::Shared), shell(Way::Preload));
    assert!(without.status.success(), "{script}: {}", text(&without.stderr));
    assert_eq!((with.status, text(&with.stderr)), (without.status, text(&without.stderr)), "{script}");
    assert_eq!(text(&with.stdout), text(&without.stdout), "{script}");
    assert!(!with.stdout.is_empty(), "{script}");
}

/// Programs that any Debian has, in each mode. The last one needs more than they do and is skipped where it is missing.
#[test]
fn programs_of_the_system() {
    let python = "import json, threading, subprocess\n\
        numbers = {str(i): [i] * (i % 50) for i in range(20000)}\n\
        parts = []\n\
        threads = [threading.Thread(target=lambda: parts.append(len(json.dumps(numbers)))) for _ in range(4)]\n\
        [thread.start() for thread in threads]; [thread.join() for thread in threads]\n\
        print(parts, subprocess.run(['true']).returncode, sum(len(bytes(n * 97)) for n in range(3000)))";
    for environment in MODES {
        same_with_and_without("ls -la /usr/bin /usr/lib | sort -k5n | tail -n 500", environment);
        same_with_and_without("find /usr/include | sort | xargs cat 2>/dev/null | sha256sum", environment);
        same_with_and_without(
            "perl -e 'my %h; $h{$_ % 99991} .= \"x\" x ($_ % 30) for 1..300000; print scalar(%h)'",
            environment,
        );
        same_with_and_without(
            "awk 'BEGIN { for (i = 0; i < 200000; i++) a[i] = i \"\"; print length(a) }'",
            environment,
        );
        if Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
            same_with_and_without(&format!("python3 -c \"{python}\""), environment);
        } else {
            skipped("python3 under LD_PRELOAD, there is none");
        }
    }
}

/// The compiler itself, a large C++ program that allocates most of its time.
#[test]
fn the_compiler() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/operators.cpp");
    same_with_and_without(&format!("c++ -std=c++17 -O2 -S -o - '{}'", source.display()), ("NOTHING", ""));
}

#[test]
fn options_come_from_the_environment() {
    let program = compile("standard.c", Way::Preload);
    for (options, expected) in [("index=arenas", "arenas: asked for"), ("", "")] {
        succeeds(
            command(&program, Way::Preload)
                .arg("rseqalloc_mode")
                .env("RSEQ_ALLOC", options)
                .env("EXPECTED_MODE", expected),
        );
    }
}

/// A setuid program's environment is not its own; the options in it are ignored.
#[test]
fn options_are_ignored_under_secure_execution() {
    let program = compile("secure.c", Way::Static);
    let asks_for_arenas = || text(&run(command(&program, Way::Static).env("RSEQ_ALLOC", "index=arenas")).stdout);
    assert_eq!(asks_for_arenas(), "0 arenas: asked for by an option\n");
    // Somebody other than who runs it.
    let other = 65534;
    let given = std::os::unix::fs::chown(&program, Some(other), None)
        .and_then(|()| std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)));
    if let Err(error) = given {
        skipped(&format!("secure execution, since only root can make a program of somebody else's: {error}"));
        return;
    }
    let answer = asks_for_arenas();
    std::fs::remove_file(&program).expect("what others may run does not stay");
    if answer.starts_with('0') {
        skipped("secure execution, since programs do not get their owner's rights here (nosuid)");
        return;
    }
    assert!(answer.starts_with("1 ") && !answer.contains("asked for"), "{answer}");
}

/// Runs a case of `programs/threads.c` in each mode.
fn threads(case: &str) {
    let program = compile("threads.c", Way::Preload);
    for environment in MODES {
        succeeds(command(&program, Way::Preload).arg(case).env(environment.0, environment.1));
    }
}

/// Forks under four threads that allocate, in the environment given.
fn forks(number: usize, environment: (&str, &str)) {
    let program = compile("threads.c", Way::Preload);
    let mut command = command(program, Way::Preload);
    succeeds(command.arg("forks").env("FORKS", number.to_string()).env(environment.0, environment.1));
}

const MODES: [(&str, &str); 3] =
    [("NOTHING", ""), ("RSEQ_ALLOC", "index=arenas"), ("GLIBC_TUNABLES", "glibc.pthread.rseq=0")];

/// Compiles a library beside a program.
fn compile_library(source: &str, program: &Path) -> PathBuf {
    let library = program.with_file_name(format!("lib{source}.so"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut build = Command::new(compiler);
    build.args(["-shared", "-fPIC", "-fno-builtin", "-Wall", "-Werror", "-o"]).arg(&library);
    build.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source));
    let output = run(&mut build);
    assert!(output.status.success(), "{build:?}\n{}", text(&output.stderr));
    library
}

/// Libraries that are opened while the program runs use the same heap as the program.
#[test]
fn plugins() {
    for way in [Way::Preload, Way::Shared, Way::Static] {
        let program = compile("opens.c", way);
        let plugin = compile_library("plugin.c", &program);
        for environment in MODES {
            succeeds(command(&program, way).arg("plugins").env("PLUGIN", &plugin).env(environment.0, environment.1));
        }
    }
}

#[test]
fn posix_spawn_and_popen() {
    for way in [Way::Preload, Way::Static, Way::NoLoader] {
        succeeds(command(compile("opens.c", way), way).arg("spawns"));
    }
}

#[test]
fn blocks_that_other_threads_free() {
    threads("cross_thread");
}

#[test]
fn two_hundred_forks_under_four_threads() {
    // The locks are those of the heap, and `tests/fork.rs` has it in the modes as often; what is special here is who
    // installs the handlers, which no mode changes.
    for (environment, number) in MODES.into_iter().zip([200, 50, 50]) {
        forks(number, environment);
    }
}

/// Another library's constructor installs fork handlers before anything else of the program runs, and they allocate.
#[test]
fn handlers_of_other_libraries_may_allocate() {
    let program = compile("threads.c", Way::Preload);
    let handlers = compile_library("handlers.c", &program);
    // The last of the libraries is the first to be initialised. Every fork calls the handlers.
    let preload = format!("{}:{}", library().display(), handlers.display());
    forks(40, ("LD_PRELOAD", &preload));
}

#[test]
fn threads_that_leave_blocks_behind() {
    threads("short_threads");
}

#[test]
fn threads_that_fork_read_lines_and_write_all_streams() {
    threads("streams");
}

#[test]
fn threads_that_are_cancelled() {
    threads("cancelled_threads");
}

/// Each case of `programs/misuse.c` ends with SIGABRT and one line that says what was wrong.
#[test]
fn misuse_ends_the_process() {
    let program = compile("misuse.c", Way::Shared);
    let cases = cases(&program, Way::Shared);
    assert_eq!(cases.len(), 11);
    for case in cases {
        let output = run(command(&program, Way::Shared).arg(&case));
        let line = text(&output.stderr);
        let expected = match case.as_str() {
            "second_free" => "rseq-alloc: double free of 0x",
            "size_of_data" => "rseq-alloc: size of the block at 0x",
            "new_without_exceptions" => "rseq-alloc: operator new: out of memory, and no libstdc++",
            _ => "rseq-alloc: free of 0x",
        };
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{case}: {line}");
        assert!(line.starts_with(expected) && line.lines().count() == 1, "{case}: {line}");
        if expected.ends_with("free of 0x") && case != "second_free" {
            assert!(line.contains("which this allocator does not know (foreign, or already freed)"), "{case}: {line}");
            assert!(!line.contains("earlier"), "{case}: seen too late: {line}");
        }
    }
}

/// Closed and opened again it is still the same, and blocks from before stay valid.
#[test]
fn it_stays_loaded() {
    let library = std::ffi::CString::new(library().to_str().expect("a path in UTF-8")).expect("without zeros");
    let open = || {
        // SAFETY: a valid name; the library's constructor only decides its mode.
        let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null());
        // SAFETY: a valid name.
        let malloc = unsafe { libc::dlsym(handle, c"malloc".as_ptr()) };
        (handle, malloc)
    };
    let (handle, malloc) = open();
    // SAFETY: this is its type.
    let allocate: unsafe extern "C" fn(usize) -> *mut u8 = unsafe { std::mem::transmute(malloc) };
    // SAFETY: any size is fine.
    let block = unsafe { allocate(100) };
    // SAFETY: opened above.
    assert_eq!(unsafe { libc::dlclose(handle) }, 0);
    // SAFETY: 100 bytes of a library that is still there.
    unsafe { block.write_bytes(7, 100) };
    assert_eq!(open().1, malloc);
}
