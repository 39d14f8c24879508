//! Runs a workload on the allocator of this build and counts the bytes that are live.

use std::process::ExitCode;

use bench_child::{ALLOCATOR, Allocator, describe};
use bench_workloads::child::{self, Extra};
use bench_workloads::live::Counted;

#[global_allocator]
static GLOBAL: Counted<Allocator> = Counted(ALLOCATOR);

fn main() -> ExitCode {
    child::main(Extra::Live, describe)
}
