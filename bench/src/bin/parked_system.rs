//! The parked threads of `bench::parked` on the C library's malloc.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() -> ExitCode {
    bench::parked::child()
}
