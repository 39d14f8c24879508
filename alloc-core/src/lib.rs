//! A memory allocator whose caches belong to the vCPU a thread runs on, not to the thread.
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: alloc_core::RseqAlloc = alloc_core::RseqAlloc::new();
//!
//! fn main() {
//!     let numbers: Vec<u32> = (0..1000).collect();
//!     assert_eq!(numbers.len(), 1000);
//!     println!("{}", alloc_core::mode());
//!     println!("{}", alloc_core::stats());
//! }
//! ```
//!
//! Taking or returning a block is one restartable sequence that ends in a plain store: no lock, no atomic instruction,
//! no thread identity. So a block freed by another thread costs the same, and ten thousand threads cost no more memory
//! than the CPUs they run on. Where rseq cannot be had, the same caches are used as arenas.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | block | what a request gets: memory of the size of its class |
//! | size class, class | a block size; see `size_class` |
//! | bin | an index into the tops of a shard; one or two bins share a class |
//! | magazine | an array of pointers to free blocks of one class, used as a stack |
//! | top | the address of the topmost filled slot of a magazine |
//! | header | the word of a shard that holds the top of the loaded magazine of a bin |
//! | shard | the caches of one vCPU, or of one arena: one page of headers and list heads |
//! | vCPU | what an id of rseq stands for: a concurrency id (`mm_cid`) or a CPU number (`cpu_id`) |
//! | arena | a shard of one thread, or one that is taken by lock, for threads without rseq |
//! | depot | full magazines of all classes, between the shards; one for each last-level cache |
//! | central | the spans of each class |
//! | span | a run of pages cut into blocks of one class |
//! | node | a NUMA node: memory and the CPUs near to it; each has spans and a page heap |
//! | page | 8 KiB, the unit of runs; an OS page is the operating system's |
//! | run | neighbouring pages inside a huge page |
//! | huge page | 2 MiB, aligned; the unit in which address space is made usable |
//! | large block | one with a mapping of its own, above 1 MiB |
//! | decay | giving free pages back to the operating system over some seconds, driven by calls that reach slow paths |
//! | drain | taking magazines out of a shard from another vCPU |
//!
//! # Layers, top to bottom
//!
//! `global` (the interface of Rust) and [`c`] (what a C interface is made of), `front` (which layer serves a request), `setup` (the mode),
//! `early` (the first blocks), `shard` (per-vCPU caches), `depot`, `decay`, `central`, `magazine`, `pages` and `large`, then `map` (address to page data), `meta`
//! (memory for metadata), `limit` (what is counted and refused) and `os`. Nothing imports upwards.
//!
//! # Bad frees
//!
//! What is seen by default, at no measurable cost, and then ends the process with one line on file descriptor 2:
//!
//! * A block freed twice in a row on one vCPU: at once.
//! * A second free later, or a pointer that is not the start of a block: when the magazine it is in is emptied into the
//!   spans, unless the block was handed out again before. Until then it travels unseen, and may be handed out twice.
//! * A pointer that is not this allocator's, or a block of another size class than the layout's: when the magazine is
//!   emptied, likewise. At once where the layout is that of a large block (above 1 MiB) and no large block of at least
//!   that size starts there, and where a block of 64 KiB or more is resized from one class to another.
//!
//! What is not seen: a second free of a block that was handed out again in between (it frees somebody else's
//! block), a large block freed with the layout of a smaller large one, reads and writes after a free, writes beyond a
//! block.
//!
//! # Registration
//!
//! A thread whose rseq registration was made by the C library must keep it. Under `mm_cid` the kernel leaves an id that
//! looks valid when it is taken back, and the thread would go on using a vCPU's shard without protection. Slow paths
//! notice that and close the inlined path for the whole process; they cannot undo what was done before. `index=cpu_id`
//! is immune.
//!
//! # Signals, fork, exhaustion
//!
//! Allocation in a signal handler is not promised (no more than `malloc` promises it), but a handler may interrupt an
//! allocation at any instruction. After `fork` in a process with several threads the child may allocate. Exhaustion
//! returns null, after everything free was given back and the request was tried once more. Nothing here panics.

#![no_std]

mod background;
pub mod c;
mod central;
mod decay;
mod depot;
mod early;
mod fatal;
mod fork;
mod front;
mod global;
mod large;
mod limit;
mod magazine;
mod map;
mod meta;
mod mode;
mod options;
mod os;
mod pages;
#[cfg(test)]
mod random;
mod setup;
mod shard;
mod size_class;
mod stats;

pub use global::RseqAlloc;
pub use limit::Limit;
pub use mode::Mode;
pub use options::IndexChoice;
pub use os::huge::HugePages;
#[doc(hidden)]
pub use rseq_sys;
pub use rseq_sys::IndexKind;
pub use stats::Stats;

/// What the caches belong to in this process, and why.
///
/// The first allocation that is of more than 1 KiB, or is not among the first 32 KiB of smaller ones, decides it. Called
/// before that, this decides it, with the options that the first allocation was asked for with, or the defaults if there
/// was none, and the environment.
///
/// That takes system calls that are not needed afterwards. A program that is going to filter its own, or to lose sight of
/// `/sys` and `/proc`, calls this first.
///
/// ```
/// println!("{}", alloc_core::mode());
/// ```
pub fn mode() -> Mode {
    setup::decide_if_undecided(&options::Options::new());
    setup::mode().unwrap_or(Mode { kind: mode::Kind::Arenas(mode::Reason::Undecided) })
}

/// What the allocator holds and what it did, gathered without allocation.
///
/// Takes every lock for a moment, one after the other; meant for logs and tests, not for hot paths.
///
/// ```
/// let stats = alloc_core::stats();
/// assert!(stats.allocated <= stats.resident);
/// ```
pub fn stats() -> Stats {
    stats::gather(mode())
}

/// Gives everything that is free back to the operating system, from the caches of all vCPUs down to the free pages, and
/// returns how many bytes that were.
///
/// ```
/// drop(vec![0u8; 1 << 20]);
/// alloc_core::purge();
/// ```
pub fn purge() -> usize {
    mode();
    front::purge()
}
