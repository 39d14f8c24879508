//! A thread that allocates, verifies and frees, straight through the methods of `GlobalAlloc`.
//!
//! What all threads do changes every 20 ms, so that each shape meets each kind of interruption:
//!
//! | shape | sizes | what it presses on |
//! |---|---|---|
//! | mixed | 8 bytes to 32 KiB, small ones much more likely | everything a little |
//! | few | two sizes, the same in all threads | pop and push of one magazine by all threads of a vCPU |
//! | bursts | one size, hundreds of blocks up and down | exchange of magazines, depot, refills and flushes |

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::Ordering;
use std::time::Duration;

use integration::random::Random;
use integration::{die, pattern};

use crate::signals::Sequences;
use crate::{GLOBAL, Shared, pinning, signals};

/// A live block, with what is known about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    at: *mut u8,
    size: u32,
    align: u32,
    /// Owner in the upper 16 bits, number of the allocation below.
    tag: u64,
}

/// Set in the tag of the first word when a block is freed.
const FREED: u64 = 1 << 63;

impl Block {
    const fn layout(&self) -> Layout {
        // SAFETY: alignments are powers of two up to 4096 and sizes at most 32 KiB.
        unsafe { Layout::from_size_align_unchecked(self.size as usize, self.align as usize) }
    }

    /// Ends the process if the first `len` bytes are not what the block was filled with at `origin`.
    #[inline]
    fn verify(&self, at: *mut u8, len: usize, doing: &str) {
        // SAFETY: a live block of at least `len` bytes.
        let verdict = unsafe { pattern::verify_moved(at, self.at as usize, len, self.size as usize, self.tag) };
        if let Err(mismatch) = verdict {
            self.corrupted(at, mismatch, doing);
        }
    }

    #[cold]
    #[inline(never)]
    fn corrupted(&self, at: *mut u8, mismatch: pattern::Mismatch, doing: &str) -> ! {
        // The words differ in their tags only, if another owner of the same memory has written the one found.
        let other = self.tag ^ mismatch.expected ^ mismatch.found;
        let (freed, owner, number) = (other & FREED != 0, (other & !FREED) >> 48, other & ((1 << 48) - 1));
        die!(
            "stress: CORRUPTED while {doing}: block {at:p} of {} bytes, allocation {} of thread {}: {mismatch}; \
             as a tag the word found says {}: allocation {number} of thread {owner}",
            self.size,
            self.tag & ((1 << 48) - 1),
            self.tag >> 48,
            if freed { "freed" } else { "in use" },
        )
    }

    /// Verifies the block, marks it as freed for whoever else believes to own it, and gives it back.
    #[inline]
    pub(crate) fn free(self) {
        self.verify(self.at, self.size as usize, "freeing");
        // SAFETY: a live block of at least eight bytes.
        unsafe { pattern::fill(self.at, 8, self.tag | FREED) };
        // SAFETY: given up here.
        unsafe { GLOBAL.dealloc(self.at, self.layout()) };
    }
}

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs all the time.
    Busy,
    /// Sleeps until its timer fires, does a few operations, sleeps again, with real-time priority if that is allowed:
    /// so it preempts whatever runs on its CPU and uses the same shard before that goes on.
    Interrupting,
}

/// Two sizes per phase for the shape `few`; a hunt keeps to the first ones.
const FEW: [[u32; 2]; 8] =
    [[64, 64], [48, 64], [16, 16], [8, 24], [256, 1024], [96, 64], [4096, 512], [32 << 10, 8 << 10]];

struct Worker<'a> {
    shared: &'a Shared,
    sequences: &'a Sequences,
    random: Random,
    tag: u64,
    slots: Vec<Option<Block>>,
    handed_over: u64,
}

/// The life of one thread.
pub(crate) fn run(index: usize, kind: Kind, shared: &Shared, sequences: &Sequences, period: Duration) {
    let mut worker = Worker {
        shared,
        sequences,
        random: Random::from_environment(index as u64),
        tag: (index as u64) << 48,
        slots: vec![None; if kind == Kind::Busy { 256 } else { 64 }],
        handed_over: 0,
    };
    if kind == Kind::Interrupting {
        pinning::preempt_others(1);
    }
    pinning::enrol(index);
    let timer = signals::timer(index, period);
    while !shared.stop.load(Ordering::Relaxed) {
        let phase = shared.phase.load(Ordering::Relaxed);
        let operations = match kind {
            Kind::Busy => worker.some_operations(phase),
            Kind::Interrupting => {
                // A signal of the thread's own timer ends the sleep.
                let long = libc::timespec { tv_sec: 1, tv_nsec: 0 };
                // SAFETY: the time is valid.
                unsafe { libc::nanosleep(&raw const long, std::ptr::null_mut()) };
                worker.few_operations(phase, 24)
            }
        };
        shared.operations.fetch_add(operations, Ordering::Relaxed);
        shared.steps[index].fetch_add(1, Ordering::Relaxed);
    }
    drop(timer);
    for block in worker.slots.drain(..).flatten() {
        block.free();
    }
    shared.handed_over.fetch_add(worker.handed_over, Ordering::Relaxed);
    pinning::leave(index);
    shared.end.wait();
}

