//! Running one test of the current binary again, in a process of its own.

use std::process::Command;

/// Set in such a process.
const MARK: &str = "RSEQ_SYS_TEST_CHILD";

/// Whether this process was started by [`command`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Runs `test` of this binary in a fresh process, on its main thread. `own` keeps glibc from registering; on another
/// libc it changes nothing.
pub(crate) fn command(test: &str, own: bool) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test knows its own path"));
    command.args(["--exact", test, "--test-threads=1", "--nocapture"]).env(MARK, "1");
    if own {
        command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    } else {
        command.env_remove("GLIBC_TUNABLES");
    }
    command
}
