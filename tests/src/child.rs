//! Child processes with a time limit: this binary again under another environment, or a fork of this process.
//!
//! No child outlives its test: a hung one is killed and reported, and one whose parent dies gets SIGKILL
//! ([PR_SET_PDEATHSIG](https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html)).

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What became of a child.
#[derive(Debug)]
pub struct Finished {
    /// Exit status; killed by SIGKILL if it hung.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to file descriptor 2.
    pub stderr: String,
    /// Whether the time limit ended it.
    pub hung: bool,
}

impl Finished {
    /// Panics with all output unless the child ended by itself with status 0.
    pub fn expect_success(&self, what: &str) {
        assert!(!self.hung && self.status.success(), "{what}: {self}");
    }

    /// The signal that ended the child.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hung = if self.hung { ", hung and killed" } else { "" };
        write!(f, "{}{hung}\n--- stdout\n{}--- stderr\n{}---", self.status, self.stdout, self.stderr)
    }
}

/// This binary, to be run again.
pub fn again() -> Command {
    Command::new(std::env::current_exe().expect("the path of this binary"))
}

/// Runs a command with captured output and kills it after `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent's.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    let mut child = command.spawn().expect("the child starts");
    let mut out = child.stdout.take().expect("a pipe");
    let mut err = child.stderr.take().expect("a pipe");
    let out = std::thread::spawn(move || read_all(&mut out));
    let err = std::thread::spawn(move || read_all(&mut err));
    let start = Instant::now();
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting for our own child") {
            break status;
        }
        if start.elapsed() > limit {
            hung = true;
            child.kill().expect("killing our own child");
            break child.wait().expect("waiting for our own child");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let stdout = out.join().expect("reading standard output");
    let stderr = err.join().expect("reading file descriptor 2");
    Finished { status, stdout, stderr, hung }
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("reading a pipe");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Forks, runs `body` in the child and waits for it to end with status 0 within `limit`.
///
/// # Errors
///
/// How the child ended otherwise, or that it hung (it is killed then).
pub fn fork(limit: Duration, body: impl FnOnce()) -> Result<(), String> {
    // SAFETY: the child runs only `body` and leaves through _exit. That a child of a multi-threaded process may go on
    // allocating is what the caller tests.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(format!("fork: {}", std::io::Error::last_os_error())),
        0 => {
            // SAFETY: no preconditions.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: no preconditions; no destructor or exit handler of the parent's may run here.
            unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 101 }) }
        }
        child => wait_for(child, limit),
    }
}

/// Waits for a child of ours to end with status 0; kills it after `limit`.
fn wait_for(child: libc::pid_t, limit: Duration) -> Result<(), String> {
    let start = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid for the call.
        let answer = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if answer == child {
            let status = ExitStatus::from_raw(status);
            return if status.success() { Ok(()) } else { Err(format!("the forked child ended with {status}")) };
        }
        if answer < 0 {
            return Err(format!("waitpid: {}", std::io::Error::last_os_error()));
        }
        if start.elapsed() > limit {
            // SAFETY: `child` is our own child and not yet reaped, so the id cannot be anybody else's.
            unsafe { libc::kill(child, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            return Err(format!("the forked child hung for {limit:?} and was killed"));
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}
