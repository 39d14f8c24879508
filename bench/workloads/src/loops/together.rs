//! Models a parallel program in which nothing is shared but the allocator: the bursts of [`super::bursts`] on as many
//! threads as there are CPUs, at once.
//!
//! Counted: the blocks of one thread; the time is that of the slowest thread, so a perfect allocator takes as long as
//! on one thread.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::bursts;
use crate::blocks::{Shape, Subject};
use crate::crew::cpus;

/// `count` bursts on each thread.
///
/// # Panics
///
/// If a thread cannot be started.
#[inline(never)]
pub fn run<A: Subject, S: Shape>(allocator: A, shape: &S, indices: &[usize], count: u64) -> Duration {
    let start = Barrier::new(cpus());
    let work = || {
        // What a thread needs once is not part of its loop.
        bursts::run(allocator, shape, indices, 1);
        start.wait();
        bursts::run(allocator, shape, indices, count)
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..cpus()).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().map(|thread| thread.join().expect("the loops do not panic")).fold(own, Duration::max)
    })
}
