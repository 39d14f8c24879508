//! The CPU number as index, asked for by the builder.

use alloc_core::{IndexChoice, IndexKind, Mode, RseqAlloc};
use integration::configuration::{
    Configuration, best_index, expect_arenas, expect_index, libc_registers, why_no_index,
};

integration::configuration!(
    RseqAlloc::new().index(IndexChoice::CpuId),
    Configuration { name: "cpu_id", enter: || (), promise, body: integration::body::ALL, checks: &[] }
);

fn promise(mode: &Mode) -> Result<(), String> {
    let registrar = if libc_registers() { "registered by libc" } else { "registered by ourselves" };
    match best_index() {
        Some(_) => expect_index(mode, IndexKind::CpuId, registrar),
        None => expect_arenas(mode, why_no_index()),
    }
}
