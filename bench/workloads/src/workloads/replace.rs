//! Models a busy service with a thread for each client: threads, as many as there are CPUs or many more, each with 1000
//! blocks of 16 to 1024 bytes, of which one at a time, chosen at random, is replaced. Nothing is shared.
//!
//! Counted: replacements.

use super::{Outcome, Settings, Slots};
use crate::blocks::{Sizes, Subject};
use crate::crew;

const LIVE: usize = 1000;
/// Replacements from one look at the clock's flag to the next.
const STRIDE: u64 = 64;

pub(super) fn run<A: Subject>(allocator: A, threads: usize, settings: &Settings) -> Outcome {
    let live = settings.scaled(LIVE);
    let pace = crew::threads(settings.span, threads, |number, hand| {
        let mut slots = Slots::new(allocator, Sizes::small(), settings.seed_of(number), live);
        while hand.goes_on() {
            for _ in 0..STRIDE {
                slots.replace();
            }
            hand.did(STRIDE);
        }
        slots.free();
    });
    Ok(pace.into())
}
