//! What the peers' libraries answer when they are asked who they are.

/// The version that the library was built as, for instance "5.3.0-0-g54eaed1d8b56b1aa528be3bdd1877e59c56fa90c".
#[cfg(feature = "jemalloc")]
pub(crate) fn jemalloc_version() -> String {
    use std::ffi::{CStr, c_char};
    let mut version: *const c_char = std::ptr::null();
    let mut size = size_of_val(&version);
    // SAFETY: the name is a C string, and the place is as long as the size says.
    // <https://jemalloc.net/jemalloc.3.html#version>
    let failed = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"version".as_ptr(),
            (&raw mut version).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    if failed != 0 || version.is_null() {
        return format!("crate {}", env!("VERSION_tikv_jemalloc_sys"));
    }
    // SAFETY: jemalloc gives a pointer to a static C string.
    unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned()
}

#[cfg(any(feature = "mimalloc3", feature = "mimalloc2"))]
pub(crate) fn mimalloc_version() -> String {
    // Declared here, since the crate's own declaration comes with a feature that also changes what is built.
    unsafe extern "C" {
        safe fn mi_version() -> std::ffi::c_int;
    }
    // The declaration alone does not link the library.
    use libmimalloc_sys as _;
    crate_version(mi_version())
}

/// Thousands are the major version before 3.3, ten thousands from then on; both count a hundred patches.
#[cfg(any(feature = "mimalloc3", feature = "mimalloc2"))]
fn crate_version(number: std::ffi::c_int) -> String {
    let scale = if number >= 10_000 { 100 } else { 10 };
    let minor = if number >= 10_000 { number / 100 % 100 } else { number / 10 % 10 };
    let patch = if number >= 10_000 { number % 100 } else { number % 10 };
    format!("{}.{minor}.{patch} (crate {})", number / (scale * scale), env!("VERSION_libmimalloc_sys"))
}

#[cfg(feature = "tcmalloc")]
mod tcmalloc {
    // Declared by tcmalloc for itself. Nobody else refers to the first, and without a reference the linker drops the
    // object that switches its caches to those of CPUs.
    unsafe extern "C" {
        fn TCMalloc_Internal_ForceCpuCacheActivation();
        safe fn MallocExtension_Internal_GetPerCpuCachesActive() -> bool;
    }

    #[used]
    static FORCE: unsafe extern "C" fn() = TCMalloc_Internal_ForceCpuCacheActivation;

    pub(crate) fn mode() -> String {
        // The first allocation decides, and it may not have been made.
        drop(std::hint::black_box(Box::new(0_u64)));
        let mode = if MallocExtension_Internal_GetPerCpuCachesActive() { "per-CPU" } else { "per-thread" };
        mode.to_owned()
    }
}

#[cfg(feature = "tcmalloc")]
pub(crate) use tcmalloc::mode as tcmalloc_mode;
