//! The allocators that are measured.
//!
//! A [`Subject`] gives an allocator to generic code; a [`Contender`] is the finished set of timed loops for one
//! subject. None of them is the global allocator of the process here: each is called directly, beside the others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alloc_core::RseqAlloc;
use snmalloc_rs::SnMalloc;
use tikv_jemallocator::Jemalloc;

use crate::single::{Order, Sizes};
use crate::{exchange, single};

/// An allocator as a type, so that loops over it are compiled with static dispatch.
pub trait Subject {
    /// The allocator's own type.
    type Allocator: GlobalAlloc + Sync + 'static;
    /// Its one value in this process.
    fn allocator() -> &'static Self::Allocator;
}

/// The timed loops, compiled for one allocator. Each returns the time that all its iterations took together.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    /// What the tables call it.
    pub name: &'static str,
    /// See [`single::pairs`]; the number counts pairs.
    pub pairs: fn(&Sizes, u64) -> Duration,
    /// See [`single::bursts`]; the number counts bursts.
    pub bursts: fn(&Sizes, &Order, u64) -> Duration,
    /// See [`exchange::run`]; the number counts blocks.
    pub exchange: fn(&Sizes, u64) -> Duration,
}

impl Contender {
    const fn of<S: Subject>(name: &'static str) -> Self {
        Contender { name, pairs: single::pairs::<S>, bursts: single::bursts::<S>, exchange: exchange::run::<S> }
    }
}

/// alloc-core, inlined into the loops.
pub const OURS: Contender = Contender::of::<Ours>("rseq");
/// alloc-core behind a call, as `__rust_alloc` is in the default release profile.
pub const OURS_CALLED: Contender = Contender::of::<OursCalled>("rseq, called");
/// jemalloc, from the crate tikv-jemallocator.
pub const JEMALLOC: Contender = Contender::of::<Jemallocs>("jemalloc");
/// snmalloc, from the crate snmalloc-rs.
pub const SNMALLOC: Contender = Contender::of::<Snmallocs>("snmalloc");
/// The C library's malloc.
pub const SYSTEM: Contender = Contender::of::<Systems>("system");
/// No allocator at all: what the loops themselves cost.
pub const FLOOR: Contender = Contender::of::<Floor>("floor");

/// Every allocator, ours first.
pub const ALL: [Contender; 5] = [OURS, OURS_CALLED, JEMALLOC, SNMALLOC, SYSTEM];

macro_rules! subject {
    ($subject:ident, $allocator:ty, $value:expr) => {
        struct $subject;
        impl Subject for $subject {
            type Allocator = $allocator;
            #[inline]
            fn allocator() -> &'static $allocator {
                static VALUE: $allocator = $value;
                &VALUE
            }
        }
    };
}

subject!(Ours, RseqAlloc, RseqAlloc::new());
subject!(OursCalled, Called, Called(RseqAlloc::new()));
subject!(Jemallocs, Jemalloc, Jemalloc);
subject!(Snmallocs, SnMalloc, SnMalloc);
subject!(Systems, System, System);
subject!(Floor, Fixed, Fixed::new());

/// Keeps the allocator's code out of its callers.
struct Called(RseqAlloc);

// SAFETY: every method passes its arguments to an allocator that keeps this contract.
unsafe impl GlobalAlloc for Called {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same there.
        unsafe { self.0.alloc(layout) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { self.0.dealloc(block, layout) }
    }
}

/// Places that [`Fixed`] hands out in turn; more than any loop here holds at a time.
const PLACES: usize = 4096;
/// Distance of two places: a cache line.
const PLACE: usize = 64;

/// Hands out the same few places for ever, whatever the size: good for loops that only touch a block's first word.
/// One thread at a time may allocate, so the counter needs no read-modify-write instruction.
#[repr(align(64))]
struct Fixed {
    places: UnsafeCell<[u8; PLACES * PLACE]>,
    next: AtomicUsize,
}

// SAFETY: `next` is atomic, and `places` is only handed out as raw pointers, never accessed here.
unsafe impl Sync for Fixed {}

impl Fixed {
    const fn new() -> Self {
        Fixed { places: UnsafeCell::new([0; PLACES * PLACE]), next: AtomicUsize::new(0) }
    }
}

// SAFETY: for the loops of this crate, which write no more than the first word of a block and hold fewer blocks than
// there are places, no two blocks overlap in what is used of them. It is no allocator for anybody else and not public.
unsafe impl GlobalAlloc for Fixed {
    #[inline]
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        let index = self.next.load(Ordering::Relaxed);
        self.next.store(index.wrapping_add(1), Ordering::Relaxed);
        self.places.get().cast::<u8>().wrapping_add(index % PLACES * PLACE)
    }

    #[inline]
    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}
