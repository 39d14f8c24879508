//! Runs a loop with constant layouts on the allocator of this build. With fat LTO an allocator in Rust is then part of
//! the loop.

use std::process::ExitCode;

use bench_child::{ALLOCATOR, Allocator, describe};
use bench_workloads::child;

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() -> ExitCode {
    child::main_of_loops(describe)
}