impl Worker<'_> {
    fn some_operations(&mut self, phase: u32) -> u64 {
        self.sequences.count_inline();
        match (phase % 4, self.shared.hunt) {
            (0, false) => self.mixed_operations(512),
            (1, _) => self.burst(phase),
            (0, true) => self.burst(phase),
            _ => self.few_operations(phase, 512),
        }
    }

    fn mixed_operations(&mut self, count: u64) -> u64 {
        for _ in 0..count {
            let choice = self.random.word();
            let size = match choice & 63 {
                0..40 => 8 + (choice >> 8) % 249,
                40..58 => 256 + (choice >> 8) % 1793,
                _ => 2048 + (choice >> 8) % (30 * 1024 + 1),
            } as u32;
            let align = match choice >> 58 {
                0 => 64,
                1 => 4096,
                2..8 => 16,
                _ => 8,
            };
            self.operation(size, align);
        }
        count
    }

    fn few_operations(&mut self, phase: u32, count: u64) -> u64 {
        let sizes = FEW[(phase / 4) as usize % if self.shared.hunt { 3 } else { FEW.len() }];
        for _ in 0..count {
            let size = sizes[(self.random.word() >> 63) as usize];
            self.operation(size, 8);
        }
        count
    }

    /// One operation on a random slot.
    #[inline]
    fn operation(&mut self, size: u32, align: u32) {
        let choice = self.random.word();
        let slot = (choice >> 32) as usize % self.slots.len();
        let Some(block) = self.slots[slot].take() else {
            self.slots[slot] = Some(self.allocate(size, align, choice & 7 == 0));
            return;
        };
        match choice & 15 {
            0 | 1 => self.slots[slot] = Some(self.reallocate(block, size)),
            2 | 3 => {
                self.handed_over += 1;
                self.slots[slot] = self.shared.ring.exchange(block);
            }
            _ => block.free(),
        }
    }

    /// Fills all slots with blocks of one size and empties them again, in the same or in the opposite order.
    fn burst(&mut self, phase: u32) -> u64 {
        let size = FEW[(phase / 4) as usize % if self.shared.hunt { 3 } else { FEW.len() - 2 }][0];
        let mut operations = 0;
        let length = self.slots.len();
        for slot in 0..length {
            if let Some(block) = self.slots[slot].take() {
                block.free();
                operations += 1;
            }
            self.slots[slot] = Some(self.allocate(size, 8, false));
            operations += 1;
        }
        let backwards = self.random.word() >> 63 == 0;
        for slot in 0..length {
            let slot = if backwards { length - 1 - slot } else { slot };
            if let Some(block) = self.slots[slot].take() {
                block.free();
                operations += 1;
            }
        }
        operations
    }

    #[inline]
    fn allocate(&mut self, size: u32, align: u32, zeroed: bool) -> Block {
        self.tag += 1;
        let mut block = Block { at: std::ptr::null_mut(), size, align, tag: self.tag };
        let layout = block.layout();
        // SAFETY: the size is not zero.
        block.at = unsafe { if zeroed { GLOBAL.alloc_zeroed(layout) } else { GLOBAL.alloc(layout) } };
        if block.at.is_null() || !(block.at as usize).is_multiple_of(align as usize) {
            die!("stress: {:p} for {size} bytes aligned to {align}", block.at);
        }
        if zeroed {
            // SAFETY: a fresh block of that size.
            if let Some(offset) = unsafe { pattern::first_nonzero(block.at, size as usize) } {
                die!("stress: CORRUPTED: {:p} of {size} bytes is not zero at offset {offset}", block.at);
            }
        }
        // SAFETY: as above.
        unsafe { pattern::fill(block.at, size as usize, block.tag) };
        block
    }

    #[inline]
    fn reallocate(&mut self, block: Block, size: u32) -> Block {
        block.verify(block.at, block.size as usize, "reallocating");
        // SAFETY: the block lives, the size is not zero.
        let at = unsafe { GLOBAL.realloc(block.at, block.layout(), size as usize) };
        if at.is_null() || !(at as usize).is_multiple_of(block.align as usize) {
            die!("stress: realloc of {:p} to {size} bytes aligned to {} gave {at:p}", block.at, block.align);
        }
        block.verify(at, block.size.min(size) as usize, "looking at what realloc kept");
        self.tag += 1;
        // SAFETY: the new block has that size.
        unsafe { pattern::fill(at, size as usize, self.tag) };
        Block { at, size, align: block.align, tag: self.tag }
    }
}
