//! What concerns the whole process: `vfork`, and what happens when the library is loaded.

use core::ffi::{c_char, c_int};

/// `fork`. The child of a real `vfork` runs on its parent's memory and thread-locals but without its registration with
/// the kernel's restartable sequences: an allocation there would use a vCPU's cache unprotected. The parent goes on at
/// once, not when the child ends, which POSIX allows.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub extern "C" fn vfork() -> c_int {
    // SAFETY: always sound. <https://man7.org/linux/man-pages/man2/fork.2.html>
    unsafe { libc::fork() }
}

/// Decides the mode and installs the fork handlers before any other library's constructor runs: the linker is told so
/// (`-z initfirst`). Handlers that are installed later run before the allocator's locks are taken, and may allocate.
///
/// The C library sets `environ` in a constructor of its own, so it is set here, to the same, for the options to be
/// seen.
#[cfg(target_env = "gnu")]
extern "C" fn start(_arguments: c_int, _argument: *mut *mut c_char, environment: *mut *mut c_char) {
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: glibc passes the environment to constructors; no other thread runs at that time that could use it.
    unsafe {
        if environ.is_null() {
            environ = environment;
        }
    }
    alloc_core::c::start();
}

/// Decides the mode and installs the fork handlers. Other C libraries pass nothing to constructors.
#[cfg(not(target_env = "gnu"))]
extern "C" fn start(_: c_int, _: *mut *mut c_char, _: *mut *mut c_char) {
    alloc_core::c::start();
}

// SAFETY: the linker collects functions in this section, and the dynamic linker calls them once.
#[unsafe(link_section = ".init_array")]
#[used]
static START: extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = start;
