//! Frames that run work for a span of time and count it.
//!
//! Work is counted only between the end of the warm-up and the end of the span, so neither the start of threads nor
//! the first touch of memory is part of it, and a slow allocator does less work instead of taking longer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

/// How long a workload runs.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub length: Duration,
}

impl Span {
    /// A span of `length` after a warm-up of a third of it.
    pub fn new(length: Duration) -> Self {
        Span { warm_up: length / 3, length }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What an operation is, the workload says.
    pub operations: u64,
    /// The time that they took.
    pub time: Duration,
}

/// One worker's view of the span.
#[derive(Debug)]
pub struct Hand<'a> {
    stop: &'a AtomicBool,
    published: &'a AtomicU64,
    done: u64,
}

impl Hand<'_> {
    /// Whether the span goes on.
    #[inline]
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Counts operations that are done.
    #[inline]
    pub fn did(&mut self, operations: u64) {
        self.done += operations;
        self.published.store(self.done, Ordering::Relaxed);
    }
}

/// Runs `work` on as many threads as `workers` says; each gets its number, and has to end soon after its hand says that
/// the span is over.
///
/// # Panics
///
/// If a thread cannot be started.
pub fn threads(span: Span, workers: usize, work: impl Fn(usize, &mut Hand<'_>) + Sync) -> Pace {
    let stop = AtomicBool::new(false);
    let counts: Vec<CachePadded<AtomicU64>> = (0..workers).map(|_| CachePadded::default()).collect();
    let sum = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
    thread::scope(|scope| {
        for (number, count) in counts.iter().enumerate() {
            let (stop, work) = (&stop, &work);
            scope.spawn(move || work(number, &mut Hand { stop, published: count, done: 0 }));
        }
        thread::sleep(span.warm_up);
        let (begun, before) = (Instant::now(), sum());
        thread::sleep(span.length);
        let (after, time) = (sum(), begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        Pace { operations: after - before, time }
    })
}

/// Runs `work` again and again on this thread; each call returns how many operations it did. Exact also where a single
/// call takes a good part of the span.
pub fn alone(span: Span, mut work: impl FnMut() -> u64) -> Pace {
    let started = Instant::now();
    while started.elapsed() < span.warm_up {
        work();
    }
    let begun = Instant::now();
    let mut operations = 0;
    loop {
        operations += work();
        let time = begun.elapsed();
        if time >= span.length {
            return Pace { operations, time };
        }
    }
}

/// CPUs that this process may run on.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { warm_up: Duration::from_millis(5), length: Duration::from_millis(20) };

    #[test]
    fn threads_are_counted_after_the_warm_up() {
        // Where others have the CPUs no worker may be served within the shortest.
        let counted = [SPAN.length, SPAN.length * 10, SPAN.length * 100].into_iter().any(|length| {
            let pace = threads(Span { length, ..SPAN }, 3, |_, hand| {
                while hand.goes_on() {
                    thread::sleep(Duration::from_millis(1));
                    hand.did(2);
                }
            });
            // Three workers, two operations a millisecond each, and nothing of the warm-up.
            let most = (pace.time.as_millis() as u64 + 1) * 6;
            assert!(pace.time >= length && pace.operations <= most, "{pace:?}");
            pace.operations >= 2
        });
        assert!(counted);
    }

    #[test]
    fn alone_ends_with_the_call_that_crosses_the_end() {
        let pace = alone(SPAN, || {
            thread::sleep(Duration::from_millis(3));
            1
        });
        assert!(pace.time >= SPAN.length && pace.operations <= pace.time.as_millis() as u64 / 3, "{pace:?}");
    }
}
