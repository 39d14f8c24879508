//! Commit sequences for x86-64.
//!
//! Every block is numbered alike: 2 is the start, 3 the end of the section, 4 the abort handler, 5 to 8 the ways out
//! beside it, 9 the descriptor, 20 a place inside the section. The
//! labels are numeric because the compiler may copy a block that it inlines; each copy has its own descriptor, handler
//! and section. Handlers stand in a section of their own with the signature in front, encoded as the displacement of a
//! `ud1`, so that a disassembler stays in step. The descriptors hold addresses that a position-independent object
//! relocates at load time, hence the writable section.
//!
//! Operands: all inputs are in registers that the section leaves alone, so they survive an abort. What it writes is
//! declared `out`, never `lateout`, so that the compiler does not share those registers with inputs.

use super::{ABORTS, Attempt, EMPTY, FULL};
use core::arch::asm;

/// The descriptor of the section that follows.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_descriptor {
    () => {
        ".pushsection __rseq_cs, \"aw\"\n.balign 32\n9:\n.long 0, 0\n.quad 2f, 3f - 2f, 4f\n.popsection\n"
    };
}

/// Descriptor, arming store and start of the section. `off` becomes the offset of the area from the thread pointer, `t`
/// is scratch. `delta` is the operand that holds the distance from the own block to the area in use.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_enter {
    ($delta:literal) => {
        concat!(
            $crate::__rseq_descriptor!(),
            "mov {off}, qword ptr [rip + __rseq_sys_block_0@gottpoff]\n",
            "add {off}, ",
            $delta,
            "\n",
            "lea {t}, [rip + 9b]\n",
            $crate::__rseq_arm!(),
            $crate::__rseq_start!(),
        )
    };
}

/// The store that arms the section.
#[cfg(not(rseq_fault = "no_descriptor"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_arm {
    () => {
        "mov qword ptr fs:[{off} + 8], {t}\n"
    };
}
#[cfg(rseq_fault = "no_descriptor")]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_arm {
    () => {
        ""
    };
}

/// The start of the section, right after the arming store.
#[cfg(not(rseq_fault = "start_late"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_start {
    () => {
        "2:\n"
    };
}
/// With the fault: not there …
#[cfg(rseq_fault = "start_late")]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_start {
    () => {
        ""
    };
}
/// … but where the id and the header's content have already been read.
#[cfg(not(rseq_fault = "start_late"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_late_start {
    () => {
        ""
    };
}
#[cfg(rseq_fault = "start_late")]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_late_start {
    () => {
        "2:\n"
    };
}

/// What the kernel wants to find right before an abort handler, or it kills the process.
#[cfg(not(rseq_fault = "bad_signature"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_signature {
    () => {
        ".long 0x53053053\n"
    };
}
#[cfg(rseq_fault = "bad_signature")]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_signature {
    () => {
        ".long 0x53053054\n"
    };
}

/// The abort handler: signature, count, then `$after`.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_on_abort {
    ($after:literal $(, $more:literal)*) => {
        concat!(
            ".pushsection __rseq_abort, \"ax\"\n",
            ".byte 0x0f, 0xb9, 0x3d\n",
            $crate::__rseq_signature!(),
            "4:\n",
            "lock inc qword ptr [rip + {aborts}]\n",
            $after, "\n",
            $($more, "\n",)*
            ".popsection\n",
        )
    };
}

/// Header address in `id`, its content in `t`: shared by the two stack operations. The table is at `$at`. The id is
/// extended with its sign, so that all ones stand for the place before the first.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_header {
    ($at:literal) => {
        concat!(
            "mov {t}, qword ptr [",
            $at,
            " + 8]\n",
            "movsxd {id}, dword ptr fs:[{off} + {t}]\n",
            "shl {id}, {shift}\n",
            "add {id}, qword ptr [",
            $at,
            " + 16]\n",
            "add {id}, {x}\n",
            "mov {t}, qword ptr [{id}]\n",
            $crate::__rseq_late_start!(),
        )
    };
}

