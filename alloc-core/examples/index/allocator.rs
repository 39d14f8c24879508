//! The choice between two allocators in one program.
//!
//! A block must be freed by the allocator it came from, so the choice has to stand before the first allocation and
//! never change. Rust's runtime allocates before `main`, which is too early for ordinary argument parsing. Functions
//! listed in `.init_array` run before that; one of them reads the command line from `/proc/self/cmdline` with plain
//! system calls and a buffer on its stack, and sets a flag. Afterwards every allocation pays one load and one branch
//! that always goes the same way. `main` compares the flag with what clap understood, so the two readings cannot part
//! unnoticed.
//!
//! A program that needs no such choice declares `alloc_core::RseqAlloc` itself as its global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use alloc_core::RseqAlloc;
use clap::ValueEnum;

/// An allocator this example can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// alloc-core's, with its caches per vCPU
    Rseq,
    /// The C library's
    System,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Choice::Rseq => "rseq",
            Choice::System => "system",
        })
    }
}

/// Set by [`choose`] before the first allocation, and never again.
static USE_SYSTEM: AtomicBool = AtomicBool::new(false);

/// A global allocator that passes every call on to the chosen one.
pub(crate) struct Chosen {
    rseq: RseqAlloc,
}

impl Chosen {
    pub(crate) const fn new() -> Self {
        Chosen { rseq: RseqAlloc::new() }
    }

    /// The allocator that this process runs on.
    pub(crate) fn in_use(&self) -> Choice {
        if use_system() { Choice::System } else { Choice::Rseq }
    }
}

#[inline]
fn use_system() -> bool {
    // Relaxed: written once, before any other thread exists.
    USE_SYSTEM.load(Ordering::Relaxed)
}

// SAFETY: each method passes its arguments unchanged to one of two allocators that keep this contract, and because
// `use_system` never changes after the first allocation, blocks return to the allocator they came from.
unsafe impl GlobalAlloc for Chosen {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this method, which is that of both callees.
        unsafe { if use_system() { System.alloc(layout) } else { self.rseq.alloc(layout) } }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { if use_system() { System.dealloc(block, layout) } else { self.rseq.dealloc(block, layout) } }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { if use_system() { System.alloc_zeroed(layout) } else { self.rseq.alloc_zeroed(layout) } }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            if use_system() { System.realloc(block, layout, size) } else { self.rseq.realloc(block, layout, size) }
        }
    }
}

/// Makes the dynamic loader (or, linked statically, the C library's start code) call [`choose`] before `main`.
#[used]
// SAFETY: the section holds pointers to functions that follow the C calling convention and take up to three arguments
// that they may ignore; `choose` is one.
#[unsafe(link_section = ".init_array")]
static CHOOSE: extern "C" fn() = choose;

/// Longer than any command line that this program understands before its first directory; what comes after that is not
/// looked at, and `main` notices if it should have been.
const COMMAND_LINE: usize = 4096;

extern "C" fn choose() {
    let mut buffer = [0_u8; COMMAND_LINE];
    // SAFETY: the path is a C string; the descriptor is used and closed only here; `read` gets the buffer's own length.
    let length = unsafe {
        let file = libc::open(c"/proc/self/cmdline".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return;
        }
        let length = libc::read(file, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(file);
        length
    };
    let read = buffer.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    if says_system(read) {
        USE_SYSTEM.store(true, Ordering::Relaxed);
    }
}

/// Whether a command line, its arguments ended by zero bytes, says `--allocator system`.
fn says_system(command_line: &[u8]) -> bool {
    let mut arguments = command_line.split(|&byte| byte == 0).skip(1);
    while let Some(argument) = arguments.next() {
        match argument {
            b"--" => return false,
            b"--allocator=system" => return true,
            b"--allocator" => return arguments.next() == Some(b"system"),
            _ => {}
        }
    }
    false
}
