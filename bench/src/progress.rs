//! What is going on, on standard error: one line that changes on a terminal, a line for each step elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    begun: Instant,
    shown: AtomicBool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Progress { terminal: std::io::stderr().is_terminal(), begun: Instant::now(), shown: AtomicBool::new(false) }
    }

    /// A step that is worth a line of a log.
    pub(crate) fn line(&self, text: &str) {
        if self.terminal {
            self.show(text);
        } else {
            eprintln!("{:>5.0} s  {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    /// A step that is only shown on a terminal.
    pub(crate) fn show(&self, text: &str) {
        if self.terminal {
            eprint!("\r\x1b[K{:>5.0} s  {text}", self.begun.elapsed().as_secs_f64());
            // A progress line that cannot be written is no reason to stop.
            _ = std::io::stderr().flush();
            self.shown.store(true, Ordering::Relaxed);
        }
    }

    /// Makes room for results.
    pub(crate) fn clear(&self) {
        if self.shown.swap(false, Ordering::Relaxed) {
            eprint!("\r\x1b[K");
        }
    }
}
