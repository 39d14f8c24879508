//! Commit sequences for aarch64, little-endian.
//!
//! Numbering, sections and operands as in the x86-64 file. Two differences: a conditional branch reaches only one MiB,
//! so the stubs stand behind the block instead of beside the abort handler (which comes back by a plain branch); and
//! `pop` clears its result before the section, so that every early way out of it is a branch to its end.
//!
//! Ordering: a section and whoever ran on this vCPU before are ordered by the scheduler, a section and a remote drainer
//! by membarrier. Nothing here needs acquire or release instructions.

use super::{ABORTS, Attempt, EMPTY, FULL};
use core::arch::asm;

/// Descriptor, arming store and start of the section. `off` becomes the address of the area.
macro_rules! enter {
    ($($delta:literal),*) => {
        concat!(
            ".pushsection __rseq_cs, \"aw\"\n",
            ".balign 32\n",
            "9:\n",
            ".long 0, 0\n",
            ".quad 2f, 3f - 2f, 4f\n",
            ".popsection\n",
            "mrs {t}, tpidr_el0\n",
            "adrp {off}, :gottprel:__rseq_sys_block_0\n",
            "ldr {off}, [{off}, #:gottprel_lo12:__rseq_sys_block_0]\n",
            "add {off}, {off}, {t}\n",
            $($delta, "\n",)*
            "add {off}, {off}, {t}\n",
            "adrp {t}, 9b\n",
            "add {t}, {t}, :lo12:9b\n",
            arm!(),
            start!(),
        )
    };
}

/// The store that arms the section.
#[cfg(not(rseq_fault = "no_descriptor"))]
macro_rules! arm {
    () => {
        "str {t}, [{off}, #8]\n"
    };
}
#[cfg(rseq_fault = "no_descriptor")]
macro_rules! arm {
    () => {
        ""
    };
}

/// The start of the section, right after the arming store.
#[cfg(not(rseq_fault = "start_late"))]
macro_rules! start {
    () => {
        "2:\n"
    };
}
/// With the fault: not there …
#[cfg(rseq_fault = "start_late")]
macro_rules! start {
    () => {
        ""
    };
}
/// … but where the id and the header's content have already been read.
#[cfg(not(rseq_fault = "start_late"))]
macro_rules! late_start {
    () => {
        ""
    };
}
#[cfg(rseq_fault = "start_late")]
macro_rules! late_start {
    () => {
        "2:\n"
    };
}

/// What the kernel wants to find right before an abort handler, or it kills the process.
#[cfg(not(rseq_fault = "bad_signature"))]
macro_rules! signature {
    () => {
        ".long 0xd428bc00\n"
    };
}
#[cfg(rseq_fault = "bad_signature")]
macro_rules! signature {
    () => {
        ".long 0xd428bc20\n"
    };
}

/// Counts at `t`, or goes on if another exclusive access or an exception came in between.
macro_rules! count_exclusively {
    () => {
        "ldxr {off}, [{t}]\nadd {off}, {off}, #1\nstxr {s:w}, {off}, [{t}]\ncbz {s:w}, 5f\n"
    };
}

/// The abort handler: signature, count, then `$after`.
///
/// The count is exclusive at first, since LSE atomics may be missing, and plain if that fails again and again: every
/// exception clears the monitor, so that a program that is stepped through would try for ever. A plain count may lose
/// another thread's, which costs that thread an attempt that it takes for empty.
macro_rules! on_abort {
    ($($after:literal),*) => {
        concat!(
            ".pushsection __rseq_abort, \"ax\"\n",
            signature!(),
            "4:\n",
            "adrp {t}, {aborts}\n",
            "add {t}, {t}, :lo12:{aborts}\n",
            count_exclusively!(),
            count_exclusively!(),
            count_exclusively!(),
            "ldr {off}, [{t}]\n",
            "add {off}, {off}, #1\n",
            "str {off}, [{t}]\n",
            "5:\n",
            $($after, "\n",)*
            ".popsection\n",
        )
    };
}

/// Header address in `id`, its content in `t`. The id is extended with its sign, so that all ones stand for the place
/// before the first.
macro_rules! header {
    () => {
        concat!(
            "ldr {t}, [{g}, #8]\n",
            "ldrsw {id}, [{off}, {t}]\n",
            "ldr {t}, [{g}, #16]\n",
            "add {id}, {t}, {id}, lsl #{shift}\n",
            "add {id}, {id}, {x}\n",
            "ldr {t}, [{id}]\n",
            late_start!(),
        )
    };
}

/// The last check of a pop, before its commit.
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! unless_empty {
    () => {
        "cbz {r}, 3f\n"
    };
}
#[cfg(rseq_fault = "commit_early")]
macro_rules! unless_empty {
    () => {
        ""
    };
}

