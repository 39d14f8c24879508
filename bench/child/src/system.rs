//! The C library's malloc, or whatever library is preloaded in its place.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

use bench_workloads::outcome::Description;

/// The allocator's type.
pub type Allocator = std::alloc::System;
/// The allocator.
pub const ALLOCATOR: Allocator = std::alloc::System;

/// Finds out who answers by the names that only one of them exports.
pub fn describe() -> Description {
    preloaded().unwrap_or_else(|| {
        // SAFETY: takes nothing and returns a static C string.
        let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
        Description {
            name: "glibc".to_owned(),
            version: version.to_string_lossy().into_owned(),
            ..Description::default()
        }
    })
}

/// The address of a function that the process has, or has not.
fn symbol(name: &CStr) -> Option<*mut libc::c_void> {
    // SAFETY: a C string. <https://man7.org/linux/man-pages/man3/dlsym.3.html>
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

fn preloaded() -> Option<Description> {
    let text = |pointer: *const c_char| {
        // SAFETY: the functions below that are asked return static C strings.
        unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
    };
    if let Some(address) = symbol(c"rseqalloc_mode") {
        // SAFETY: the type that rseqalloc.h declares.
        let mode = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> *const c_char>(address) };
        return Some(Description {
            name: "librseqalloc".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: Some(text(mode())),
            metadata: None,
        });
    }
    if let Some(address) = symbol(c"tc_version") {
        type Version = extern "C" fn(*mut c_int, *mut c_int, *mut *const c_char) -> *const c_char;
        // SAFETY: the type that gperftools/tcmalloc.h declares; null pointers are allowed.
        let version = unsafe { std::mem::transmute::<*mut libc::c_void, Version>(address) };
        return Some(Description {
            name: "gperftools".to_owned(),
            version: text(version(null_mut(), null_mut(), null_mut())).trim_start_matches("gperftools ").to_owned(),
            ..Description::default()
        });
    }
    let address = symbol(c"mi_version")?;
    // SAFETY: the type that mimalloc.h declares.
    let version = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_int>(address) }();
    let version = format!("{}.{}.{}", version / 100, version / 10 % 10, version % 10);
    Some(Description { name: "mimalloc".to_owned(), version, ..Description::default() })
}
