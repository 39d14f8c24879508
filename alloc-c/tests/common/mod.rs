//! Builds the C and C++ programs of these tests against the library that cargo has just built, and runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The folder of the built library: that of the test itself.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows where it is");
    test.parent().expect("it is in a folder").to_owned()
}

/// The shared library.
pub(crate) fn library() -> PathBuf {
    let library = built().join("librseqalloc.so");
    assert!(library.is_file(), "{} was not built", library.display());
    library
}

/// How a program gets the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// Linked with the shared library.
    Shared,
    /// Linked with the static one.
    Static,
    /// Likewise, and with nothing dynamic: there is no loader that could be asked for anything.
    StaticPie,
    /// By `LD_PRELOAD`.
    Preload,
}

/// A folder for what the tests build, with the library under its soname.
fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let test = std::env::current_exe().expect("the test knows where it is");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test.file_name().expect("it has a name"));
        std::fs::create_dir_all(&folder).expect("a folder for programs");
        for name in ["librseqalloc.so", "librseqalloc.so.0"] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(library(), link).expect("a link to the library");
        }
        folder
    })
}

/// Compiles `tests/programs/SOURCE` to be run in the given way, and returns the program. `CC` and `CXX` name other
/// compilers than `cc` and `c++`.
pub(crate) fn compile(source: &str, way: Way) -> PathBuf {
    let cxx = source.ends_with(".cpp");
    let (variable, default) = if cxx { ("CXX", "c++") } else { ("CC", "cc") };
    let compiler = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let folder = scratch();
    let program = folder.join(format!("{}-{way:?}", source.replace('.', "-")));
    // Tests run side by side, and a program that runs cannot be written to.
    static DONE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if done.contains(&program) {
        return program;
    }
    let mut command = Command::new(&compiler);
    // The compiler must not take away pairs of calls whose result it knows.
    command.args(["-O1", "-g", "-fno-builtin", "-Wall", "-Werror", "-pthread"]);
    command.args(if cxx { ["-std=c++17", "-Wno-mismatched-new-delete"] } else { ["-std=gnu11", "-Wno-unused-result"] });
    // Misuse is the point of some of them.
    command.args(["-Wno-free-nonheap-object", "-Wno-alloc-size-larger-than"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source));
    match way {
        Way::Static => command.arg(built().join("librseqalloc.a")).args(["-lgcc_s", "-lm", "-ldl"]),
        Way::StaticPie => {
            command.args(["-static-pie", "-fPIE"]).arg(built().join("librseqalloc.a"));
            // The library's own reference is weak, and fetches nothing from an archive.
            command.args(if cxx { &["-Wl,--undefined=_ZSt17__throw_bad_allocv"][..] } else { &[] })
        }
        // A program to be run with the preloaded library may name its own functions, too.
        Way::Shared | Way::Preload => command.arg("-L").arg(folder).args(["-lrseqalloc"]),
    };
    if way == Way::Shared {
        command.arg(format!("-Wl,-rpath,{}", folder.display()));
    }
    command.arg("-o").arg(&program);
    let output = command.output().unwrap_or_else(|error| panic!("{compiler} is needed by this test: {error}"));
    assert!(output.status.success(), "{command:?}\n{}", text(&output.stderr));
    done.push(program.clone());
    program
}

/// A command that runs `program` with the allocator, in the default mode whatever the environment of the test is.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, way: Way) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RSEQ_ALLOC").env_remove("GLIBC_TUNABLES").stdin(Stdio::null());
    if way == Way::Preload {
        command.env("LD_PRELOAD", library());
    }
    command
}

/// Runs it.
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a case of a program, which has to succeed in silence.
pub(crate) fn succeeds(command: &mut Command) {
    let output = run(command);
    let silent = output.stdout.is_empty() && output.stderr.is_empty();
    assert!(
        output.status.success() && silent,
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// The cases of a program.
pub(crate) fn cases(program: &Path, way: Way) -> Vec<String> {
    text(&run(&mut command(program, way)).stdout).lines().map(str::to_owned).collect()
}

/// Output as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
