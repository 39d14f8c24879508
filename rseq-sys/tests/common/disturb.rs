//! What disturbs sequences: moving threads between CPUs, and fences.

use crate::affinity::{allowed_cpus, pin};
use rseq_sys::membarrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Moves threads about, to a random allowed CPU each time.
pub(crate) struct Hopper {
    cpus: Vec<usize>,
    state: u64,
}

impl Hopper {
    pub(crate) fn new(seed: usize) -> Self {
        Hopper { cpus: allowed_cpus(), state: seed as u64 * 2 + 1 }
    }

    /// Moves the thread `tid`; 0 is the calling one. False if there is no such thread.
    pub(crate) fn hop(&mut self, tid: libc::pid_t) -> bool {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        pin(tid, self.cpus[(self.state >> 33) as usize % self.cpus.len()])
    }
}

/// Aborts sections all over the process until told to stop; returns how often. Without membarrier the moving has to do.
pub(crate) fn fence_until(stop: &AtomicBool) -> usize {
    let mut fences = 0;
    while !stop.load(Ordering::Relaxed) && membarrier::fence().is_ok() {
        fences += 1;
        std::thread::sleep(Duration::from_micros(20));
    }
    fences
}
