//! Shared parts of the integration tests.
//!
//! Every binary below `tests/` is one configuration of the allocator or one kind of attack on it. The configurations
//! all run the same [`body`] of checks; what differs is how the process is brought into its configuration and which
//! mode the allocator must report there ([`configuration`]).
//!
//! The tests see the allocator from outside only: through `GlobalAlloc`, `stats()`, `mode()`, `purge()`, its exit
//! status and what it writes to file descriptor 2. Nothing here reaches into a layer.
//!
//! | module | holds |
//! |---|---|
//! | [`harness`] | runs checks, stops hung ones, prints `N passed, N failed` |
//! | [`child`] | the process itself again, or a fork of it, with a time limit |
//! | [`configuration`] | one allocator configuration as a test binary |
//! | [`body`] | the checks that all configurations share |
//! | [`disturb`] | timers that signal threads, and the CPUs to move them to |
//! | [`pattern`] | contents derived from address and owner, and their verification |
//! | [`report`] | last words that need no allocator |
//! | [`scenes`] | what is played in a process of its own, with options in the environment |
//! | [`resident`] | bytes of resident memory, read without allocating |
//! | [`random`] | a small generator, seeded per test |
//! | [`touched`] | blocks of the global allocator whose pages are resident |

pub mod body;
pub mod child;
pub mod configuration;
pub mod disturb;
pub mod harness;
pub mod pattern;
pub mod random;
pub mod report;
pub mod resident;
pub mod scenes;
pub mod touched;
