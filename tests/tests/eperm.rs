//! A sandbox answers rseq with EPERM, to the C library and to us: thread arenas, with that reason in the mode.

use alloc_core::{Mode, RseqAlloc};
use integration::configuration::{Configuration, execute_with_rseq_answering, expect_arenas, libc_registers};
use integration::harness::Check;

integration::configuration!(
    RseqAlloc::new(),
    Configuration {
        name: "eperm",
        enter: || execute_with_rseq_answering(libc::EPERM),
        promise,
        // Another reason for the same arenas as in the test `enosys`, which runs the rest.
        body: &[integration::body::THREADS, integration::body::PROCESS],
        checks: &[Check::new("libc_could_not_register", libc_could_not_register)],
    }
);

fn promise(mode: &Mode) -> Result<(), String> {
    expect_arenas(mode, "EPERM")
}

/// The configuration is what it claims: the C library's own registration failed.
fn libc_could_not_register() {
    assert!(!libc_registers(), "the filter was there before the C library");
}
