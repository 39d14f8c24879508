//! Models a program of stages with several workers each: as many threads as there are CPUs allocate blocks and send
//! them, by turns, to each of as many threads that free them.
//!
//! Counted: blocks that arrived and were freed. The rings' cost is the floor.

use super::producer_consumer::{consume, drain, produce};
use super::{Outcome, Settings};
use crate::blocks::{Shape, Subject};
use crate::crew;
use crate::ring::Ring;

pub(super) fn run<A: Subject, S: Shape>(allocator: A, shape: S, settings: &Settings) -> Outcome {
    let side = crew::cpus();
    // The ring from producer `p` to consumer `c` is number `p * side + c`.
    let rings: Vec<Ring> = (0..side * side).map(|_| Ring::new()).collect();
    let pace = crew::threads(settings.span, side * 2, |number, hand| {
        if let Some(consumer) = number.checked_sub(side) {
            let mut ends: Vec<_> = (0..side).map(|producer| rings[producer * side + consumer].receiver()).collect();
            consume(allocator, &shape, &mut ends, hand);
        } else {
            let mut ends: Vec<_> = (0..side).map(|consumer| rings[number * side + consumer].sender()).collect();
            produce(allocator, &shape, &mut ends, hand);
        }
    });
    for ring in &rings {
        drain(allocator, &shape, ring);
    }
    Ok(pace.into())
}
