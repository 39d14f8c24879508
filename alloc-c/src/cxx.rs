//! The operators `new` and `delete` of C++, in all forms, under their mangled names.
//!
//! A `new` that fails calls the new handler and tries again, until there is none; then the throwing forms throw
//! `std::bad_alloc` and the `nothrow` forms return null. Handler and exception are libstdc++'s. Its two functions are
//! weak references, so that C programs need none; one that comes by `dlopen` is looked up when it is needed.
//!
//! Not done: a handler that throws out of a `nothrow` form ends the process. The sizes and alignments that `delete` is
//! told are not used: the map knows better than a program that deletes through the wrong type.

use alloc_core::c;
use core::ffi::{CStr, c_void};
use core::ptr::null_mut;

// What the linkers know of libstdc++, null where it is not there: all there is in a static program, in which the lookups
// by name find nothing. Stable Rust has no weak references of its own.
core::arch::global_asm!(
    ".weak _ZSt15get_new_handlerv",
    ".weak _ZSt17__throw_bad_allocv",
    ".pushsection .data.rel.ro.rseqalloc_libstdcxx, \"aw\"",
    ".balign 8",
    ".globl rseqalloc_libstdcxx",
    ".hidden rseqalloc_libstdcxx",
    "rseqalloc_libstdcxx:",
    ".8byte _ZSt15get_new_handlerv",
    ".8byte _ZSt17__throw_bad_allocv",
    ".popsection",
);

/// Addresses of functions of libstdc++.
#[repr(C)]
struct Libstdcxx {
    get_new_handler: *mut c_void,
    throw_bad_alloc: *mut c_void,
}

unsafe extern "C" {
    /// What stands above.
    #[link_name = "rseqalloc_libstdcxx"]
    static LINKED: Libstdcxx;
}

/// `std::nothrow_t const &`.
type NoThrow = *const c_void;

