//! The parked threads of `bench::parked` on alloc-core.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: alloc_core::RseqAlloc = alloc_core::RseqAlloc::new();

fn main() -> ExitCode {
    bench::parked::child()
}
