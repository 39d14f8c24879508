//! The checks that every configuration runs.
//!
//! They go through `std::alloc` and the standard collections, as a program does. Where a check calls the allocation
//! functions directly, the pointer goes through `black_box`: the compiler may otherwise remove a pair of `alloc` and
//! `dealloc` whose block nobody looks at.

mod blocks;
mod memory_limit;
mod process;
mod threads;

use std::process::ExitCode;

use crate::harness::Check;

pub use process::before_main;
pub use threads::{churn_collections, churn_patterned};

/// All shared checks, in the order in which they run. A configuration that differs from another in part of what they can
/// see runs those parts.
pub const ALL: &[&[Check]] = &[BLOCKS, THREADS, PROCESS, MEMORY];

/// One block after the other.
pub const BLOCKS: &[Check] = &[
    Check::new("every_size", blocks::every_size_is_usable),
    Check::new("alignments", blocks::alignments_hold),
    Check::new("alloc_zeroed", blocks::zeroed_blocks_are_zero),
    Check::new("realloc_random", blocks::realloc_preserves_contents),
    Check::new("realloc_steps", blocks::realloc_in_small_steps_preserves_contents),
    Check::new("huge_sizes", blocks::huge_sizes_return_null),
    Check::new("large_blocks", blocks::large_blocks_are_apart),
];

/// Many threads, and blocks that go from one to another.
pub const THREADS: &[Check] = &[
    Check::new("collections", threads::collections_survive_churn),
    Check::new("cross_thread_free", threads::blocks_are_freed_by_other_threads),
    Check::new("thread_churn", threads::short_lived_threads_leave_blocks_behind),
    Check::new("tls_destructors", threads::tls_destructors_allocate),
];

/// What else a process does.
pub const PROCESS: &[Check] = &[
    Check::new("before_main", process::allocations_before_main_survive),
    Check::new("signals", process::signals_do_no_harm),
    Check::new("fork", process::a_forked_child_allocates),
    Check::new("unregistered_threads", process::unregistered_threads_allocate),
    Check::new("statistics", process::statistics_need_no_memory),
];

/// Memory that runs out.
pub const MEMORY: &[Check] = &[
    Check::new("memory_limit", memory_limit::exhausted_memory_returns_null_and_recovers),
    Check::new("memory_limit_large", memory_limit::large_blocks_are_refused_without_harm),
];

/// Plays the part of a re-executed child.
pub fn play(role: &str) -> ExitCode {
    match role {
        memory_limit::ROLE => memory_limit::child(),
        memory_limit::ROLE_LARGE => memory_limit::child_large(),
        _ => {
            eprintln!("no such role: {role}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
