//! Short loops, called with a number of iterations: what criterion samples, and what a process of the suite times.
//!
//! | loop | an operation is |
//! |---|---|
//! | [`pairs`] | a block allocated and freed at once |
//! | [`bursts`] | a block of a burst, allocated and freed |
//! | [`together`] | the same, while as many threads as there are CPUs do it |
//! | [`live_set`] | a block freed and another allocated, of 20 000 |
//! | [`zeroed`] | a zeroed block of which every page is written |
//! | [`growth`] | a vector grown to 64 MiB |
//! | [`exchange`] | a block that one thread allocates and another frees |

pub mod bursts;
pub mod exchange;
pub mod growth;
pub mod live_set;
pub mod pairs;
pub mod together;
pub mod zeroed;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::blocks::{Constant, Order, Shape, Sizes, Subject, Uniform};
use crate::outcome::Outcome;

/// One of the loops with its parameters. Its text, for instance `bursts/1000/lifo`, names it everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// See [`pairs`]: the size.
    Pairs(usize),
    /// See [`bursts`]: blocks of a burst and the order of freeing.
    Bursts(usize, Order),
    /// See [`together`].
    Together(usize, Order),
    /// See [`live_set`].
    LiveSet,
    /// See [`zeroed`]: the size.
    Zeroed(usize),
    /// See [`growth`].
    Growth,
    /// See [`exchange`]: the size, or mixed sizes.
    Exchange(Option<usize>),
}

/// Size of the blocks of bursts.
pub const BURST_SIZE: usize = 64;
const ORDERS: [(Order, &str); 3] = [(Order::Lifo, "lifo"), (Order::Fifo, "fifo"), (Order::Random, "random")];

impl Loop {
    /// All that the suite measures.
    pub fn all() -> Vec<Loop> {
        let mut all: Vec<Loop> = [16, 64, 256, 1 << 10, 8 << 10, 64 << 10, 1 << 20].map(Loop::Pairs).into();
        for (order, _) in ORDERS {
            all.extend([50, 1000, 10_000].map(|length| Loop::Bursts(length, order)));
        }
        all.extend(ORDERS.map(|(order, _)| Loop::Together(1000, order)));
        all.extend([Loop::LiveSet, Loop::Zeroed(4 << 10), Loop::Zeroed(1 << 20), Loop::Growth]);
        all.extend([Loop::Exchange(Some(64)), Loop::Exchange(None)]);
        all
    }

    /// Whether its frame costs something that has to be measured by itself.
    pub fn has_floor(self) -> bool {
        matches!(self, Loop::Exchange(_))
    }

    /// The loop on one allocator.
    pub fn on<A: Subject>(self, allocator: A, layouts: Layouts) -> Timed {
        match self {
            Loop::Pairs(size) => with_shape(size, layouts, Pairs(allocator)),
            Loop::Bursts(length, order) => with_shape(BURST_SIZE, layouts, Bursts(allocator, length, order)),
            Loop::Together(length, order) => with_shape(BURST_SIZE, layouts, Together(allocator, length, order)),
            Loop::LiveSet => {
                let sizes = Sizes::small();
                Timed::new(1, move |count| live_set::run(allocator, &sizes, count))
            }
            Loop::Zeroed(size) => with_shape(size, layouts, Zeroed(allocator)),
            Loop::Growth => Timed::new(1, move |count| growth::run(allocator, count)),
            Loop::Exchange(Some(size)) => with_shape(size, layouts, Exchange(allocator)),
            Loop::Exchange(None) => Exchange(allocator).with(Sizes::small()),
        }
    }
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = |order: Order| ORDERS.iter().find(|known| known.0 == order).map_or("", |known| known.1);
        match *self {
            Loop::Pairs(size) => write!(f, "pairs/{size}"),
            Loop::Bursts(length, of) => write!(f, "bursts/{length}/{}", order(of)),
            Loop::Together(length, of) => write!(f, "bursts-together/{length}/{}", order(of)),
            Loop::LiveSet => f.write_str("live-set"),
            Loop::Zeroed(size) => write!(f, "zeroed/{size}"),
            Loop::Growth => f.write_str("vec-growth"),
            Loop::Exchange(Some(size)) => write!(f, "exchange/{size}"),
            Loop::Exchange(None) => f.write_str("exchange/mixed"),
        }
    }
}

impl FromStr for Loop {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Loop::all().into_iter().find(|known| known.to_string() == text).ok_or(())
    }
}

/// Whether the compiler knows the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layouts {
    /// It does: what a `Box` is, once everything is inlined.
    Constant,
    /// It does not.
    AtRunTime,
}

/// A loop on an allocator, ready to run.
pub struct Timed {
    /// Operations of an iteration.
    pub operations: u64,
    /// Runs so many iterations and tells how long they took.
    pub run: Box<dyn Fn(u64) -> Duration>,
}

impl fmt::Debug for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("operations", &self.operations).finish_non_exhaustive()
    }
}

/// A process takes so many samples and reports their median.
const SAMPLES: usize = 5;