/// The last check of a push and its commit.
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! push_unless_twice {
    () => {
        concat!(
            "cmp {off}, {p}\n",
            "b.eq {away}\n",
            "str {p}, [{t}], #8\n",
            "str {t}, [{id}]\n", // commit
        )
    };
}
/// With the fault the commit comes before the check, and is not the end of the section.
#[cfg(rseq_fault = "commit_early")]
macro_rules! push_unless_twice {
    () => {
        concat!("str {p}, [{t}], #8\n", "str {t}, [{id}]\n", "cmp {off}, {p}\n", "b.eq {away}\n")
    };
}

/// See [`super::Stacks::pop`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
#[inline(always)]
pub(super) unsafe fn pop<const SHIFT: u32>(g: *const usize, x: usize) -> *mut u8 {
    // A pointer from the start: a caller that tests it for null again has that test folded into its own.
    let r: *mut u8;
    // SAFETY: the section reads the thread's area (in static TLS), the table, one header and one slot, all valid by
    // contract, and commits with one store to the header.
    unsafe {
        asm!(
            "mov {r}, xzr",
            enter!("ldr {t}, [{g}]"),
            header!(),
            "cbz {t}, 3f",
            "ldur {r}, [{t}, #-8]",
            unless_empty!(),
            "sub {t}, {t}, #8",
            "str {t}, [{id}]", // commit
            "3:",
            on_abort!("mov {r}, xzr", "b 3b"),
            g = in(reg) g,
            x = in(reg) x,
            off = out(reg) _,
            t = out(reg) _,
            id = out(reg) _,
            s = out(reg) _,
            r = out(reg) r,
            shift = const SHIFT,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    r
}

/// See [`super::Stacks::push`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
#[inline(always)]
pub(super) unsafe fn push<const SHIFT: u32, const STACK: usize>(g: *const usize, x: usize, p: usize) -> bool {
    // SAFETY: as in `pop`; the place after the top is a slot of the same stack, for it is not the stack's end.
    unsafe {
        asm!(
            enter!("ldr {t}, [{g}]"),
            header!(),
            "tst {t}, #{last}",
            "b.eq {away}",
            "ldur {off}, [{t}, #-8]",
            push_unless_twice!(),
            "3:",
            on_abort!("b {away}"),
            g = in(reg) g,
            x = in(reg) x,
            p = in(reg) p,
            off = out(reg) _,
            t = out(reg) _,
            id = out(reg) _,
            s = out(reg) _,
            shift = const SHIFT,
            last = const STACK - 1,
            aborts = sym ABORTS,
            away = label { return false },
            options(nostack)
        );
    }
    true
}

/// The id of the area at `own_delta`.
#[inline]
pub(super) fn read_id(own_delta: isize, id_offset: usize) -> u32 {
    let area = crate::arch::own_block().addr().wrapping_add_signed(own_delta);
    // SAFETY: reads a field of the thread's area, which is in static TLS; the kernel may write it at any time.
    unsafe { core::ptr::with_exposed_provenance::<u32>(area.wrapping_add(id_offset)).read_volatile() }
}

/// The end of a sequence that reports a status in `t`: 0 after the commit, 1 and 2 from the stubs, 3 from the handler.
macro_rules! leave {
    () => {
        concat!(
            "3:\n",
            "mov {t}, #0\n",
            "b 8f\n",
            "7:\n",
            "mov {t}, #2\n",
            "b 8f\n",
            "6:\n",
            "mov {t}, #1\n",
            "8:\n",
            on_abort!("mov {t}, #3", "b 8b"),
        )
    };
}

/// Is this the vCPU that was asked for?
macro_rules! same_vcpu {
    () => {
        concat!("ldr {t:w}, [{off}, {field}]\n", "cmp {t:w}, {id:w}\n", "b.ne 7f\n", late_start!())
    };
}

// The checks and the commit of the sequences below.
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! compare_compare_store {
    () => {
        concat!(
            same_vcpu!(),
            "ldr {t}, [{v2}]\n",
            "cmp {t}, {expect2}\n",
            "b.ne 6f\n",
            "ldr {t}, [{v}]\n",
            "cmp {t}, {expect}\n",
            "b.ne 6f\n",
            "str {new}, [{v}]\n", // commit
        )
    };
}
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! add {
    () => {
        concat!(
            same_vcpu!(),
            "ldr {t}, [{v}]\n",
            "add {t}, {t}, {n}\n",
            "str {t}, [{v}]\n", // commit
        )
    };
}
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! compare_load_store {
    () => {
        concat!(
            same_vcpu!(),
            "ldr {t}, [{v2}]\n",
            "cmp {t}, {expect2}\n",
            "b.ne 6f\n",
            "ldr {p}, [{v}]\n",
            "cmp {p}, {unless}\n",
            "b.eq 6f\n",
            "ldr {t}, [{p}, {next}]\n",
            "str {t}, [{v}]\n", // commit
        )
    };
}
// With the fault the store comes before the last check, and is not the end of the section.
#[cfg(rseq_fault = "commit_early")]
macro_rules! compare_compare_store {
    () => {
        concat!(
            same_vcpu!(),
            "ldr {t}, [{v2}]\n",
            "cmp {t}, {expect2}\n",
            "b.ne 6f\n",
            "ldr {t}, [{v}]\n",
            "str {new}, [{v}]\n",
            "cmp {t}, {expect}\n",
            "b.ne 6f\n",
        )
    };
}
#[cfg(rseq_fault = "commit_early")]
macro_rules! add {
    () => {
        concat!("ldr {t}, [{v}]\n", "add {t}, {t}, {n}\n", "str {t}, [{v}]\n", same_vcpu!())
    };
}
#[cfg(rseq_fault = "commit_early")]
macro_rules! compare_load_store {
    () => {
        concat!(
            same_vcpu!(),
            "ldr {p}, [{v}]\n",
            "cmp {p}, {unless}\n",
            "b.eq 6f\n",
            "ldr {t}, [{p}, {next}]\n",
            "str {t}, [{v}]\n",
            "ldr {t}, [{v2}]\n",
            "cmp {t}, {expect2}\n",
            "b.ne 6f\n",
        )
    };
}

/// See [`super::Vcpu::compare_compare_store`].
///
/// # Safety
/// Its contract holds.
#[expect(clippy::too_many_arguments, reason = "the operands of one sequence, each in a register")]
#[inline]
pub(super) unsafe fn compare_compare_store(
    own_delta: isize,
    id_offset: usize,
    id: u32,
    v: *mut usize,
    expect: usize,
    v2: *const usize,
    expect2: usize,
    new: usize,
) -> Attempt {
    let status: usize;
    // SAFETY: reads the area and two words, writes one, all valid by contract.
    unsafe {
        asm!(
            enter!("mov {t}, {delta}"),
            compare_compare_store!(),
            leave!(),
            delta = in(reg) own_delta,
            field = in(reg) id_offset,
            id = in(reg) id,
            v = in(reg) v,
            expect = in(reg) expect,
            v2 = in(reg) v2,
            expect2 = in(reg) expect2,
            new = in(reg) new,
            off = out(reg) _,
            s = out(reg) _,
            t = out(reg) status,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    Attempt::from_status(status)
}

/// See [`super::Vcpu::add`].
///
/// # Safety
/// Its contract holds.
#[inline]
pub(super) unsafe fn add(own_delta: isize, id_offset: usize, id: u32, v: *mut usize, n: usize) -> Attempt {
    let status: usize;
    // SAFETY: reads the area, reads and writes one word, valid by contract.
    unsafe {
        asm!(
            enter!("mov {t}, {delta}"),
            add!(),
            leave!(),
            delta = in(reg) own_delta,
            field = in(reg) id_offset,
            id = in(reg) id,
            v = in(reg) v,
            n = in(reg) n,
            off = out(reg) _,
            s = out(reg) _,
            t = out(reg) status,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    Attempt::from_status(status)
}

/// See [`super::Vcpu::compare_load_store`].
///
/// # Safety
/// Its contract holds.
#[expect(clippy::too_many_arguments, reason = "the operands of one sequence, each in a register")]
#[inline]
pub(super) unsafe fn compare_load_store(
    own_delta: isize,
    id_offset: usize,
    id: u32,
    v: *mut usize,
    unless: usize,
    next_offset: usize,
    v2: *const usize,
    expect2: usize,
) -> (Attempt, usize) {
    let (status, p): (usize, usize);
    // SAFETY: reads the area, two words and the word at `p + next_offset`, writes one, all valid by contract.
    unsafe {
        asm!(
            enter!("mov {t}, {delta}"),
            compare_load_store!(),
            leave!(),
            delta = in(reg) own_delta,
            field = in(reg) id_offset,
            id = in(reg) id,
            v = in(reg) v,
            unless = in(reg) unless,
            next = in(reg) next_offset,
            v2 = in(reg) v2,
            expect2 = in(reg) expect2,
            off = out(reg) _,
            s = out(reg) _,
            t = out(reg) status,
            p = out(reg) p,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    (Attempt::from_status(status), p)
}

/// See [`super::Stacks::pop_chained`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
#[inline]
pub(super) unsafe fn pop_chained<const SHIFT: u32, const STACK: usize>(g: *const usize, x: usize) -> (Attempt, usize) {
    let (status, p): (usize, usize);
    // SAFETY: as in `pop`; the words that neighbours are named in, and the slots of neighbours, are valid by contract.
    unsafe {
        asm!(
            enter!("ldr {t}, [{g}]"),
            header!(),
            "cbz {t}, 6f",
            "ldur {p}, [{t}, #-8]",
            "cbnz {p}, 20f",
            "sub {n}, {t}, #8",
            "and {n}, {n}, #{mask}",
            "ldr {p}, [{n}, #{full}]",
            "cbz {p}, 6f",
            "sub {n}, {p}, #8",
            "and {n}, {n}, #{mask}",
            "str {t}, [{n}, #{empty}]", // read only from a header above it
            "mov {t}, {p}",
            "ldur {p}, [{t}, #-8]",
            "20:",
            "sub {t}, {t}, #8",
            "str {t}, [{id}]", // commit
            leave!(),
            g = in(reg) g,
            x = in(reg) x,
            off = out(reg) _,
            t = out(reg) status,
            id = out(reg) _,
            s = out(reg) _,
            n = out(reg) _,
            p = out(reg) p,
            shift = const SHIFT,
            mask = const !(STACK as u64 - 1),
            full = const FULL,
            empty = const EMPTY,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    (Attempt::from_status(status), p)
}

/// See [`super::Stacks::push_chained`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
#[inline]
pub(super) unsafe fn push_chained<const SHIFT: u32, const STACK: usize>(
    g: *const usize,
    x: usize,
    p: usize,
) -> Attempt {
    let status: usize;
    // SAFETY: as in `pop_chained`.
    unsafe {
        asm!(
            enter!("ldr {t}, [{g}]"),
            header!(),
            "cbz {t}, 6f",
            "ldur {off}, [{t}, #-8]",
            "cmp {off}, {p}",
            "b.eq 6f",
            "tst {t}, #{last}",
            "b.ne 20f",
            "sub {n}, {t}, #8",
            "and {n}, {n}, #{mask}",
            "ldr {off}, [{n}, #{empty}]",
            "cbz {off}, 6f",
            "sub {n}, {off}, #8",
            "and {n}, {n}, #{mask}",
            "str {t}, [{n}, #{full}]", // read only from a header below it
            "mov {t}, {off}",
            "20:",
            "str {p}, [{t}], #8",
            "str {t}, [{id}]", // commit
            leave!(),
            g = in(reg) g,
            x = in(reg) x,
            p = in(reg) p,
            off = out(reg) _,
            t = out(reg) status,
            id = out(reg) _,
            s = out(reg) _,
            n = out(reg) _,
            shift = const SHIFT,
            last = const STACK - 1,
            mask = const !(STACK as u64 - 1),
            full = const FULL,
            empty = const EMPTY,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    Attempt::from_status(status)
}

/// See [`super::Vcpu::exchange`] and [`super::Vcpu::extend`]: the stack of `new` gets the word at `full` for its full
/// neighbour and the empty neighbour of `expect`.
///
/// # Safety
/// Their contract holds; `full` is a valid word.
#[expect(clippy::too_many_arguments, reason = "the operands of one sequence, each in a register")]
#[inline]
pub(super) unsafe fn replace_chained<const STACK: usize>(
    own_delta: isize,
    id_offset: usize,
    id: u32,
    v: *mut usize,
    expect: usize,
    seal: *const usize,
    new: usize,
    full: *const usize,
) -> Attempt {
    let status: usize;
    // SAFETY: reads the area and words of the stack that is replaced, writes words of the new one and the header, all
    // valid by contract.
    unsafe {
        asm!(
            enter!("mov {t}, {delta}"),
            same_vcpu!(),
            "ldr {t}, [{seal}]",
            "cbnz {t}, 6f",
            "ldr {t}, [{v}]",
            "cmp {t}, {expect}",
            "b.ne 6f",
            "sub {n}, {new}, #8",
            "and {n}, {n}, #{mask}",
            "ldr {off}, [{from}]",
            "str {off}, [{n}, #{full}]",
            "sub {t}, {expect}, #8",
            "and {t}, {t}, #{mask}",
            "ldr {off}, [{t}, #{empty}]",
            "str {off}, [{n}, #{empty}]",
            "str {new}, [{v}]", // commit
            leave!(),
            delta = in(reg) own_delta,
            field = in(reg) id_offset,
            id = in(reg) id,
            v = in(reg) v,
            expect = in(reg) expect,
            seal = in(reg) seal,
            new = in(reg) new,
            from = in(reg) full,
            off = out(reg) _,
            t = out(reg) status,
            s = out(reg) _,
            n = out(reg) _,
            mask = const !(STACK as u64 - 1),
            full = const FULL,
            empty = const EMPTY,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    Attempt::from_status(status)
}
