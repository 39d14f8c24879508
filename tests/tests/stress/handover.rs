//! A ring through which blocks change their thread.
//!
//! Whoever puts a block in takes out the one that lay there, so the ring never fills up and every block is freed by
//! somebody, mostly by another thread than allocated it. An entry is held for a few instructions only; an entry that
//! somebody holds (perhaps preempted) is skipped, so nobody waits.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::worker::Block;

const ENTRIES: usize = 512;

struct Entry {
    held: AtomicBool,
    block: UnsafeCell<Option<Block>>,
}

/// The ring.
pub(crate) struct Ring {
    next: AtomicUsize,
    entries: Box<[Entry]>,
}

// SAFETY: `block` is touched only by who has set `held`; a block is plain data about memory that any thread may use.
unsafe impl Sync for Ring {}

impl Ring {
    pub(crate) fn new() -> Self {
        let entry = || Entry { held: AtomicBool::new(false), block: UnsafeCell::new(None) };
        Self { next: AtomicUsize::new(0), entries: (0..ENTRIES).map(|_| entry()).collect() }
    }

    /// Puts a block in; the block that comes out in exchange, if one lay there.
    pub(crate) fn exchange(&self, block: Block) -> Option<Block> {
        loop {
            let entry = &self.entries[self.next.fetch_add(1, Ordering::Relaxed) % ENTRIES];
            if entry.held.swap(true, Ordering::Acquire) {
                continue;
            }
            // SAFETY: `held` was free and is ours now.
            let taken = unsafe { (*entry.block.get()).replace(block) };
            entry.held.store(false, Ordering::Release);
            return taken;
        }
    }

    /// Gives every block that is left to `free`. Only when no thread uses the ring any more.
    pub(crate) fn drain(&self, mut free: impl FnMut(Block)) {
        for entry in &self.entries {
            assert!(!entry.held.swap(true, Ordering::Acquire), "a thread still holds an entry of the ring");
            // SAFETY: as above.
            if let Some(block) = unsafe { (*entry.block.get()).take() } {
                free(block);
            }
            entry.held.store(false, Ordering::Release);
        }
    }
}