impl Timed {
    fn new(operations: usize, run: impl Fn(u64) -> Duration + 'static) -> Self {
        Timed { operations: operations as u64, run: Box::new(run) }
    }

    /// Iterations that take about `target`; warms up, too. The better of two tries counts, lest one that was interrupted
    /// be taken for a slow loop.
    fn fitting(&self, target: Duration) -> u64 {
        let mut count = 1;
        loop {
            let elapsed = (self.run)(count).min((self.run)(count));
            if elapsed * 8 >= target {
                let ratio = target.as_secs_f64() / elapsed.as_secs_f64();
                return ((count as f64 * ratio).round() as u64).max(1);
            }
            count *= 2;
        }
    }

    /// The median of some samples that together take about `target`.
    pub fn sample(&self, target: Duration) -> Outcome {
        let count = self.fitting(target / SAMPLES as u32);
        let mut times: Vec<Duration> = (0..SAMPLES).map(|_| (self.run)(count)).collect();
        times.sort_unstable();
        Outcome {
            operations: count * self.operations,
            nanoseconds: times[SAMPLES / 2].as_nanos() as f64,
            ..Outcome::default()
        }
    }
}

/// A loop that still has to be told the layouts.
trait Shaped {
    fn with<S: Shape>(self, shape: S) -> Timed;
}

/// One instance for each size that [`Loop::all`] has.
fn with_shape(size: usize, layouts: Layouts, shaped: impl Shaped) -> Timed {
    match (layouts, size) {
        (Layouts::Constant, 16) => shaped.with(Constant::<16>),
        (Layouts::Constant, 64) => shaped.with(Constant::<64>),
        (Layouts::Constant, 256) => shaped.with(Constant::<256>),
        (Layouts::Constant, 0x400) => shaped.with(Constant::<0x400>),
        (Layouts::Constant, 0x1000) => shaped.with(Constant::<0x1000>),
        (Layouts::Constant, 0x2000) => shaped.with(Constant::<0x2000>),
        (Layouts::Constant, 0x1_0000) => shaped.with(Constant::<0x1_0000>),
        (Layouts::Constant, 0x10_0000) => shaped.with(Constant::<0x10_0000>),
        (Layouts::Constant, _) => unreachable!("no loop has constant blocks of {size} bytes"),
        (Layouts::AtRunTime, size) => shaped.with(Uniform::new(size)),
    }
}

struct Pairs<A>(A);

impl<A: Subject> Shaped for Pairs<A> {
    fn with<S: Shape>(self, shape: S) -> Timed {
        Timed::new(1, move |count| pairs::run(self.0, &shape, count))
    }
}

struct Bursts<A>(A, usize, Order);

impl<A: Subject> Shaped for Bursts<A> {
    fn with<S: Shape>(self, shape: S) -> Timed {
        let indices = self.2.indices(self.1);
        Timed::new(self.1, move |count| bursts::run(self.0, &shape, &indices, count))
    }
}

struct Together<A>(A, usize, Order);

impl<A: Subject> Shaped for Together<A> {
    fn with<S: Shape>(self, shape: S) -> Timed {
        let indices = self.2.indices(self.1);
        Timed::new(self.1, move |count| together::run(self.0, &shape, &indices, count))
    }
}

struct Zeroed<A>(A);

impl<A: Subject> Shaped for Zeroed<A> {
    fn with<S: Shape>(self, shape: S) -> Timed {
        Timed::new(1, move |count| zeroed::run(self.0, &shape, count))
    }
}

struct Exchange<A>(A);

impl<A: Subject> Shaped for Exchange<A> {
    fn with<S: Shape>(self, shape: S) -> Timed {
        // Threads are started in each iteration, so one has to be long.
        Timed::new(exchange::BLOCKS, move |count| exchange::run(self.0, &shape, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subjects::{FIXED, Global};

    #[test]
    fn names_are_read_back() {
        for each in Loop::all() {
            assert_eq!(each.to_string().parse(), Ok(each));
        }
        assert!("pairs/17".parse::<Loop>().is_err());
    }

    #[test]
    fn every_loop_runs_with_both_kinds_of_layouts() {
        for each in Loop::all() {
            for layouts in [Layouts::Constant, Layouts::AtRunTime] {
                let timed = each.on(Global, layouts);
                assert!((timed.run)(1) > Duration::ZERO, "{each}");
            }
        }
    }

    #[test]
    fn loops_with_floors_run_on_no_allocator() {
        for each in Loop::all().into_iter().filter(|each| each.has_floor()) {
            assert!((each.on(FIXED, Layouts::AtRunTime).run)(1) > Duration::ZERO);
        }
    }

    #[test]
    fn samples_fit_the_target() {
        let timed = Timed::new(10, |count| Duration::from_micros(10 * count));
        let outcome = timed.sample(Duration::from_millis(100));
        // 20 ms for each of five samples: 2000 iterations of 10 operations.
        assert!((outcome.operations, outcome.per_operation()) == (20_000, 1000.0), "{outcome:?}");
        let slow = Timed::new(1, |count| Duration::from_millis(30 * count));
        assert_eq!(slow.sample(Duration::from_millis(100)).operations, 1);
    }
}
