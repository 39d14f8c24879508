//! Buffers that grow by `realloc` from 64 KiB to megabytes, again and again. Promise: from the third on they do not move
//! after their first step; a block that left its span for that serves its class like any other when it is freed by its
//! size, is zero where that is asked for, and is in the books until it is given back.
//!
//! The process runs on the system's allocator and uses ours beside it, so that the books can be compared to the byte.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;

use alloc_core::RseqAlloc;
use integration::harness::{self, Check};
use integration::pattern;

static HEAP: RseqAlloc = RseqAlloc::new();

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const STEP: usize = 64 * KIB;

fn main() -> ExitCode {
    harness::main(&[&[
        Check::new("buffers_move_once", buffers_move_once),
        Check::new("shrinking_and_growing_keep_contents", shrinking_and_growing_keep_contents),
        Check::new("threads_hand_them_on", threads_hand_them_on),
        Check::new("freed_by_size_they_serve_their_class", freed_by_size_they_serve_their_class),
    ]])
}

/// A live block with the pattern of its tag in it.
struct Buffer {
    at: *mut u8,
    layout: Layout,
    tag: u64,
}

// SAFETY: the block belongs to whoever has the buffer.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(size: usize, align: usize, tag: u64) -> Self {
        let layout = Layout::from_size_align(size, align).expect("a valid layout");
        // SAFETY: the size is not zero.
        Self::filled(unsafe { HEAP.alloc(layout) }, layout, tag)
    }

    fn zeroed(size: usize, tag: u64) -> Self {
        let layout = Layout::from_size_align(size, 8).expect("a valid layout");
        // SAFETY: the size is not zero.
        let at = unsafe { HEAP.alloc_zeroed(layout) };
        // SAFETY: a block of that size.
        assert_eq!(unsafe { pattern::first_nonzero(at, size) }, None, "{size} bytes at {at:p} are not zero");
        Self::filled(at, layout, tag)
    }

    fn filled(at: *mut u8, layout: Layout, tag: u64) -> Self {
        assert!(!at.is_null(), "{layout:?} is refused");
        assert_eq!(at as usize % layout.align(), 0, "{at:p} is not aligned for {layout:?}");
        // SAFETY: a block of that size.
        unsafe { pattern::fill(at, layout.size(), tag) };
        Self { at, layout, tag }
    }

    fn resize(&mut self, size: usize) {
        let (old, origin) = (self.layout, self.at as usize);
        // SAFETY: a live block, and the size is not zero.
        let at = unsafe { HEAP.realloc(self.at, old, size) };
        // SAFETY: both sizes are within their blocks.
        let kept = unsafe { pattern::verify_moved(at, origin, old.size().min(size), old.size(), self.tag) };
        assert_eq!(kept, Ok(()), "from {old:?} at {origin:#x} to {size} bytes at {at:p}");
        let layout = Layout::from_size_align(size, old.align()).expect("a valid layout");
        *self = Self::filled(at, layout, self.tag + 1);
    }

    fn verify(&self) {
        // SAFETY: a live block, filled with this tag.
        let verdict = unsafe { pattern::verify(self.at, self.layout.size(), self.tag) };
        assert_eq!(verdict, Ok(()), "{:?} at {:p} changed", self.layout, self.at);
    }

    fn free(self) {
        self.verify();
        // SAFETY: given up.
        unsafe { HEAP.dealloc(self.at, self.layout) };
    }
}

/// Grows a buffer in steps up to `size`; returns it and how often it moved, the first step apart.
fn grown(size: usize, tag: u64) -> (Buffer, usize) {
    let mut buffer = Buffer::new(STEP, 8, tag);
    let mut moves = 0;
    while buffer.layout.size() < size {
        let (before, first) = (buffer.at, buffer.layout.size() == STEP);
        buffer.resize(buffer.layout.size() + STEP);
        moves += usize::from(buffer.at != before && !first);
    }
    (buffer, moves)
}

