//! Out of memory: null, no harm, and full recovery once blocks were freed.
//!
//! The limit on address space is set before a child is executed, so the allocator meets it at its set-up and has to
//! reserve less than it would like.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use crate::{child, configuration, pattern};

/// The parts of the limited child.
pub(super) const ROLE: &str = "memory_limit";
pub(super) const ROLE_LARGE: &str = "memory_limit_large";

const MIB: usize = 1 << 20;

/// Address space of the child; the binary, its libraries and stacks need some 20 MiB.
const LIMIT: usize = 400 * MIB;

/// Promise: under RLIMIT_AS an exhausted allocator returns null, and what was freed in one size serves another.
pub(super) fn exhausted_memory_returns_null_and_recovers() {
    run(ROLE);
}

/// Promise: also from blocks of the page heap to blocks with mappings of their own.
pub(super) fn memory_of_small_blocks_serves_large_ones() {
    run(ROLE_LARGE);
}

fn run(role: &str) {
    let mut command = child::again();
    command.env(configuration::ROLE, role);
    // SAFETY: setrlimit is a plain system call.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: LIMIT as u64, rlim_max: LIMIT as u64 };
            if libc::setrlimit(libc::RLIMIT_AS, &raw const limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        })
    };
    let finished = child::run(&mut command, Duration::from_secs(60));
    finished.expect_success("the child with limited address space");
}

/// Blocks in a list that runs through the blocks themselves: keeping books must not allocate.
struct Chain {
    first: *mut u8,
    layout: Layout,
    count: usize,
}

impl Chain {
    /// As many blocks as there are, at most `most`.
    fn exhaust(layout: Layout, most: usize) -> Self {
        let mut chain = Self { first: std::ptr::null_mut(), layout, count: 0 };
        while chain.count < most {
            // SAFETY: the size is not zero.
            let at = black_box(unsafe { alloc(layout) });
            if at.is_null() {
                break;
            }
            // SAFETY: a fresh block of at least 16 bytes; its other words prove below that it is nobody else's.
            unsafe { pattern::fill(at, layout.size().min(64), 3) };
            // SAFETY: as above.
            unsafe { at.cast::<*mut u8>().write(chain.first) };
            chain.first = at;
            chain.count += 1;
        }
        chain
    }

    fn bytes(&self) -> usize {
        self.count * self.layout.size()
    }

    fn free(self) {
        let mut at = self.first;
        while !at.is_null() {
            // SAFETY: a live block whose first word leads to the next one.
            let next = unsafe { at.cast::<*mut u8>().read() };
            // SAFETY: the first word is overwritten as `fill` had left it, then all of them are compared.
            unsafe { pattern::fill(at, 8, 3) };
            // SAFETY: a live block.
            if let Err(mismatch) = unsafe { pattern::verify(at, self.layout.size().min(64), 3) } {
                crate::die!("block {at:p} of {:?} changed: {mismatch}", self.layout);
            }
            // SAFETY: given up here.
            unsafe { dealloc(at, self.layout) };
            at = next;
        }
    }
}

/// Uses all memory up in blocks of one size, sees that nothing more is granted, and frees it again.
fn exhaust_and_free(size: usize) {
    let layout = Layout::from_size_align(size, 16).expect("a valid layout");
    let chain = Chain::exhaust(layout, LIMIT / size + 1);
    assert!(chain.bytes() < LIMIT, "{size}: {} bytes were granted, the limit was not felt", chain.bytes());
    // Whatever was used for other sizes before has come back: the larger part of the limit is usable each time.
    assert!(chain.bytes() > LIMIT / 2, "blocks of {size} bytes: only {} bytes in all were granted", chain.bytes());
    // SAFETY: the size is not zero.
    let zeroed = black_box(unsafe { alloc_zeroed(Layout::from_size_align(LIMIT / 2, 16).expect("a layout")) });
    assert!(zeroed.is_null(), "half of the limit is granted when nothing is left");
    // SAFETY: the first block lives; on refusal it stays as it was.
    let grown = black_box(unsafe { realloc(chain.first, layout, LIMIT / 2) });
    assert!(grown.is_null(), "a block grows to half of the limit when nothing is left");
    chain.free();
}

/// The child's part of the second check.
pub(super) fn child_large() {
    for size in [64, 3 * MIB, 4096, 40 * MIB] {
        exhaust_and_free(size);
    }
}

/// The child's part of the first check.
pub(super) fn child() {
    configuration::still_promised();
    // The threads start before memory ends, and wait.
    let barrier = std::sync::Barrier::new(5);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for round in 0..3 {
                    let size = [48, 1000, 70 << 10, 600 << 10][(thread + round) % 4];
                    let layout = Layout::from_size_align(size, 16).expect("a valid layout");
                    Chain::exhaust(layout, LIMIT / size + 1).free();
                }
            });
        }
        for size in [3 * MIB, 40 * MIB, 64, 4096, 100 << 10, 900 << 10, 24, 300 << 10] {
            exhaust_and_free(size);
        }
        // Now all of them run out at the same time and recover.
        barrier.wait();
    });
    exhaust_and_free(1000);
}
