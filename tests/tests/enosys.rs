//! A sandbox answers rseq with ENOSYS, to the C library and to us: thread arenas, with that reason in the mode.

use alloc_core::{Mode, RseqAlloc};
use integration::configuration::{Configuration, execute_with_rseq_answering, expect_arenas, libc_registers};
use integration::harness::Check;

integration::configuration!(
    RseqAlloc::new(),
    Configuration {
        name: "enosys",
        enter: || execute_with_rseq_answering(libc::ENOSYS),
        promise,
        body: integration::body::ALL,
        checks: &[Check::new("libc_could_not_register", libc_could_not_register)],
    }
);

fn promise(mode: &Mode) -> Result<(), String> {
    expect_arenas(mode, "ENOSYS")
}

/// The configuration is what it claims: the C library's own registration failed.
fn libc_could_not_register() {
    assert!(!libc_registers(), "the filter was there before the C library");
}