/// Teaches the allocator that buffers grow, and leaves it with room for them.
fn teach() {
    for round in 0..3 {
        grown(4 * MIB, round).0.free();
    }
}

fn buffers_move_once() {
    teach();
    for round in 0..20 {
        let (buffer, moves) = grown(4 * MIB, round);
        assert_eq!(moves, 0, "round {round}");
        buffer.free();
    }
    alloc_core::purge();
    // Without anything that is kept they do, and nothing else changes.
    let (buffer, moves) = grown(4 * MIB, 1);
    assert!(moves > 0, "there was nothing to grow into");
    buffer.free();
}

/// Keeps the process on this CPU, so that what was freed last is what comes next.
fn stay_here() {
    // SAFETY: a valid set of CPUs; without it the test is about another CPU's cache now and then, and fails.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).expect("a CPU"), &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

fn freed_by_size_they_serve_their_class() {
    stay_here();
    // While memory waits to go back, calls as rare as these would go past the magazines.
    alloc_core::c::set_options(b"decay=never").expect("an option");
    alloc_core::purge();
    let baseline = alloc_core::stats().allocated;
    for size in [128, 192, 256, 320, 512, 640, 768, 1024].map(|kib| kib * KIB) {
        for (round, zeroed) in [(0, false), (1, true)] {
            teach();
            // Not the whole size of the class; what comes next from there asks for all of it.
            let (mut buffer, _) = grown(size - STEP / 2, 1);
            buffer.resize(size - 100);
            let at = buffer.at;
            assert_eq!(at as usize % MIB, 0, "{size}: it did not leave its span");
            buffer.free();
            let align = size & size.wrapping_neg();
            let blocks: Vec<Buffer> = (0..6)
                .map(|index| if zeroed { Buffer::zeroed(size, index) } else { Buffer::new(size, align, index) })
                .collect();
            assert!(blocks.iter().any(|block| block.at == at), "{size}: it was freed last and comes first");
            blocks.into_iter().for_each(Buffer::free);
            if round == 1 {
                alloc_core::purge();
                let stats = alloc_core::stats();
                assert_eq!((stats.allocated, stats.large_mappings), (baseline, 0), "{size}: {stats}");
            }
        }
    }
    alloc_core::c::set_options(b"decay=10000").expect("an option");
}

fn shrinking_and_growing_keep_contents() {
    teach();
    for tag in 0..50 {
        let (mut buffer, _) = grown(128 * KIB + tag as usize % 3 * STEP, tag);
        for size in [512, 100, 900, 1025, 3000, 1024, 300, 70, 200, 40, 260].map(|kib| kib * KIB) {
            buffer.resize(size);
        }
        buffer.free();
    }
    alloc_core::purge();
}

/// Some threads grow buffers to all sizes, others free them by these sizes or go on growing them.
fn threads_hand_them_on() {
    let baseline = alloc_core::stats().allocated;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (sender, receiver) = std::sync::mpsc::channel::<Buffer>();
            scope.spawn(move || {
                for round in 0..200 {
                    let (mut buffer, _) =
                        grown((2 + (round * 7 + thread as usize) % 20) * STEP, thread << 32 | round as u64);
                    if round % 5 == 0 {
                        buffer.resize(buffer.layout.size() + 2 * MIB);
                    }
                    sender.send(buffer).expect("the other thread is there");
                }
            });
            scope.spawn(move || {
                let mut held = Vec::new();
                for (index, mut buffer) in receiver.into_iter().enumerate() {
                    if index % 3 == 0 {
                        buffer.resize(buffer.layout.size() * 2);
                    }
                    held.push(buffer);
                    if held.len() > 4 {
                        held.swap_remove(index % 4).free();
                    }
                    if index % 50 == 0 {
                        alloc_core::purge();
                    }
                }
                held.into_iter().for_each(Buffer::free);
            });
        }
    });
    alloc_core::purge();
    let stats = alloc_core::stats();
    assert_eq!((stats.allocated, stats.large_mappings), (baseline, 0), "{stats}");
}
