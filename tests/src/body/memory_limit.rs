//! Out of memory: null, no harm, and full recovery once blocks were freed.
//!
//! The limit on address space is set before a child is executed, so the allocator meets it at its set-up and has to
//! reserve less than it would like.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use crate::{child, configuration, die, pattern};

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

/// Promise: address space once used for small blocks stays theirs (regions of the page heap are never given back), so
/// that a large block may be refused afterwards; the refusal is a null and costs the small blocks nothing.
pub(super) fn large_blocks_are_refused_without_harm() {
    run(ROLE_LARGE);
}

fn run(role: &str) {
    let mut command = child::again();
    // The C library's own malloc, which it uses for thread-local storage, would reserve 64 MiB per thread
    // (https://man7.org/linux/man-pages/man3/mallopt.3.html).
    command.env(configuration::ROLE, role).env("MALLOC_ARENA_MAX", "1");
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
                die!("block {at:p} of {:?} changed: {mismatch}", self.layout);
            }
            // SAFETY: given up here.
            unsafe { dealloc(at, self.layout) };
            at = next;
        }
    }
}

/// Uses all memory up in blocks of one size, at least `least` bytes, sees that nothing more is granted, and frees it.
///
/// What is wrong ends the process at once: threads may be waiting for this one.
fn exhaust_and_free(size: usize, least: usize) {
    let layout = Layout::from_size_align(size, 16).expect("a valid layout");
    let chain = Chain::exhaust(layout, LIMIT / size + 1);
    if chain.bytes() >= LIMIT {
        die!("blocks of {size} bytes: {} bytes were granted, the limit was not felt", chain.bytes());
    }
    if chain.bytes() < least {
        die!("blocks of {size} bytes: only {} bytes in all were granted, expected {least}", chain.bytes());
    }
    let half = Layout::from_size_align(LIMIT / 2, 16).expect("a valid layout");
    // SAFETY: the size is not zero.
    if !black_box(unsafe { alloc_zeroed(half) }).is_null() {
        die!("half of the limit is granted when nothing is left");
    }
    // SAFETY: the first block lives; on refusal it stays as it was.
    if !black_box(unsafe { realloc(chain.first, layout, LIMIT / 2) }).is_null() {
        die!("a block grows to half of the limit when nothing is left");
    }
    let bytes = chain.bytes();
    chain.free();
    println!("blocks of {size} bytes: {} MiB were granted", bytes / MIB);
}

/// The child's part of the second check.
pub(super) fn child_large() {
    exhaust_and_free(64, LIMIT / 2);
    for size in [3 * MIB, 40 * MIB] {
        let layout = Layout::from_size_align(size, 16).expect("a valid layout");
        let chain = Chain::exhaust(layout, LIMIT / size + 1);
        if chain.bytes() >= LIMIT {
            die!("blocks of {size} bytes: {} bytes were granted, the limit was not felt", chain.bytes());
        }
        chain.free();
        exhaust_and_free(4096, LIMIT / 2);
    }
}

/// The child's part of the first check.
pub(super) fn child() {
    configuration::still_promised();
    // The threads have started, which takes memory, before that ends, and wait.
    let barrier = std::sync::Barrier::new(5);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                barrier.wait();
                for round in 0..3 {
                    let size = [48, 1000, 70 << 10, 600 << 10][(thread + round) % 4];
                    let layout = Layout::from_size_align(size, 16).expect("a valid layout");
                    Chain::exhaust(layout, LIMIT / size + 1).free();
                }
            });
        }
        barrier.wait();
        for size in [3 * MIB, 40 * MIB, 64, 4096, 100 << 10, 900 << 10, 24, 300 << 10] {
            exhaust_and_free(size, LIMIT / 2);
        }
        // Now all of them run out at the same time and recover.
        barrier.wait();
    });
    exhaust_and_free(1000, LIMIT / 2);
}