/// A function of libstdc++: as it was linked, or by its name. It may have been loaded where the default search does not
/// reach.
fn function(linked: *mut c_void, name: &CStr) -> *mut c_void {
    if !linked.is_null() {
        return linked;
    }
    // SAFETY: a valid name. <https://man7.org/linux/man-pages/man3/dlsym.3.html>
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if !found.is_null() {
        return found;
    }
    let library = c"libstdc++.so.6".as_ptr();
    // SAFETY: loads nothing. <https://man7.org/linux/man-pages/man3/dlopen.3.html>
    let library = unsafe { libc::dlopen(library, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return null_mut();
    }
    // SAFETY: as above; the handle is kept, as the process is about to throw.
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

/// Calls the new handler; false if there is none.
fn handled() -> bool {
    type Handler = unsafe extern "C-unwind" fn();
    type GetHandler = unsafe extern "C" fn() -> Option<Handler>;
    // SAFETY: linkers wrote it, and nobody else does.
    let linked = unsafe { LINKED.get_new_handler };
    let get = function(linked, c"_ZSt15get_new_handlerv");
    if get.is_null() {
        return false;
    }
    // SAFETY: `std::get_new_handler()` has this type.
    let get: GetHandler = unsafe { core::mem::transmute(get) };
    // SAFETY: may be called at any time.
    match unsafe { get() } {
        Some(handler) => {
            // SAFETY: what the program installed to be called now; it may throw.
            unsafe { handler() };
            true
        }
        None => false,
    }
}

/// Throws `std::bad_alloc`.
fn throw() -> ! {
    type Throw = unsafe extern "C-unwind" fn() -> !;
    // SAFETY: linkers wrote it, and nobody else does.
    let linked = unsafe { LINKED.throw_bad_alloc };
    let throw = function(linked, c"_ZSt17__throw_bad_allocv");
    if throw.is_null() {
        let line = "rseq-alloc: operator new: out of memory, and no libstdc++ to throw std::bad_alloc with\n";
        crate::text::say(line.as_bytes());
        // SAFETY: always sound.
        unsafe { libc::abort() };
    }
    // SAFETY: `std::__throw_bad_alloc()` has this type.
    let throw: Throw = unsafe { core::mem::transmute(throw) };
    // SAFETY: the frames in between have nothing to drop, and all may be unwound.
    unsafe { throw() }
}

/// A block for a `new` whose first attempt failed, or null when there is no handler any more.
#[cold]
#[inline(never)]
fn with_handler(size: usize, align: usize) -> *mut c_void {
    while handled() {
        let block = c::allocate_aligned(size, align);
        if !block.is_null() {
            return block.cast();
        }
    }
    null_mut()
}

/// [`with_handler`], and an exception instead of null.
#[cold]
#[inline(never)]
fn or_throw(size: usize, align: usize) -> *mut c_void {
    let block = with_handler(size, align);
    if block.is_null() { throw() } else { block }
}

/// The forms of `new` without alignment: name, parameters, and what comes after a first attempt in vain.
macro_rules! new {
    ($($(#[$doc:meta])+ $name:ident($($nothrow:ident)?) = $slow:ident, $then:ident;)+) => {$(
        alloc_core::take_function! {
            $(#[$doc])+
            // SAFETY: this is the function that C++ programs mean by the name.
            #[unsafe(no_mangle)]
            extern "C-unwind" fn $name(size: usize $(, $nothrow: NoThrow)?) -> *mut c_void,
            slow $slow
        }

        extern "C-unwind" fn $slow(size: usize $(, $nothrow: NoThrow)?) -> *mut c_void {
            let block = c::allocate(size);
            if block.is_null() { $then(size, c::ALIGN) } else { block.cast() }
        }
    )+};
}

new! {
    /// `operator new(size_t)`
    _Znwm() = new_slow, or_throw;
    /// `operator new[](size_t)`
    _Znam() = new_array_slow, or_throw;
    /// `operator new(size_t, nothrow)`
    _ZnwmRKSt9nothrow_t(_nothrow) = new_nothrow_slow, with_handler;
    /// `operator new[](size_t, nothrow)`
    _ZnamRKSt9nothrow_t(_nothrow) = new_array_nothrow_slow, with_handler;
}

/// The forms of `new` with an alignment.
macro_rules! new_aligned {
    ($($(#[$doc:meta])+ $name:ident($($nothrow:ident)?) = $then:ident;)+) => {$(
        $(#[$doc])+
        // SAFETY: this is the function that C++ programs mean by the name.
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $name(size: usize, align: usize $(, $nothrow: NoThrow)?) -> *mut c_void {
            let block = c::allocate_aligned(size, align);
            if block.is_null() { $then(size, align) } else { block.cast() }
        }
    )+};
}

new_aligned! {
    /// `operator new(size_t, align_val_t)`
    _ZnwmSt11align_val_t() = or_throw;
    /// `operator new[](size_t, align_val_t)`
    _ZnamSt11align_val_t() = or_throw;
    /// `operator new(size_t, align_val_t, nothrow)`
    _ZnwmSt11align_val_tRKSt9nothrow_t(_nothrow) = with_handler;
    /// `operator new[](size_t, align_val_t, nothrow)`
    _ZnamSt11align_val_tRKSt9nothrow_t(_nothrow) = with_handler;
}

/// The forms of `delete`, which are all the same.
macro_rules! delete {
    ($($(#[$doc:meta])+ $name:ident($($parameter:ident: $type:ty),*);)+) => {$(
        alloc_core::put_function! {
            $(#[$doc])+
            ///
            /// # Safety
            /// `block` is null or a live block of this heap, and not used any more.
            // SAFETY: this is the function that C++ programs mean by the name.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(block: *mut c_void $(, $parameter: $type)*),
            slow c::free_slow
        }
    )+};
}

delete! {
    /// `operator delete(void *)`
    _ZdlPv();
    /// `operator delete[](void *)`
    _ZdaPv();
    /// `operator delete(void *, size_t)`
    _ZdlPvm(_size: usize);
    /// `operator delete[](void *, size_t)`
    _ZdaPvm(_size: usize);
    /// `operator delete(void *, nothrow)`
    _ZdlPvRKSt9nothrow_t(_nothrow: NoThrow);
    /// `operator delete[](void *, nothrow)`
    _ZdaPvRKSt9nothrow_t(_nothrow: NoThrow);
    /// `operator delete(void *, align_val_t)`
    _ZdlPvSt11align_val_t(_align: usize);
    /// `operator delete[](void *, align_val_t)`
    _ZdaPvSt11align_val_t(_align: usize);
    /// `operator delete(void *, size_t, align_val_t)`
    _ZdlPvmSt11align_val_t(_size: usize, _align: usize);
    /// `operator delete[](void *, size_t, align_val_t)`
    _ZdaPvmSt11align_val_t(_size: usize, _align: usize);
    /// `operator delete(void *, align_val_t, nothrow)`
    _ZdlPvSt11align_val_tRKSt9nothrow_t(_align: usize, _nothrow: NoThrow);
    /// `operator delete[](void *, align_val_t, nothrow)`
    _ZdaPvSt11align_val_tRKSt9nothrow_t(_align: usize, _nothrow: NoThrow);
}
