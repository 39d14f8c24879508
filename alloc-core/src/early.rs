//! The first small blocks of a Rust program, from static memory: one that needs no more than [`BYTES`] of them ends
//! without a decision about the mode, which costs some 30 system calls and as many page faults.
//!
//! The blocks are as long as those of their class and as aligned. So when the mode is decided they are like any others: a
//! free by size puts them into a magazine, where they serve again. Only when that is emptied into the spans they are
//! told apart, by their address, and dropped.
//!
//! Until then a block that is freed does not serve again, so that a program which allocates and frees for ever soon comes
//! to the decision, and to caches. Nothing here takes a lock. What was taken counts for the limits for ever, since it
//! stays resident.
//!
//! The C functions take nothing from here: a free without a size asks the map for the class of a block, and comes here,
//! where [`class_of`] knows it, only when the map does not.

use crate::fatal::{self, Seen};
use crate::limit;
use crate::map::NONE;
use crate::options::Options;
use crate::size_class::{CLASSES, SMALL_MAX, class};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Static memory for blocks; of pages that are not touched there is only the address.
const BYTES: usize = 32 << 10;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<MaybeUninit<[u8; BYTES]>>);
// SAFETY: the blocks are disjoint, and each is its owner's.
unsafe impl Sync for Memory {}
static MEMORY: Memory = Memory(UnsafeCell::new(MaybeUninit::zeroed()));
const _: () = assert!(align_of::<Memory>() >= SMALL_MAX);

/// Per 8 bytes of them the class of the block that starts there.
static STARTS: [AtomicU8; BYTES / 8] = [const { AtomicU8::new(NONE) }; _];
const FREED: u8 = u8::MAX;
const _: () = assert!(CLASSES < FREED as usize);

/// Where the next block may start.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Bytes that blocks were made of, with the gaps before them.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Bytes of blocks that are out, or in magazines.
static OUT: AtomicUsize = AtomicUsize::new(0);

/// A block of a class, if the options and the limits allow it. `None`: it is none of the small ones, or there is no room.
pub(crate) fn allocate(options: &Options, class_index: usize) -> Option<NonNull<u8>> {
    let size = class(class_index).size as usize;
    if size > SMALL_MAX || !options.early {
        return None;
    }
    // As in a span, which begins with a page and has one block behind the other.
    let start = |next: usize| next.next_multiple_of(1 << size.trailing_zeros());
    let fits = |next| Some(start(next) + size).filter(|end| *end <= BYTES);
    let next = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
    let bytes = start(next) + size - next;
    if !limit::charge(bytes) {
        return None;
    }
    USED.fetch_add(bytes, Ordering::Relaxed);
    OUT.fetch_add(size, Ordering::Relaxed);
    STARTS.get(start(next) / 8)?.store(class_index as u8, Ordering::Relaxed);
    NonNull::new(MEMORY.0.get().cast::<u8>().wrapping_add(start(next)))
}

/// Where the class is noted of a block that starts at this address, or would. `None`: the address is elsewhere.
fn start_at(block: usize) -> Option<&'static AtomicU8> {
    STARTS.get(block.wrapping_sub(MEMORY.0.get().addr()) / 8)
}

/// The class of the block that starts at an address, which may be any number.
pub(crate) fn class_of(block: usize) -> Option<usize> {
    let class = start_at(block)?.load(Ordering::Relaxed);
    (block.is_multiple_of(8) && !matches!(class, NONE | FREED)).then_some(class.into())
}

/// Drops a block of a class. False: it is none of these. Ends the process if the block is of another class, or none.
pub(crate) fn free(block: usize, class_index: usize, seen: Seen) -> bool {
    let Some(start) = start_at(block) else { return false };
    let size = class(class_index).size as usize;
    if !block.is_multiple_of(8) {
        fatal::off_grid(block, size, seen);
    }
    match start.compare_exchange(class_index as u8, FREED, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {}
        Err(NONE) => fatal::off_grid(block, size, seen),
        Err(FREED) => fatal::double_free(block, seen),
        Err(other) => fatal::wrong_size(block, size, class(other.into()).size as usize, seen),
    }
    OUT.fetch_sub(size, Ordering::Relaxed);
    true
}

/// What [`usage`] reports.
pub(crate) struct Usage {
    /// Bytes of blocks that are out, or in magazines.
    pub(crate) out: usize,
    /// Bytes that blocks were made of.
    pub(crate) used: usize,
}

/// How much of the memory serves, and how much ever did.
pub(crate) fn usage() -> Usage {
    Usage { out: OUT.load(Ordering::Relaxed), used: USED.load(Ordering::Relaxed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::{bin, class_of_bin};
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn blocks_are_disjoint_and_aligned() {
        let (without, least) = (Options { early: false, ..Options::new() }, class_of_bin(0));
        assert!(allocate(&without, least).is_none());
        assert!(allocate(&Options::new(), class_of_bin(bin(SMALL_MAX * 2).unwrap())).is_none());
        let mut taken: Vec<(usize, usize, usize)> = Vec::new();
        for size in (1..).map(|number: usize| number * 37 % SMALL_MAX + 1) {
            let index = class_of_bin(bin(size - 1).unwrap());
            let Some(block) = allocate(&Options::new(), index) else { break };
            let (start, len) = (block.as_ptr().addr(), class(index).size as usize);
            assert_eq!(start % (1 << len.trailing_zeros()), 0, "{len} bytes");
            assert!(taken.last().is_none_or(|last| last.0 + last.1 <= start));
            // SAFETY: the block is this test's.
            unsafe { block.write_bytes(0xa5, len) };
            taken.push((start, len, index));
        }
        let bytes: usize = taken.iter().map(|each| each.1).sum();
        let Usage { out, used } = usage();
        assert!(bytes > BYTES * 3 / 4 && out == bytes && (bytes..=BYTES).contains(&used));
        for (block, _, index) in taken {
            assert_eq!((class_of(block), class_of(block + 1)), (Some(index), None));
            assert!(free(block, index, Seen::Now) && class_of(block).is_none());
        }
        assert_eq!((usage().out, usage().used), (0, used));
        let (start, last) = (MEMORY.0.get().addr(), class_of_bin(bin(SMALL_MAX - 1).unwrap()));
        assert!(
            !free(start + BYTES, last, Seen::Now)
                && !free(start - SMALL_MAX, last, Seen::Now)
                && allocate(&Options::new(), last).is_none()
        );
    }
}
