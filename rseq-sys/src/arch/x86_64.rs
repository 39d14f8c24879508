//! x86-64: the thread pointer is `fs:[0]`, static TLS lies below it.

use core::arch::{asm, global_asm};

/// Whether this build has commit sequences in assembly.
pub const HAVE_SEQUENCES: bool = true;

/// Whether there are kernels for this architecture that do not abort what they should, so that it has to be tried.
/// Here none is known.
pub(crate) const ABORTS_IN_DOUBT: bool = cfg!(rseq_fault = "no_aborts");

/// Whether the processor performs loads in program order, so that data published with a store is seen by a plain load
/// that follows a load of what published it.
pub const LOADS_IN_ORDER: bool = true;

// Layout of `OwnBlock`. Hidden: one block for each linked object, never shared through the dynamic symbol table.
// The version in the name lets two incompatible releases of this crate live in one program.
global_asm!(
    r#"
    .pushsection .tdata.rseq_sys_block, "awT", @progbits
    .balign 64
    .globl __rseq_sys_block_0
    .hidden __rseq_sys_block_0
    .type __rseq_sys_block_0, @object
    .size __rseq_sys_block_0, 128
__rseq_sys_block_0:
    .long 0, -1
    .quad 0
    .long 0, -1, -1, 0
    .zero 32
    .long 0, 0
    .zero 48
    .long -1, 0
    .popsection
    "#
);

/// The thread pointer, as `__rseq_offset` counts from it.
#[inline]
pub(crate) fn thread_pointer() -> usize {
    let tp: usize;
    // SAFETY: the psABI keeps the thread pointer's own address at fs:0.
    unsafe {
        asm!("mov {}, qword ptr fs:[0]", out(reg) tp, options(nostack, readonly, preserves_flags));
    }
    tp
}

/// Where the own block lies, from the thread pointer.
#[inline]
pub(crate) fn own_offset() -> isize {
    let offset: isize;
    // SAFETY: reads a GOT entry that the loader filled before any code ran; the linker may turn it into a constant.
    unsafe {
        asm!("mov {}, qword ptr [rip + __rseq_sys_block_0@gottpoff]", out(reg) offset,
             options(nostack, readonly, preserves_flags));
    }
    offset
}

/// Asks for the cache line of an address, to be written soon; a hint, for any address.
#[inline]
pub fn prefetch_to_write(address: usize) {
    // SAFETY: never faults; processors that do not know it take it for a NOP.
    unsafe { asm!("prefetchw byte ptr [{}]", in(reg) address, options(nostack, preserves_flags)) };
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
            "mov {0}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {1}, qword ptr [rip + __rseq_size@GOTPCREL]",
            "mov {2}, qword ptr [rip + __rseq_flags@GOTPCREL]",
            out(reg) offset, out(reg) size, out(reg) flags,
            options(nostack, readonly, preserves_flags)
        );
    }
    (!offset.is_null() && !size.is_null() && !flags.is_null()).then_some((offset, size, flags))
}
