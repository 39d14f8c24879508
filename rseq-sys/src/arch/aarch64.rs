//! aarch64, little-endian: the thread pointer is `tpidr_el0`, static TLS lies above it.

use core::arch::{asm, global_asm};

/// Whether this build has commit sequences in assembly.
pub const HAVE_SEQUENCES: bool = true;

/// Whether there are kernels for this architecture that do not abort what they should, so that it has to be tried:
/// Linux 6.19 to 7.0.13.
pub(crate) const ABORTS_IN_DOUBT: bool = true;

/// Whether the processor performs loads in program order, so that data published with a store is seen by a plain load
/// that follows a load of what published it.
pub const LOADS_IN_ORDER: bool = false;

// Layout of `OwnBlock`, see the note on names in the x86-64 file.
global_asm!(
    r#"
    .pushsection .tdata.rseq_sys_block, "awT", %progbits
    .balign 64
    .globl __rseq_sys_block_0
    .hidden __rseq_sys_block_0
    .type __rseq_sys_block_0, %object
    .size __rseq_sys_block_0, 128
__rseq_sys_block_0:
    .word 0, -1
    .xword 0
    .word 0, -1, -1, 0
    .zero 32
    .word 0, 0
    .zero 48
    .word -1, 0
    .popsection
    "#
);

/// The thread pointer, as `__rseq_offset` counts from it.
#[inline]
pub(crate) fn thread_pointer() -> usize {
    let tp: usize;
    // SAFETY: user space may read tpidr_el0; it is the thread pointer of the ABI.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) tp, options(nostack, nomem, preserves_flags));
    }
    tp
}

/// Where the own block lies, from the thread pointer.
#[inline]
pub(crate) fn own_offset() -> isize {
    let offset: isize;
    // SAFETY: reads a GOT entry that the loader filled before any code ran; the linker may turn it into a constant.
    unsafe {
        asm!("adrp {0}, :gottprel:__rseq_sys_block_0",
             "ldr {0}, [{0}, #:gottprel_lo12:__rseq_sys_block_0]",
             out(reg) offset, options(nostack, readonly, preserves_flags));
    }
    offset
}

/// Asks for the cache line of an address, to be written soon; a hint, for any address.
#[inline]
pub fn prefetch_to_write(address: usize) {
    // SAFETY: never faults.
    unsafe { asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// glibc's three symbols in a statically linked program, where there is no loader whose table could be read.
/// A weak reference that nothing defines reads as null.
#[cfg(any(target_feature = "crt-static", feature = "weak-libc-symbols"))]
pub(crate) fn weak_libc_symbols() -> Option<(*const isize, *const u32, *const u32)> {
    let (offset, size, flags): (*const isize, *const u32, *const u32);
    // SAFETY: reads three GOT entries that the linker filled.
    unsafe {
        asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            ".weak __rseq_flags",
            "adrp {0}, :got:__rseq_offset",
            "ldr {0}, [{0}, #:got_lo12:__rseq_offset]",
            "adrp {1}, :got:__rseq_size",
            "ldr {1}, [{1}, #:got_lo12:__rseq_size]",
            "adrp {2}, :got:__rseq_flags",
            "ldr {2}, [{2}, #:got_lo12:__rseq_flags]",
            out(reg) offset, out(reg) size, out(reg) flags,
            options(nostack, readonly, preserves_flags)
        );
    }
    (!offset.is_null() && !size.is_null() && !flags.is_null()).then_some((offset, size, flags))
}
