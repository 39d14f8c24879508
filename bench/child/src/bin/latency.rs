//! Runs a workload on the allocator of this build and reads the clock around every call.

use std::process::ExitCode;

use bench_child::{ALLOCATOR, Allocator, describe};
use bench_workloads::child::{self, Extra};
use bench_workloads::latency::Timed;

#[global_allocator]
static GLOBAL: Timed<Allocator> = Timed(ALLOCATOR);

fn main() -> ExitCode {
    child::main(Extra::Latency, describe)
}
