//! Models a server in the manner of Larson and Krishnan ("Memory allocation for long-running server applications",
//! 1998): for each CPU there is a chain of threads with a working set of 5000 blocks of 16 to 1024 bytes, of which one
//! at a time, chosen at random, is replaced; after 20 000 replacements the thread hands the working set to a new thread
//! and ends, so that most blocks are freed by another thread than the one that allocated them.
//!
//! Counted: replacements, with the threads' starts.

use std::thread;

use super::{Outcome, Settings, Slots};
use crate::blocks::{Sizes, Subject};
use crate::crew;

const LIVE: usize = 5000;
const REPLACEMENTS: u64 = 20_000;
/// Replacements between two looks at the clock's flag.
const STRIDE: u64 = 100;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let live = settings.scaled(LIVE);
    let pace = crew::threads(settings.span, crew::cpus(), |number, hand| {
        let mut slots = Slots::new(allocator, Sizes::small(), settings.seed_of(number), live);
        while hand.goes_on() {
            let hand = &mut *hand;
            slots = thread::scope(|scope| {
                let thread = scope.spawn(move || {
                    for _ in 0..REPLACEMENTS / STRIDE {
                        for _ in 0..STRIDE {
                            slots.replace();
                        }
                        hand.did(STRIDE);
                        if !hand.goes_on() {
                            break;
                        }
                    }
                    slots
                });
                thread.join().expect("replacing does not panic")
            });
        }
        slots.free();
    });
    Ok(pace.into())
}