/// The last check of a pop, before its commit.
#[cfg(not(rseq_fault = "commit_early"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_unless_empty {
    () => {
        "test {r}, {r}\njz 3f\n"
    };
}
/// With the fault the commit comes first, and only the caller tests what came back.
#[cfg(rseq_fault = "commit_early")]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_unless_empty {
    () => {
        ""
    };
}

/// The last check of a push and its commit.
#[cfg(not(rseq_fault = "commit_early"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_push_unless_twice {
    () => {
        concat!(
            "cmp qword ptr [{t} - 8], {p}\n",
            "je {away}\n",
            "mov qword ptr [{t}], {p}\n",
            "add {t}, 8\n",
            "mov qword ptr [{id}], {t}\n", // commit
        )
    };
}
/// With the fault the commit comes before the check, and is not the end of the section.
#[cfg(rseq_fault = "commit_early")]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_push_unless_twice {
    () => {
        concat!(
            "mov qword ptr [{t}], {p}\n",
            "add {t}, 8\n",
            "mov qword ptr [{id}], {t}\n",
            "cmp qword ptr [{t} - 16], {p}\n",
            "je {away}\n",
        )
    };
}

/// The assembly of [`super::Stacks::pop`], for a table that is an operand `$g` and addressed as `$at`.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_pop {
    ($delta:literal, $at:literal, ($($g:tt)+), $x:expr, $shift:expr) => {{
        // A pointer from the start: a caller that tests it for null again has that test folded into its own.
        let r: *mut u8;
        // SAFETY: the section reads the thread's area (in static TLS), the table, one header and one slot, all valid by
        // the contract of the function around this, and commits with one store to the header.
        unsafe {
            core::arch::asm!(
                $crate::__rseq_enter!($delta),
                $crate::__rseq_header!($at),
                // The new top; below 0 if there is none.
                "sub {t}, 8",
                "jb 5f",
                "mov {r}, qword ptr [{t}]",
                $crate::__rseq_unless_empty!(),
                "mov qword ptr [{id}], {t}", // commit
                "3:",
                $crate::__rseq_on_abort!("5:", "xor {r:e}, {r:e}", "jmp 3b"),
                g = $($g)+,
                x = in(reg) $x,
                off = out(reg) _,
                t = out(reg) _,
                id = out(reg) _,
                r = out(reg) r,
                shift = const $shift,
                aborts = sym $crate::sequence::ABORTS,
                options(nostack)
            );
        }
        r
    }};
}

/// The assembly of [`super::Stacks::push`], likewise; leaves the function around it where the pointer is not taken.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_push {
    ($delta:literal, $at:literal, ($($g:tt)+), $x:expr, $p:expr, $shift:expr, $stack:expr) => {{
        // SAFETY: as in `pop`; the place after the top is a slot of the same stack, for it is not the stack's end.
        unsafe {
            core::arch::asm!(
                $crate::__rseq_enter!($delta),
                $crate::__rseq_header!($at),
                "test {t:e}, {last}",
                "jz {away}",
                $crate::__rseq_push_unless_twice!(),
                "3:",
                $crate::__rseq_on_abort!("jmp {away}"),
                g = $($g)+,
                x = in(reg) $x,
                p = in(reg) $p,
                off = out(reg) _,
                t = out(reg) _,
                id = out(reg) _,
                shift = const $shift,
                last = const $stack - 1,
                aborts = sym $crate::sequence::ABORTS,
                away = label { return false },
                options(nostack)
            );
        }
        true
    }};
}

/// See [`super::Stacks::pop`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
#[inline(always)]
pub(super) unsafe fn pop<const SHIFT: u32>(g: *const usize, x: usize) -> *mut u8 {
    crate::__rseq_pop!("qword ptr [{g}]", "{g}", (in(reg) g), x, SHIFT)
}

/// See [`super::Stacks::push`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
#[inline(always)]
pub(super) unsafe fn push<const SHIFT: u32, const STACK: usize>(g: *const usize, x: usize, p: usize) -> bool {
    crate::__rseq_push!("qword ptr [{g}]", "{g}", (in(reg) g), x, p, SHIFT, STACK)
}

