//! Models buffers of images, packets and files: 40 blocks of 32 KiB to 2 MiB are live; one at a time, chosen at random,
//! is freed, and another of a random size takes its place, in which every page is written.
//!
//! Counted: replacements.

use super::{Outcome, Settings, Slots};
use crate::blocks::{Sizes, Subject};
use crate::crew;

const LIVE: usize = 40;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let (sizes, live) = (Sizes::spread(32 << 10, 2 << 20), settings.scaled(LIVE));
    let mut slots = Slots::new(allocator, sizes, settings.seed_of(0), live);
    let pace = crew::alone(settings.span, || {
        slots.replace().touch();
        1
    });
    slots.free();
    Ok(pace.into())
}
