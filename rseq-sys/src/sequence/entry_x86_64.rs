//! The functions of [`super`] for x86-64. Blocks and labels are numbered as in the sequences for this processor; 6 is the way
//! to what comes next: from the first field to the second, and from that to the slow path.
//!
//! What each cut leaves behind is what it is for the sequences that are inlined: before the commit nothing was written
//! but the slot behind the top, which nobody reads. The frame is the caller's, so unwinding is right at each instruction.

/// What a function that takes does with the header's content, in `rdx`, before the commit of that register.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_entry_take {
    () => {
        "sub rdx, 8\njb 6f\nmov rax, qword ptr [rdx]\ntest rax, rax\njz 6f\n"
    };
}

/// What one does that puts.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_entry_put {
    () => {
        "test edx, {last}\njz 6f\ncmp qword ptr [rdx - 8], rdi\nje 6f\nmov qword ptr [rdx], rdi\nadd rdx, 8\n"
    };
}

/// The sequence of an [`Entry`](crate::sequence::Entry), for ids in the field at `$field`. The displacement is in `rcx`; the header's
/// address is in `r8`. The arguments stay in their registers, so they survive an abort, and the slow path has them; what
/// leaves the section for that, at 6, has changed nothing.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_entry_sequence {
    ($field:literal, $section:ident) => {
        concat!(
            $crate::__rseq_descriptor!(),
            "mov rdx, qword ptr [rip + {entry}]\n",
            "lea rax, [rip + 9b]\n",
            "mov qword ptr fs:[rdx + 8], rax\n", // arm
            "2:\n",
            "movsxd r8, dword ptr fs:[rdx + ",
            $field,
            "]\n",
            "shl r8, {shift}\n",
            "add r8, qword ptr [rip + {entry} + 8]\n",
            "lea r8, [r8 + rcx * {scale}]\n",
            "mov rdx, qword ptr [r8]\n",
            $crate::$section!(),
            "mov qword ptr [r8], rdx\n", // commit
            "3:\n",
            "ret\n",
            $crate::__rseq_on_abort!("jmp 6f"),
        )
    };
}

/// A front with its sequence, and behind it an aside with one of its own: to go back would be one jump more.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_entry_half {
    ($field:literal, $section:ident, $front:expr $(, $aside:expr)?) => {
        concat!(
            $front,
            "\n",
            $crate::__rseq_entry_sequence!($field, $section),
            $($aside, "\n", $crate::__rseq_entry_sequence!($field, $section),)?
            "6:\n",
        )
    };
}

/// A function of [`entry_pop!`](crate::entry_pop) or [`entry_push!`](crate::entry_push). What the sequences of one field do
/// not do, those of the other try, and go on to the slow path at once where the ids are not in their field.
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_entry {
    ([$($before:tt)*] $name:ident [$($signature:tt)*] [$otherwise:expr] [$entry:path] [$shift:expr] [$scale:expr] [$slow:path]
     [$section:ident] [$front:expr $(, $aside:expr)?] [$second:expr $(, $other:expr)?] [$($operands:tt)*]) => {
        #[unsafe(naked)]
        $($before)* fn $name $($signature)* {
            core::arch::naked_asm!(
                ".cfi_startproc",
                $crate::__rseq_entry_half!("24", $section, $front $(, $aside)?),
                $crate::__rseq_entry_half!("4", $section, $second $(, $other)?),
                "jmp {slow}",
                // Each function has a section of its own, so this aligns its start.
                ".p2align 6",
                ".cfi_endproc",
                entry = sym $entry,
                shift = const $shift,
                scale = const $scale,
                slow = sym $slow,
                aborts = sym $crate::sequence::ABORTS,
                $($operands)*
            )
        }
    };
}
