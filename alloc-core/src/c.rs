//! What a C interface is made of: the heap of [`RseqAlloc`](crate::RseqAlloc), reached without layouts.
//!
//! Requests are aligned to 16, so `x = (size - 1) | 15` is the rounded size less one, and `x & !7` the displacement of
//! the header, as in `front`. For such `x` it is always the last bin of a class, so the map can name the bin that a
//! page's blocks go to:
//!
//! ```text
//!   take(size)                                    put(p)
//!     x = (size - 1) | 15                           i = (p - start of the window) >> 13;  not inside: slow
//!     x >= 1024: bin = table[x], if there is one    bin = byte[i] - 1
//!     pop(bin * 8)                                  push(bin * 8, p)
//! ```
//!
//! What belongs to nobody and what is large has the displacement of a header that never has room. That saves the test
//! for both: the push fails, and the slow path asks why.
//!
//! On x86-64 both are whole functions in assembly, which [`take_function!`](crate::take_function) and
//! [`put_function!`](crate::put_function) make under the names that programs know. They have tables of their own, with
//! biases that make the displacements cheap: `(size - 1) & !15` is 8 less than `x & !7`, and the map's byte one more than
//! the bin.
//!
//! Since a free asks the map, blocks of [`RseqAlloc`](crate::RseqAlloc) may be freed here. The other way round the
//! layout's size must lead to the class of the block, which it does for alignments from 16 bytes to 1 MiB, and for any
//! below that if the size is above 64.
//!
//! A free of an address in no span, and of one that is no start of a large block, ends the process at once. A second
//! free, or a pointer into the middle of a block, is seen when and where the crate's documentation says.
//!
//! Exhaustion sets `errno` to `ENOMEM`; nothing else here changes `errno`. What is not done: the checks of arguments
//! that C asks for (alignments that are no powers of two, overflow of products). Options are the defaults, the
//! environment, and [`set_options`].

use crate::fatal::{self, Seen};
use crate::map::window;
pub use crate::options::Refused;
use crate::options::{DEFAULT_DECAY_MS, Options, set_decay_ms};
use crate::shard::gate::{self, fast};
use crate::shard::{STACK, displacement};
use crate::size_class::{MEDIUM_MAX, SMALL_MAX, bin, class, class_of_bin, last_bin_of_class};
use crate::{background, decay, early, front, large, map, mode, setup};
use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};

/// What every block is aligned to: `alignof(max_align_t)` on x86-64 and aarch64.
pub const ALIGN: usize = 16;

static OPTIONS: Options = Options { early: false, ..Options::new() };

#[doc(hidden)]
pub use crate::map::window::WINDOW;
#[doc(hidden)]
pub use crate::shard::gate::{RETURN, TAKE};
#[doc(hidden)]
pub use crate::size_class::MEDIUM_BINS;

/// What the displacements of [`TAKE`] and [`RETURN`] lack and have too much, in bytes.
pub(crate) const TAKE_BIAS: usize = 8;
pub(crate) const RETURN_BIAS: usize = 8;
/// What sizes less one are compared with, the small ones and all that classes serve; and pages of the window.
pub(crate) const TAKE_LIMITS: [usize; 2] = [SMALL_MAX, MEDIUM_MAX];
const RETURN_LIMITS: [usize; 2] = [window::PAGES, 0];

/// Numbers of the assembly below.
#[doc(hidden)]
pub mod numbers {
    use super::{SMALL_MAX, STACK};
    use crate::{shard, size_class};

    pub const SHIFT: u32 = shard::SHARD_SHIFT;
    pub const DEPTH: usize = STACK;
    pub const SMALL: usize = (SMALL_MAX - 1) & !15;
    pub const STEP_SHIFT: usize = size_class::STEP_SHIFT;
    pub const PAGE_SHIFT: usize = size_class::PAGE_SHIFT;
}

