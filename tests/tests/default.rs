//! The allocator as it comes: on a kernel that keeps the concurrency id, mm_cid is the index, also where the C library
//! knows nothing of that field.

use alloc_core::{IndexKind, Mode, RseqAlloc};
use integration::configuration::{
    Configuration, best_index, expect_arenas, expect_index, libc_registers, why_no_index,
};

integration::configuration!(
    RseqAlloc::new(),
    Configuration { name: "default", enter: || (), promise, body: integration::body::ALL, checks: &[] }
);

fn promise(mode: &Mode) -> Result<(), String> {
    let registrar = if libc_registers() { "registered by libc" } else { "registered by ourselves" };
    match best_index() {
        Some(index @ (IndexKind::MmCid | IndexKind::CpuId)) => expect_index(mode, index, registrar),
        None => expect_arenas(mode, why_no_index()),
    }
}
