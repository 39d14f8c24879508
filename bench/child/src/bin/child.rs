//! Runs a loop or a workload on the allocator of this build.

use std::process::ExitCode;

use bench_child::{ALLOCATOR, Allocator, describe};
use bench_workloads::child::{self, Extra};

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() -> ExitCode {
    child::main(Extra::None, describe)
}
