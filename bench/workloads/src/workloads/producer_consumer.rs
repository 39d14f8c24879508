//! Models stages of a pipeline: pairs of threads, one pair for every two CPUs, in which one thread allocates blocks and
//! sends them through a ring, and the other frees them. All frees are of another thread's blocks.
//!
//! Counted: blocks that arrived and were freed. The ring's cost is the floor.

use super::{Outcome, Settings};
use crate::blocks::{Shape, Subject, allocate};
use crate::crew::{self, Hand};
use crate::ring::{Receiver, Ring, Sender};

pub(super) fn run<A: Subject, S: Shape>(allocator: A, shape: S, settings: &Settings) -> Outcome {
    let pairs = (crew::cpus() / 2).max(1);
    let rings: Vec<Ring> = (0..pairs).map(|_| Ring::new()).collect();
    let pace = crew::threads(settings.span, pairs * 2, |number, hand| {
        let ring = &rings[number / 2];
        if number % 2 == 0 {
            produce(allocator, &shape, &mut [ring.sender()], hand);
        } else {
            consume(allocator, &shape, &mut [ring.receiver()], hand);
        }
    });
    for ring in &rings {
        drain(allocator, &shape, ring);
    }
    Ok(pace.into())
}

/// Allocates blocks and sends them on the rings in turn. A block's first word is the index of its layout.
pub(super) fn produce<A: Subject, S: Shape>(allocator: A, shape: &S, rings: &mut [Sender<'_>], hand: &Hand<'_>) {
    let mut index = 0;
    'all: while hand.goes_on() {
        for ring in &mut *rings {
            let layout = shape.layout(index);
            let block = allocate(allocator, layout, index);
            if !ring.send(block, || hand.goes_on()) {
                // SAFETY: just allocated with this layout, and not sent.
                unsafe { allocator.dealloc(block, layout) };
                break 'all;
            }
            index += 1;
        }
    }
}

/// Frees what comes through the rings.
pub(super) fn consume<A: Subject, S: Shape>(allocator: A, shape: &S, rings: &mut [Receiver<'_>], hand: &mut Hand<'_>) {
    while hand.goes_on() {
        for ring in &mut *rings {
            let Some(block) = ring.receive(|| hand.goes_on()) else { return };
            // SAFETY: the producer allocated it with the layout that its first word tells.
            unsafe { free(allocator, shape, block) };
            hand.did(1);
        }
    }
}

/// Frees what the span's end left in a ring.
pub(super) fn drain<A: Subject, S: Shape>(allocator: A, shape: &S, ring: &Ring) {
    let mut receiver = ring.receiver();
    while let Some(block) = receiver.receive_if_any() {
        // SAFETY: as in `consume`; its threads have ended.
        unsafe { free(allocator, shape, block) };
    }
}

/// # Safety
///
/// The block must come from `produce` with the same allocator and shape.
unsafe fn free<A: Subject, S: Shape>(allocator: A, shape: &S, block: *mut u8) {
    // SAFETY: the caller's promise; the first word was written by `allocate`.
    unsafe {
        let index = block.cast::<usize>().read_volatile();
        allocator.dealloc(block, shape.layout(index));
    }
}
