//! The time of every call of an allocator.
//!
//! [`Timed`] stands around a program's allocator and reads the time-stamp counter before and after each call. The
//! samples of a thread are gathered in a small buffer of its own and handed to the histograms when it is full, outside
//! of what is timed; a thread that finds the histograms taken drops its buffer instead of waiting, since a random part
//! of the samples serves as well. What an empty measurement costs is subtracted.
//!
//! The counter's steps are the limit of what is seen: some processors count in steps of 10 ns.
//!
//! The serialising reads keep the CPU from overlapping calls, as it does in a loop of pairs. So these figures compare
//! allocators, and their tails; they are not the costs of pairs.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::outcome::Latency;

/// Samples of a thread before they are handed over: 4 KiB.
const BUFFER: usize = 1024;
/// The bit of a sample that tells a free; the rest are ticks.
const FREE: u32 = 1 << 31;
/// An hour of ticks at some gigahertz; samples are capped at less.
const MOST: u64 = 1 << 31;

/// An allocator with the clock around it.
#[derive(Clone, Copy, Debug)]
pub struct Timed<A>(pub A);

struct Samples {
    length: Cell<usize>,
    /// Set while samples are handed over, so that what this allocates itself is not recorded.
    busy: Cell<bool>,
    values: UnsafeCell<[u32; BUFFER]>,
}

thread_local! {
    static SAMPLES: Samples =
        const { Samples { length: Cell::new(0), busy: Cell::new(false), values: UnsafeCell::new([0; BUFFER]) } };
}

struct Histograms {
    malloc: Histogram<u64>,
    free: Histogram<u64>,
    cost: u64,
}

static HISTOGRAMS: Mutex<Option<Histograms>> = Mutex::new(None);

impl Samples {
    #[inline]
    fn record(&self, ticks: u64, kind: u32) {
        if self.busy.get() {
            return;
        }
        let length = self.length.get();
        // SAFETY: only this thread has these samples, no reference to them is alive, and the length is below BUFFER.
        unsafe { (*self.values.get())[length] = ticks.min(MOST - 1) as u32 | kind };
        self.length.set(length + 1);
        if length + 1 == BUFFER {
            self.busy.set(true);
            if let Ok(mut histograms) = HISTOGRAMS.try_lock() {
                self.hand_over(&mut histograms);
            }
            self.length.set(0);
            self.busy.set(false);
        }
    }

    fn hand_over(&self, histograms: &mut Option<Histograms>) {
        let Some(histograms) = histograms else { return };
        // SAFETY: as in `record`; `busy` keeps allocations inside from writing.
        let values = unsafe { &(&*self.values.get())[..self.length.get()] };
        for value in values {
            let (ticks, histogram) = match value & FREE {
                0 => (*value, &mut histograms.malloc),
                _ => (*value & !FREE, &mut histograms.free),
            };
            // Histograms start at 1; a call that took no longer than an empty measurement counts as that.
            histogram.saturating_record(u64::from(ticks).saturating_sub(histograms.cost).max(1));
        }
        self.length.set(0);
    }
}

impl Drop for Samples {
    fn drop(&mut self) {
        self.busy.set(true);
        self.hand_over(&mut lock());
    }
}

fn lock() -> MutexGuard<'static, Option<Histograms>> {
    HISTOGRAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A recording, from [`Recording::begin`] to [`Recording::end`].
#[derive(Debug)]
pub struct Recording {
    begun: Instant,
    ticks: u64,
}

impl Recording {
    /// Starts to record what [`Timed`] sees. One recording at a time.
    ///
    /// # Panics
    ///
    /// Never: the bounds of the histograms are good.
    pub fn begin() -> Self {
        let histogram = || Histogram::new_with_bounds(1, MOST, 3).expect("the bounds are in order");
        let made = Histograms { malloc: histogram(), free: histogram(), cost: cost() };
        SAMPLES.with(|samples| samples.length.set(0));
        *lock() = Some(made);
        Recording { begun: Instant::now(), ticks: begin() }
    }

    /// Ends it and tells malloc's and free's times. Other threads must have ended.
    pub fn end(self) -> (Latency, Latency) {
        let per_nanosecond = (end() - self.ticks) as f64 / self.begun.elapsed().as_nanos() as f64;
        SAMPLES.with(|samples| {
            samples.busy.set(true);
            samples.hand_over(&mut lock());
            samples.busy.set(false);
        });
        let Some(histograms) = lock().take() else { return Default::default() };
        let latency = |histogram: &Histogram<u64>| {
            let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / per_nanosecond;
            match histogram.len() {
                0 => Latency::default(),
                calls => Latency { calls, p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) },
            }
        };
        (latency(&histograms.malloc), latency(&histograms.free))
    }
}

/// Ticks of an empty measurement: the median of many.
fn cost() -> u64 {
    let mut costs: Vec<u64> = (0..10_001)
        .map(|_| {
            let begun = begin();
            end() - begun
        })
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

#[inline]
fn timed<T>(kind: u32, call: impl FnOnce() -> T) -> T {
    let begun = begin();
    let result = call();
    let ticks = end().saturating_sub(begun);
    // A thread that is past the end of its samples allocates untimed.
    _ = SAMPLES.try_with(|samples| samples.record(ticks, kind));
    result
}

// SAFETY: every method passes its arguments to an allocator that keeps this contract.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Timed<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same there.
        timed(0, || unsafe { self.0.alloc(layout) })
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        timed(FREE, || unsafe { self.0.dealloc(block, layout) });
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        timed(0, || unsafe { self.0.alloc_zeroed(layout) })
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        timed(0, || unsafe { self.0.realloc(block, layout, new_size) })
    }
}

/// Reads the clock before a call: everything before has been done, and nothing of the call.
#[cfg(target_arch = "x86_64")]
#[inline]
fn begin() -> u64 {
    use std::arch::x86_64::{_mm_lfence, _rdtsc};
    // SAFETY: every x86-64 has these instructions, and Linux lets programs read the counter.
    unsafe {
        _mm_lfence();
        let ticks = _rdtsc();
        _mm_lfence();
        ticks
    }
}

/// Reads the clock after a call: all of it has been done.
#[cfg(target_arch = "x86_64")]
#[inline]
fn end() -> u64 {
    begin()
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn begin() -> u64 {
    // SAFETY: all zeroes are a value of this plain structure.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for writes, and the clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn end() -> u64 {
    begin()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;
    use std::thread;
    use std::time::Duration;

    /// Sleeps in `alloc`, so that the answer is known.
    #[derive(Clone, Copy)]
    struct Slow;

    // SAFETY: passes everything on.
    unsafe impl GlobalAlloc for Slow {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            thread::sleep(Duration::from_millis(1));
            // SAFETY: the caller's contract is the same.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the caller's contract is the same.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[test]
    fn every_call_of_every_thread_is_recorded() {
        let recording = Recording::begin();
        let work = |count| {
            let allocator = Timed(Slow);
            for _ in 0..count {
                let layout = Layout::new::<u64>();
                // SAFETY: the layout is not empty, and the block is freed at once.
                unsafe { allocator.dealloc(allocator.alloc(layout), layout) };
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| work(10));
        });
        work(20);
        let (malloc, free) = recording.end();
        assert_eq!((malloc.calls, free.calls), (30, 30));
        assert!(malloc.p50 > 900_000.0 && malloc.p50 <= malloc.p99 && malloc.p999 <= malloc.max, "{malloc:?}");
        assert!(free.p50 < 100_000.0, "{free:?}");
    }
}