/// `pop` and `push` for a table in a `static`, which the assembly then names: an instruction less, and no load of an
/// address before the section.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_stack_functions {
    ($table:path, $shift:expr, $stack:expr) => {
        /// [`pop`](rseq_sys::sequence::Stacks::pop) for this table.
        ///
        /// # Safety
        /// As there.
        #[inline(always)]
        pub(crate) unsafe fn pop(displacement: usize) -> *mut u8 {
            $crate::__rseq_pop!("qword ptr [rip + {g}]", "rip + {g}", (sym $table), displacement, $shift)
        }

        /// [`push`](rseq_sys::sequence::Stacks::push) for this table.
        ///
        /// # Safety
        /// As there.
        #[inline(always)]
        pub(crate) unsafe fn push(displacement: usize, p: usize) -> bool {
            $crate::__rseq_push!("qword ptr [rip + {g}]", "rip + {g}", (sym $table), displacement, p, $shift, $stack)
        }
    };
}

/// The id of the area at `own_delta`.
#[inline]
pub(super) fn read_id(own_delta: isize, id_offset: usize) -> u32 {
    let id: u32;
    // SAFETY: reads a field of the thread's area, which is in static TLS.
    unsafe {
        asm!(
            "mov {off}, qword ptr [rip + __rseq_sys_block_0@gottpoff]",
            "add {off}, {delta}",
            "mov {id:e}, dword ptr fs:[{off} + {field}]",
            delta = in(reg) own_delta,
            field = in(reg) id_offset,
            off = out(reg) _,
            id = out(reg) id,
            options(nostack, readonly)
        );
    }
    id
}

/// The end of a sequence that reports a status: 0 after the commit, 1, 2 and 3 from the stubs beside the handler.
macro_rules! leave {
    () => {
        concat!(
            "3:\n",
            "xor {t:e}, {t:e}\n",
            "8:\n",
            $crate::__rseq_on_abort!(
                "mov {t:e}, 3",
                "jmp 8b",
                "7:",
                "mov {t:e}, 2",
                "jmp 8b",
                "6:",
                "mov {t:e}, 1",
                "jmp 8b"
            ),
        )
    };
}

/// Is this the vCPU that was asked for?
macro_rules! same_vcpu {
    () => {
        concat!("cmp dword ptr fs:[{off} + {field}], {id:e}\n", "jne 7f\n", $crate::__rseq_late_start!())
    };
}

