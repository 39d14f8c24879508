//! The helper thread for aarch64, little-endian.

use super::{ABORTED, CLONE_FLAGS, COMMITTED, IN_SECTION, TURNS, Trial};
use crate::abi::{Errno, SIGNATURE};
use core::arch::asm;

/// The store that arms the section. Without it nothing is ever aborted, as on a kernel that forgets to.
#[cfg(not(rseq_fault = "no_aborts"))]
macro_rules! arm {
    () => {
        "str x0, [x9, #8]"
    };
}
#[cfg(rseq_fault = "no_aborts")]
macro_rules! arm {
    () => {
        ""
    };
}

/// Starts the helper with an area of `len` bytes. Returns its thread id.
///
/// # Safety
/// `trial` has `attributes`, `strict` and `alive` set and is zero otherwise; it stays until the kernel has cleared `alive`.
pub(super) unsafe fn start(trial: *mut Trial, len: u32) -> Result<i32, Errno> {
    let answer: isize;
    // SAFETY: the call returns twice. The parent goes on at the end with nothing changed but x0. The child has a stack of
    // its own, which it does not use, and touches nothing but the trial until it ends; it does not leave this block. The
    // kernel keeps all registers but x0 over a system call, in the child as well.
    unsafe {
        asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "9:",
            ".long 0, 0",
            ".quad 2f, 3f - 2f, 4f",
            ".popsection",
            "svc #0", // clone
            "cbnz x0, 8f",
            // The child.
            "mov x0, x9",
            "mov x1, x10",
            "mov x2, #0",
            "mov w3, w11",
            "mov x8, #{sys_rseq}",
            "svc #0",
            "cbnz x0, 6f",
            "mov x0, #0",
            "add x1, x9, #80",
            "mov x2, #0",
            "mov x8, #{sys_sched_setattr}",
            "svc #0",
            "ldr w1, [x9, #128]",
            "cbz w1, 5f",
            "cbnz x0, 6f",
            "5:",
            "add x3, x9, #64",
            "mov w2, #{turns}",
            "adrp x0, 9b",
            "add x0, x0, :lo12:9b",
            arm!(),
            "2:",
            "mov w1, #{in_section}",
            "stlr w1, [x3]",
            "5:",
            "subs w2, w2, #1",
            "b.eq 5f",
            "ldr w1, [x9, #68]",
            "cbz w1, 5b",
            "5:",
            "mov w0, #{committed}",
            "str w0, [x9, #72]", // commit
            "3:",
            "b 7f",
            ".long {sig}",
            "4:",
            "mov w0, #{aborted}",
            "6:",
            "str w0, [x9, #72]",
            "7:",
            "mov x0, #0",
            "mov x8, #{sys_exit}",
            "svc #0",
            "brk #1",
            "8:",
            sys_rseq = const libc::SYS_rseq,
            sys_sched_setattr = const libc::SYS_sched_setattr,
            sys_exit = const libc::SYS_exit,
            turns = const TURNS,
            sig = const SIGNATURE,
            in_section = const IN_SECTION,
            committed = const COMMITTED,
            aborted = const ABORTED,
            in("x9") trial,
            in("x10") u64::from(len),
            in("x11") u64::from(SIGNATURE),
            inlateout("x0") CLONE_FLAGS as isize => answer,
            inlateout("x1") (&raw mut (*trial).stack).add(1) => _,
            inlateout("x2") 0_usize => _,
            inlateout("x3") 0_usize => _,
            in("x4") &raw mut (*trial).alive,
            inlateout("x8") libc::SYS_clone => _,
        );
    }
    if answer < 0 { Err(Errno(-answer as i32)) } else { Ok(answer as i32) }
}
