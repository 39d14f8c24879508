//! What `bench` runs on every allocator, and how a process is measured.
//!
//! | module | what it holds |
//! |---|---|
//! | [`blocks`] | sizes, orders of freeing, a block and its layout |
//! | [`subjects`] | the program's own allocator, and the stand-in that measures frames |
//! | [`loops`] | short loops on one thread or a few, called with a number of iterations |
//! | [`workloads`] | what programs do, run for a span of time; one file each |
//! | [`memory`] | what a heap costs over time: how it is given back, and what it grows to |
//! | [`crew`], [`ring`] | the frames: threads that count what they did, rings of pointers between them |
//! | [`latency`], [`live`] | wrappers of an allocator: the time of every call, the bytes that are live |
//! | [`usage`] | memory, page faults and system time, from the kernel |
//! | [`outcome`] | what a process reports: one line of JSON |
//! | [`child`] | the `main` of a program that runs one of these |
//!
//! Everything is generic over a [`GlobalAlloc`](std::alloc::GlobalAlloc), with static dispatch. In a program of its
//! own the allocator is [`subjects::Global`], which is the `#[global_allocator]` behind the call that `__rust_alloc` is.

pub mod blocks;
pub mod child;
pub mod crew;
pub mod latency;
pub mod live;
pub mod loops;
pub mod memory;
pub mod outcome;
pub mod ring;
pub mod subjects;
pub mod usage;
pub mod workloads;