// The checks and the commit of the sequences below.
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! compare_compare_store {
    () => {
        concat!(
            same_vcpu!(),
            "cmp qword ptr [{v2}], {expect2}\n",
            "jne 6f\n",
            "cmp qword ptr [{v}], {expect}\n",
            "jne 6f\n",
            "mov qword ptr [{v}], {new}\n", // commit
        )
    };
}
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! add {
    () => {
        concat!(same_vcpu!(), "add qword ptr [{v}], {n}\n") // commit
    };
}
#[cfg(not(rseq_fault = "commit_early"))]
macro_rules! compare_load_store {
    () => {
        concat!(
            same_vcpu!(),
            "cmp qword ptr [{v2}], {expect2}\n",
            "jne 6f\n",
            "mov {p}, qword ptr [{v}]\n",
            "cmp {p}, {unless}\n",
            "je 6f\n",
            "mov {t}, qword ptr [{p} + {next}]\n",
            "mov qword ptr [{v}], {t}\n", // commit
        )
    };
}
// With the fault the store comes before the last check, and is not the end of the section.
#[cfg(rseq_fault = "commit_early")]
macro_rules! compare_compare_store {
    () => {
        concat!(
            same_vcpu!(),
            "cmp qword ptr [{v2}], {expect2}\n",
            "jne 6f\n",
            "mov {t}, qword ptr [{v}]\n",
            "mov qword ptr [{v}], {new}\n",
            "cmp {t}, {expect}\n",
            "jne 6f\n",
        )
    };
}
#[cfg(rseq_fault = "commit_early")]
macro_rules! add {
    () => {
        concat!("add qword ptr [{v}], {n}\n", same_vcpu!())
    };
}
#[cfg(rseq_fault = "commit_early")]
macro_rules! compare_load_store {
    () => {
        concat!(
            same_vcpu!(),
            "mov {p}, qword ptr [{v}]\n",
            "cmp {p}, {unless}\n",
            "je 6f\n",
            "mov {t}, qword ptr [{p} + {next}]\n",
            "mov qword ptr [{v}], {t}\n",
            "cmp qword ptr [{v2}], {expect2}\n",
            "jne 6f\n",
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
            crate::__rseq_enter!("{delta}"),
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
            crate::__rseq_enter!("{delta}"),
            add!(),
            leave!(),
            delta = in(reg) own_delta,
            field = in(reg) id_offset,
            id = in(reg) id,
            v = in(reg) v,
            n = in(reg) n,
            off = out(reg) _,
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
            crate::__rseq_enter!("{delta}"),
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
            crate::__rseq_enter!("qword ptr [{g}]"),
            crate::__rseq_header!("{g}"),
            "test {t}, {t}",
            "jz 6f",
            "mov {p}, qword ptr [{t} - 8]",
            "test {p}, {p}",
            "jnz 20f",
            "lea {n}, [{t} - 8]",
            "and {n}, {mask}",
            "mov {p}, qword ptr [{n} + {full}]",
            "test {p}, {p}",
            "jz 6f",
            "lea {n}, [{p} - 8]",
            "and {n}, {mask}",
            "mov qword ptr [{n} + {empty}], {t}", // read only from a header above it
            "mov {t}, {p}",
            "mov {p}, qword ptr [{t} - 8]",
            "20:",
            "sub {t}, 8",
            "mov qword ptr [{id}], {t}", // commit
            leave!(),
            g = in(reg) g,
            x = in(reg) x,
            off = out(reg) _,
            t = out(reg) status,
            id = out(reg) _,
            n = out(reg) _,
            p = out(reg) p,
            shift = const SHIFT,
            mask = const -(STACK as i32),
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
            crate::__rseq_enter!("qword ptr [{g}]"),
            crate::__rseq_header!("{g}"),
            "test {t}, {t}",
            "jz 6f",
            "cmp qword ptr [{t} - 8], {p}",
            "je 6f",
            "test {t:e}, {last}",
            "jnz 20f",
            "lea {n}, [{t} - 8]",
            "and {n}, {mask}",
            "mov {off}, qword ptr [{n} + {empty}]",
            "test {off}, {off}",
            "jz 6f",
            "lea {n}, [{off} - 8]",
            "and {n}, {mask}",
            "mov qword ptr [{n} + {full}], {t}", // read only from a header below it
            "mov {t}, {off}",
            "20:",
            "mov qword ptr [{t}], {p}",
            "add {t}, 8",
            "mov qword ptr [{id}], {t}", // commit
            leave!(),
            g = in(reg) g,
            x = in(reg) x,
            p = in(reg) p,
            off = out(reg) _,
            t = out(reg) status,
            id = out(reg) _,
            n = out(reg) _,
            shift = const SHIFT,
            last = const STACK - 1,
            mask = const -(STACK as i32),
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
            crate::__rseq_enter!("{delta}"),
            same_vcpu!(),
            "cmp qword ptr [{seal}], 0",
            "jne 6f",
            "cmp qword ptr [{v}], {expect}",
            "jne 6f",
            "lea {n}, [{new} - 8]",
            "and {n}, {mask}",
            "mov {off}, qword ptr [{from}]",
            "mov qword ptr [{n} + {full}], {off}",
            "lea {t}, [{expect} - 8]",
            "and {t}, {mask}",
            "mov {off}, qword ptr [{t} + {empty}]",
            "mov qword ptr [{n} + {empty}], {off}",
            "mov qword ptr [{v}], {new}", // commit
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
            n = out(reg) _,
            mask = const -(STACK as i32),
            full = const FULL,
            empty = const EMPTY,
            aborts = sym ABORTS,
            options(nostack)
        );
    }
    Attempt::from_status(status)
}
