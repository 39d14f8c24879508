//! `malloc` and its relatives: what `stdlib.h` and `malloc.h` declare.
//!
//! As in glibc: a size of 0 gives a block of its own; `realloc(p, 0)` frees and returns null; more than `PTRDIFF_MAX`
//! bytes cannot be had; failures set `errno` to `ENOMEM`, wrong alignments to `EINVAL`; `free` leaves `errno` alone.
//! Unlike glibc before 2.38, `aligned_alloc` refuses alignments that are no powers of two, as C17 allows.

use alloc_core::c::{self, ALIGN};
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

/// Null, after `errno` was set to `error`.
#[cold]
pub(crate) fn failed(error: c_int) -> *mut c_void {
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() = error };
    null_mut()
}

/// The size of an OS page.
fn page_size() -> usize {
    // SAFETY: always sound; does not allocate. <https://man7.org/linux/man-pages/man3/sysconf.3.html>
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

alloc_core::take_function! {
    /// `size` bytes. <https://man7.org/linux/man-pages/man3/malloc.3.html>
    // SAFETY: this is the function that programs mean by the name.
    #[unsafe(no_mangle)]
    extern "C" fn malloc(size: usize) -> *mut c_void,
    slow c::allocate_slow
}

/// `count` times `size` bytes, all zero.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(bytes) => c::allocate_zeroed(bytes).cast(),
        None => failed(libc::ENOMEM),
    }
}

alloc_core::put_function! {
    /// Frees a block; null is nothing.
    ///
    /// # Safety
    /// `block` is null or a live block of this heap, and not used any more.
    // SAFETY: as for `malloc`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn free(block: *mut c_void),
    slow c::free_slow
}

/// [`free`], as of C23. The size is not used: the map is right where a program is not.
///
/// # Safety
/// As for [`free`].
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the contract of this function.
    unsafe { c::free(block.cast()) }
}

/// [`free`], as of C23.
///
/// # Safety
/// As for [`free`].
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the contract of this function.
    unsafe { c::free(block.cast()) }
}

/// Changes the size of a block, or allocates if there is none. A size of 0 frees and returns null.
///
/// # Safety
/// `block` is null or a live block of this heap; unless null comes back for a size above 0, it is not used any more.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return c::allocate(size).cast();
    }
    if size == 0 {
        // SAFETY: the contract of this function.
        unsafe { c::free(block.cast()) };
        return null_mut();
    }
    // SAFETY: the contract of this function.
    unsafe { c::resize(block.cast(), size).cast() }
}

/// [`realloc`] to `count` times `size` bytes.
///
/// # Safety
/// As for [`realloc`].
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the contract of this function.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => failed(libc::ENOMEM),
    }
}

/// Stores a block aligned to `align`, or returns what is wrong and stores nothing; `errno` stays as it is.
///
/// # Safety
/// `result` may be written to.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(result: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    // SAFETY: errno of this thread.
    let errno = unsafe { *libc::__errno_location() };
    let block = c::allocate_aligned(size, align);
    if block.is_null() {
        failed(errno);
        return libc::ENOMEM;
    }
    // SAFETY: the contract of this function.
    unsafe { result.write(block.cast()) };
    0
}

/// A block aligned to `align`, a power of two. Any size will do, as since C17.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        return failed(libc::EINVAL);
    }
    c::allocate_aligned(size, align).cast()
}

/// A block aligned to `align`, or to the next power of two above it.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    if align > 1 << (usize::BITS - 1) {
        return failed(libc::EINVAL);
    }
    c::allocate_aligned(size, align).cast()
}

/// A block aligned to an OS page.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    c::allocate_aligned(size, page_size()).cast()
}

/// Whole OS pages, at least one.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = page_size();
    match size.max(1).checked_next_multiple_of(page) {
        Some(bytes) => c::allocate_aligned(bytes, page).cast(),
        None => failed(libc::ENOMEM),
    }
}

/// Bytes that may be used of a block, at least those asked for; 0 for null.
///
/// # Safety
/// `block` is null or a live block of this heap.
// SAFETY: as for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    c::usable_size(block.cast())
}

// Without room for this, `long double` and vector types would be misaligned.
const _: () = assert!(ALIGN == align_of::<libc::max_align_t>());