/// A function that allocates like [`c::allocate`](crate::c::allocate), without its slow path: where no magazine has a block, or no class serves
/// the size, it ends as `slow`, a function with the same parameters. The first is the size.
///
/// Sizes that are not small lie aside, with a sequence of their own. The table has no bin for small ones, which come there,
/// too, while the entry is being opened.
#[macro_export]
macro_rules! take_function {
    ($(#[$meta:meta])* extern $abi:literal fn $name:ident($size:ident: usize $(, $more:ident: $of:ty)*) -> $result:ty,
     slow $slow:path) => {
        $crate::rseq_sys::entry_pop! {
            $(#[$meta])*
            extern $abi fn $name($size: usize $(, $more: $of)*) -> $result = {
                let block = $crate::c::take($size);
                if block.is_null() { $slow($size $(, $more)*) } else { block.cast() }
            };
            entry $crate::c::TAKE, shift $crate::c::numbers::SHIFT, scale 1, slow $slow,
            fronts [
                $crate::__take_front!("16"), $crate::__take_aside!("24");
                $crate::__take_front!("32"), $crate::__take_aside!("40")
            ],
            small = const $crate::c::numbers::SMALL,
            step_shift = const $crate::c::numbers::STEP_SHIFT,
            bins = sym $crate::c::MEDIUM_BINS,
        }
    };
}

/// A function that frees like [`c::free`](crate::c::free), and ends as `slow`, a function of the block, where no magazine has room or the
/// block belongs to no class. The block is the first parameter, and the others are not used.
#[macro_export]
macro_rules! put_function {
    ($(#[$meta:meta])* unsafe extern $abi:literal fn $name:ident($block:ident: $type:ty $(, $more:ident: $of:ty)*),
     slow $slow:path) => {
        $crate::rseq_sys::entry_push! {
            $(#[$meta])*
            unsafe extern $abi fn $name($block: $type $(, $more: $of)*) = {
                // SAFETY: the contract of this function.
                if !unsafe { $crate::c::put($block.cast()) } {
                    // SAFETY: as above.
                    unsafe { $slow($block) }
                }
            };
            entry $crate::c::RETURN, shift $crate::c::numbers::SHIFT, scale 8, stack $crate::c::numbers::DEPTH, slow $slow,
            fronts [$crate::__put_front!("16"); $crate::__put_front!("32")],
            window = sym $crate::c::WINDOW,
            page_shift = const $crate::c::numbers::PAGE_SHIFT,
        }
    };
}

/// The displacement for a small size.
#[doc(hidden)]
#[macro_export]
macro_rules! __take_front {
    ($limit:literal) => {
        concat!(
            "lea rcx, [rdi - 1]\n",
            "cmp rcx, qword ptr [rip + {entry} + ",
            $limit,
            "]\n",
            "jae 7f\n",
            "and ecx, {small}\n"
        )
    };
}

/// That for any other size of a class.
#[doc(hidden)]
#[macro_export]
macro_rules! __take_aside {
    ($limit:literal) => {
        concat!(
            "7:\n",
            "cmp rcx, qword ptr [rip + {entry} + ",
            $limit,
            "]\n",
            "jae 6f\n",
            "shr ecx, {step_shift}\n",
            "lea rdx, [rip + {bins}]\n",
            "movzx ecx, byte ptr [rdx + rcx]\n",
            "lea ecx, [rcx * 8 - 8]\n"
        )
    };
}

/// The displacement for a block, in words.
#[doc(hidden)]
#[macro_export]
macro_rules! __put_front {
    ($limit:literal) => {
        concat!(
            "mov rax, rdi\n",
            "sub rax, qword ptr [rip + {window}]\n",
            "shr rax, {page_shift}\n",
            "cmp rax, qword ptr [rip + {entry} + ",
            $limit,
            "]\n",
            "jae 6f\n",
            "mov rcx, qword ptr [rip + {window} + 8]\n",
            "movzx ecx, byte ptr [rcx + rax]\n"
        )
    };
}

/// The rounded size less one.
#[inline(always)]
const fn rounded(size: usize) -> usize {
    size.wrapping_sub(1) | (ALIGN - 1)
}

/// Null, after `errno` was set to `ENOMEM`.
#[cold]
fn out_of_memory() -> *mut u8 {
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
    null_mut()
}

/// `block`, with `errno` set if it is null.
fn or_errno(block: *mut u8) -> *mut u8 {
    if block.is_null() { out_of_memory() } else { block }
}

/// Decides the mode and installs the fork handlers, if no allocation has done that.
pub fn start() {
    setup::decide_if_undecided(&OPTIONS);
}

/// A block from the magazine of its bin; null if there is none.
#[inline(always)]
pub fn take(size: usize) -> *mut u8 {
    match bin(rounded(size)) {
        // SAFETY: the displacement is that of a bin; magazines stay mapped for ever.
        Some(bin) => unsafe { fast::pop(displacement(bin)) },
        None => null_mut(),
    }
}

/// `size` bytes aligned to [`ALIGN`]; 16 bytes if `size` is 0. Null, with `errno` set, if they cannot be had.
pub fn allocate(size: usize) -> *mut u8 {
    // The first block comes after this.
    window::want();
    // SAFETY: the alignment is a power of two.
    or_errno(unsafe { front::allocate(&OPTIONS, size.max(1), ALIGN) })
}

/// [`allocate`], as the slow path of a function that [`take_function!`](crate::take_function) makes.
pub extern "C" fn allocate_slow(size: usize) -> *mut c_void {
    allocate(size).cast()
}

/// As [`allocate`], with all bytes zero.
pub fn allocate_zeroed(size: usize) -> *mut u8 {
    // SAFETY: the alignment is a power of two.
    or_errno(unsafe { front::allocate_zeroed(&OPTIONS, size.max(1), ALIGN) })
}

/// As [`allocate`], aligned also to `align`, or the next power of two above it.
pub fn allocate_aligned(size: usize, align: usize) -> *mut u8 {
    let Some(align) = align.max(ALIGN).checked_next_power_of_two() else { return out_of_memory() };
    let size = size.max(1);
    if (size - 1) | (align - 1) < MEDIUM_MAX {
        // SAFETY: the alignment is a power of two.
        return or_errno(unsafe { front::allocate(&OPTIONS, size, align) });
    }
    // Not rounded up to the alignment: a free does not compare the size of a large block with anything.
    or_errno(front::allocate_large(&OPTIONS, size, align).0)
}

/// Puts a block into the magazine of its bin; false if there is no room, or the block belongs to no class.
///
/// # Safety
/// As for [`free`].
#[inline(always)]
pub unsafe fn put(block: *mut u8) -> bool {
    match map::free_displacement(block.addr()) {
        // SAFETY: the displacement is that of a header; a block is not 0.
        Some(displacement) => unsafe { fast::push(displacement, block.expose_provenance()) },
        None => false,
    }
}

/// What the map says of an address; or the class of the early block of [`RseqAlloc`](crate::RseqAlloc) that starts there.
fn class_at(block: usize) -> u8 {
    match map::lookup(block).0 {
        map::NONE => early::class_of(block).map_or(map::NONE, |class| class as u8),
        class => class,
    }
}

/// Frees a block; null is nothing.
///
/// # Safety
/// `block` is null or a live block of this allocator, and not used any more.
pub unsafe fn free(block: *mut u8) {
    // SAFETY: the contract of this function.
    if !unsafe { put(block) } {
        // SAFETY: as above.
        unsafe { free_slow(block.cast()) }
    }
}

/// Finds out why [`put`] did not take a block, and frees it: the slow path of a function that
/// [`put_function!`](crate::put_function) makes.
///
/// # Safety
/// As for [`free`].
pub unsafe extern "C" fn free_slow(block: *mut c_void) {
    let block = block.cast::<u8>();
    let Some(start) = NonNull::new(block) else { return };
    if !RETURN.is_open() && window::is_there() {
        gate::limit_returns(RETURN_LIMITS);
    }
    match class_at(block.addr()) {
        map::NONE => fatal::foreign(block.addr(), Seen::Now),
        // SAFETY: a large block that is looked up before it is believed.
        map::LARGE => match unsafe { large::free(start) } {
            Ok(()) => {
                decay::tick();
                background::nudge();
            }
            Err(large::NotOurs) => fatal::foreign(block.addr(), Seen::Now),
        },
        class => front::free_slow(block, displacement(last_bin_of_class(usize::from(class))), &OPTIONS),
    }
}

/// Bytes that the block may be used for: those of its class, or of its mapping. 0 for null. Ends the process if the
/// address is in no span and no start of a large block.
pub fn usable_size(block: *const u8) -> usize {
    let size = match class_at(block.addr()) {
        _ if block.is_null() => Some(0),
        map::NONE => None,
        map::LARGE => large::usable_size(block.addr()),
        of => Some(class(usize::from(of)).size as usize),
    };
    size.unwrap_or_else(|| fatal::unknown(block.addr()))
}

/// Changes the size of a block, which keeps its contents up to the smaller size. Null, with `errno` set, if that cannot
/// be had; then the block stays as it is. The result is aligned to [`ALIGN`] only.
///
/// A block stays where it is if `size` fits and is more than half of what fits, or leads to the same class. Otherwise
/// blocks from 64 KiB to 1 MiB grow and shrink in place where the pages behind them allow it, large ones grow into what
/// is kept behind them or move by their page tables, and everything else is copied.
///
/// # Safety
/// `block` is a live block of this allocator; if another one comes back it is no longer the caller's.
pub unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    let size = size.max(1);
    let to = bin(rounded(size)).map(class_of_bin);
    let Some(start) = NonNull::new(block) else { return allocate(size) };
    let (from, usable) = match class_at(block.addr()) {
        map::NONE => fatal::foreign(block.addr(), Seen::Now),
        map::LARGE => {
            let Some(len) = large::usable_size(block.addr()) else { fatal::foreign(block.addr(), Seen::Now) };
            (large::class_of(block.addr()), len)
        }
        from => {
            let from = usize::from(from);
            let usable = class(from).size as usize;
            if to == Some(from) || (size <= usable && size > usable / 2) {
                return block;
            }
            (Some(from), usable)
        }
    };
    // SAFETY: the caller's block; the alignment it is promised to have is small.
    let new = match unsafe { front::place_for(&OPTIONS, start, from, to, rounded(size).saturating_add(1), ALIGN) } {
        front::Place::Here(new) => return new.as_ptr(),
        front::Place::There(new) => or_errno(new),
    };
    if !new.is_null() {
        // SAFETY: both are live, disjoint, and at least that long.
        unsafe { new.copy_from_nonoverlapping(block, usable.min(size)) };
        // SAFETY: the contract of this function.
        unsafe { free(block) };
    }
    new
}

/// Whether freed memory is kept for a while, the default, or goes back to the operating system at once.
pub fn set_decay(kept: bool) {
    // Afterwards nothing else changes it.
    start();
    set_decay_ms(if kept { DEFAULT_DECAY_MS } else { 0 });
}

/// Applies `name=value,name=value` as in the environment variable: `decay`, `budget`, `cache`, `background`, `soft_limit`
/// and `hard_limit` can change at any time, `index` and `thp` are decided by the first allocation.
///
/// # Errors
/// If a part made no sense or came too late; it is named on file descriptor 2, and the others apply.
pub fn set_options(text: &[u8]) -> Result<(), Refused> {
    // Afterwards nothing else changes them.
    start();
    crate::options::change(text)
}

/// Bytes and number of the large blocks in use, and bytes of those kept for reuse.
#[derive(Clone, Copy, Debug)]
pub struct Large {
    /// Bytes in use.
    pub live: usize,
    /// Bytes kept.
    pub cached: usize,
    /// Mappings, in use and kept.
    pub mappings: usize,
}

/// What the large blocks hold. Takes one lock for a moment.
pub fn large() -> Large {
    let usage = large::usage();
    Large { live: usage.live_bytes, cached: usage.cached_bytes, mappings: usage.mappings }
}

/// The mode if it is decided, and is not going to change any more.
pub fn decided_mode() -> Option<mode::Mode> {
    start();
    setup::mode()
}
