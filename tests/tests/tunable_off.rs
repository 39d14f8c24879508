//! The C library does not register: rseq-sys registers every thread itself, with the kernel's whole feature size.

use alloc_core::{Mode, RseqAlloc};
use integration::configuration::{
    Configuration, best_index, execute_with, expect_arenas, expect_index, libc_registers, why_no_index,
};
use integration::harness::Check;

integration::configuration!(
    RseqAlloc::new(),
    Configuration {
        name: "tunable_off",
        enter: || execute_with("GLIBC_TUNABLES", "glibc.pthread.rseq=0"),
        promise,
        body: integration::body::ALL,
        checks: &[Check::new("libc_does_not_register", libc_does_not_register)],
    }
);

fn promise(mode: &Mode) -> Result<(), String> {
    match best_index() {
        Some(index) => expect_index(mode, index, "registered by ourselves"),
        None => expect_arenas(mode, why_no_index()),
    }
}

/// The configuration is what it claims: the C library reports no registration.
fn libc_does_not_register() {
    assert!(!libc_registers(), "the tunable is in force");
}
