//! Whole functions in assembly around a sequence of [`Stacks`](super::Stacks), for callers that no compiler inlines into:
//! the functions of a C library.

use super::Vcpu;
use crate::arch;
use crate::mode::IndexKind;
use core::sync::atomic::{AtomicIsize, AtomicPtr, AtomicUsize, Ordering};

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[path = "entry_x86_64.rs"]
mod imp;

/// What whole functions in assembly read of a table: [`entry_pop!`](crate::entry_pop) and
/// [`entry_push!`](crate::entry_push) make them.
///
/// Such a function finds the area by its distance from the thread pointer, in one load, where [`Stacks`](super::Stacks) adds two numbers
/// so as to be safe before the table is open. So it must not come that far before: it begins with a comparison with a
/// limit, which is 0 until then. And it knows which field of the area is the id: it has one sequence for `mm_cid` and one
/// for `cpu_id`, with limits of their own, of which one stays 0. That saves another load.
///
/// The fields are read by the assembly, so their order is fixed.
#[repr(C)]
#[derive(Debug)]
pub struct Entry {
    area: AtomicIsize,
    base: AtomicPtr<u8>,
    /// For ids in `mm_cid`, or where that would be if a private id were it; and for those in `cpu_id`.
    limits: [[AtomicUsize; 2]; 2],
    /// Which of them.
    field: AtomicUsize,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Entry, area) == 0);
    assert!(offset_of!(Entry, base) == 8);
    assert!(offset_of!(Entry, limits) == 16);
};

impl Default for Entry {
    fn default() -> Self {
        Self::new()
    }
}

impl Entry {
    /// A closed one: its functions go to their slow paths.
    pub const fn new() -> Self {
        Self {
            area: AtomicIsize::new(0),
            base: AtomicPtr::new(core::ptr::null_mut()),
            limits: [const { [const { AtomicUsize::new(0) }; 2] }; 2],
            field: AtomicUsize::new(0),
        }
    }

    /// Says where the ids come from and what displacements count from.
    ///
    /// # Safety
    /// It is closed, and was never open. For `vcpu` and `base` the contract of [`Stacks::open`](super::Stacks::open) holds, or they belong to a
    /// table that [`Stacks::open_private`](super::Stacks::open_private) opened.
    pub unsafe fn prepare(&self, vcpu: Vcpu, base: *mut u8) {
        let by_cpu = vcpu.id_offset == IndexKind::CpuId.offset();
        // The area that would have the id where `mm_cid` is.
        let shift = if by_cpu { 0 } else { vcpu.id_offset - IndexKind::MmCid.offset() };
        self.area.store(arch::own_offset() + vcpu.own_delta + shift as isize, Ordering::Relaxed);
        self.base.store(base, Ordering::Relaxed);
        self.field.store(usize::from(by_cpu), Ordering::Relaxed);
    }

    /// Opens it. `limits` is what the functions compare with.
    ///
    /// # Safety
    /// It is prepared.
    pub unsafe fn open(&self, limits: [usize; 2]) {
        // Who sees a limit sees what was stored before it: processors for which there are such functions perform loads in
        // their order.
        for (limit, value) in self.limits[self.field.load(Ordering::Relaxed) % 2].iter().zip(limits) {
            limit.store(value, Ordering::Release);
        }
    }

    /// Whether it is.
    pub fn is_open(&self) -> bool {
        self.limits.as_flattened().iter().any(|limit| limit.load(Ordering::Relaxed) != 0)
    }

    /// Sends all to the slow paths from now on; see [`Stacks::close`](super::Stacks::close).
    pub fn close(&self) {
        for limit in self.limits.as_flattened() {
            limit.store(0, Ordering::Release);
        }
    }
}

/// A whole function in assembly that takes the topmost pointer of a stack and returns it.
///
/// It has no frame, and where nothing is to be had it goes on to another function of the same parameters as if that had
/// been called instead: one test and a few moves less than what a compiler makes of [`Stacks::pop`](crate::sequence::Stacks::pop). Only on x86-64;
/// elsewhere it is what stands behind the `=`.
///
/// `fronts` are its first part, in assembly of Intel's syntax, for each of the two fields. A front finds out the
/// displacement, from the entry's base and in units of `scale` bytes, into `rcx`, may change `rax` and `rdx`, and has to
/// compare something with a limit of the entry, and to go to `6f` if that is not below: the entry may be closed. The limits
/// are at `{entry} + 16` and `+ 24` for the first front, at `+ 32` and `+ 40` for the second. A second text, after a comma,
/// is an aside: what begins with a label, 7 or 8, to which the front goes for what is rarer. It does the same.
///
/// ```
/// use rseq_sys::sequence::Entry;
/// static ENTRY: Entry = Entry::new();
/// extern "C" fn slow(_displacement: usize) -> *mut u8 {
///     core::ptr::null_mut()
/// }
/// rseq_sys::entry_pop! {
///     /// The topmost pointer at a displacement below the first limit.
///     extern "C" fn take(displacement: usize) -> *mut u8 = slow(displacement);
///     entry ENTRY, shift 12, scale 1, slow slow,
///     fronts [
///         "mov rcx, rdi\n cmp rcx, qword ptr [rip + {entry} + 16]\n jae 6f";
///         "mov rcx, rdi\n cmp rcx, qword ptr [rip + {entry} + 32]\n jae 6f"
///     ],
/// }
/// assert!(take(64).is_null());
/// ```
#[macro_export]
macro_rules! entry_pop {
    ($(#[$meta:meta])* extern $abi:literal fn $name:ident($argument:ident: usize $(, $more:ident: $of:ty)*) -> $result:ty
        = $otherwise:expr;
     entry $entry:path, shift $shift:expr, scale $scale:expr, slow $slow:path,
     fronts [$front:expr $(, $aside:expr)?; $second:expr $(, $other:expr)?], $($operands:tt)*) => {
        $crate::__rseq_entry! {
            [$(#[$meta])* pub extern $abi] $name [($argument: usize $(, $more: $of)*) -> $result] [$otherwise]
            [$entry] [$shift] [$scale] [$slow] [__rseq_entry_take] [$front $(, $aside)?] [$second $(, $other)?] [$($operands)*]
        }
    };
}

/// A whole function in assembly that puts its first argument, an address, on a stack. As [`entry_pop!`](crate::entry_pop);
/// what is said there of displacements and limits holds here, too. `stack` is that of [`Stacks`](crate::sequence::Stacks).
#[macro_export]
macro_rules! entry_push {
    ($(#[$meta:meta])* unsafe extern $abi:literal fn $name:ident($argument:ident: $type:ty $(, $more:ident: $of:ty)*)
        = $otherwise:expr;
     entry $entry:path, shift $shift:expr, scale $scale:expr, stack $stack:expr, slow $slow:path,
     fronts [$front:expr $(, $aside:expr)?; $second:expr $(, $other:expr)?], $($operands:tt)*) => {
        $crate::__rseq_entry! {
            [$(#[$meta])* pub unsafe extern $abi] $name [($argument: $type $(, $more: $of)*)] [$otherwise]
            [$entry] [$shift] [$scale] [$slow] [__rseq_entry_put] [$front $(, $aside)?] [$second $(, $other)?]
            [last = const $stack - 1, $($operands)*]
        }
    };
}

/// Where there are no whole functions in assembly.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(miri))))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_entry {
    ([$($before:tt)*] $name:ident [$($signature:tt)*] [$otherwise:expr] $($rest:tt)*) => {
        $($before)* fn $name $($signature)* {
            $otherwise
        }
    };
}
