//! The parked threads of `bench::parked` on snmalloc.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

fn main() -> ExitCode {
    bench::parked::child()
}
