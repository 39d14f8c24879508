//! The helper thread for x86-64.

use super::{ABORTED, CLONE_FLAGS, COMMITTED, IN_SECTION, TURNS, Trial};
use crate::abi::{Errno, SIGNATURE};
use core::arch::asm;

/// The store that arms the section. Without it nothing is ever aborted, as on a kernel that forgets to.
#[cfg(not(rseq_fault = "no_aborts"))]
macro_rules! arm {
    () => {
        "mov qword ptr [r12 + 8], rax"
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
    // SAFETY: the call returns twice. The parent goes on at the end with nothing changed but the registers that a system
    // call changes. The child has a stack of its own, which it does not use, and touches nothing but the trial until it
    // ends; it does not leave this block.
    unsafe {
        asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "9:",
            ".long 0, 0",
            ".quad 2f, 3f - 2f, 4f",
            ".popsection",
            "syscall", // clone
            "test rax, rax",
            "jnz 8f",
            // The child.
            "mov eax, {sys_rseq}",
            "mov rdi, r12",
            "mov esi, r13d",
            "xor edx, edx",
            "mov r10d, {sig}",
            "syscall",
            "test eax, eax",
            "jnz 6f",
            "mov eax, {sys_sched_setattr}",
            "xor edi, edi",
            "lea rsi, [r12 + 80]",
            "xor edx, edx",
            "syscall",
            "test eax, eax",
            "jz 5f",
            "cmp dword ptr [r12 + 128], 0",
            "jne 6f",
            "5:",
            "mov ecx, {turns}",
            "lea rax, [rip + 9b]",
            arm!(),
            "2:",
            "mov dword ptr [r12 + 64], {in_section}",
            "5:",
            "dec ecx",
            "jz 5f",
            "cmp dword ptr [r12 + 68], 0",
            "je 5b",
            "5:",
            "mov dword ptr [r12 + 72], {committed}", // commit
            "3:",
            "jmp 7f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long {sig}",
            "4:",
            "mov dword ptr [r12 + 72], {aborted}",
            "jmp 7f",
            "6:",
            "mov dword ptr [r12 + 72], eax",
            "7:",
            "mov eax, {sys_exit}",
            "xor edi, edi",
            "syscall",
            "ud2",
            "8:",
            sys_rseq = const libc::SYS_rseq,
            sys_sched_setattr = const libc::SYS_sched_setattr,
            sys_exit = const libc::SYS_exit,
            turns = const TURNS,
            sig = const SIGNATURE,
            in_section = const IN_SECTION,
            committed = const COMMITTED,
            aborted = const ABORTED,
            in("r12") trial,
            in("r13") u64::from(len),
            inlateout("rax") libc::SYS_clone as isize => answer,
            inlateout("rdi") CLONE_FLAGS as usize => _,
            inlateout("rsi") (&raw mut (*trial).stack).add(1) => _,
            inlateout("rdx") 0_usize => _,
            inlateout("r10") &raw mut (*trial).alive => _,
            in("r8") 0_usize,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if answer < 0 { Err(Errno(-answer as i32)) } else { Ok(answer as i32) }
}
