//! What `malloc.h` has for asking and tuning: `mallinfo`, `malloc_stats`, `malloc_info`, `malloc_trim`, `mallopt`.
//!
//! The names of the figures are glibc's, their meaning the nearest that there is here. Nothing here allocates;
//! `malloc_info` writes through the stream it is given, which may.

use crate::text::{self, Text};
use alloc_core::{c, stats};
use core::ffi::c_int;
use core::fmt::Write;
use core::ptr::null_mut;

/// The ten figures, in fields of the type `$figure`.
macro_rules! figures {
    ($(#[$doc:meta])+ $name:ident of $figure:ty) => {
        $(#[$doc])+
        ///
        /// | field | meaning here |
        /// |---|---|
        /// | `arena` | bytes that may be resident without those of large mappings |
        /// | `hblks`, `hblkhd` | large mappings, those kept for reuse included, and their bytes |
        /// | `uordblks`, `fordblks` | bytes in the hands of the program, and bytes free in caches, spans and pages |
        /// | `keepcost` | bytes that `malloc_trim` is sure to give back: free pages and mappings kept for reuse |
        ///
        /// The others are 0.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        #[expect(missing_docs, reason = "in the table above")]
        pub struct $name {
            pub arena: $figure,
            pub ordblks: $figure,
            pub smblks: $figure,
            pub hblks: $figure,
            pub hblkhd: $figure,
            pub usmblks: $figure,
            pub fsmblks: $figure,
            pub uordblks: $figure,
            pub fordblks: $figure,
            pub keepcost: $figure,
        }
    };
}

figures! {
    /// `struct mallinfo2`.
    Wide of usize
}
figures! {
    /// `struct mallinfo`. Larger figures than `INT_MAX` read as that.
    Narrow of c_int
}

/// The figures as of now.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> Wide {
    let (stats, large) = (stats(), c::large());
    let large_bytes = large.live + large.cached;
    Wide {
        arena: stats.resident.saturating_sub(large_bytes),
        hblks: large.mappings,
        hblkhd: large_bytes,
        uordblks: stats.allocated,
        fordblks: stats.cached_shards
            + stats.cached_depot
            + stats.cached_central
            + stats.cached_pages
            + stats.cached_large,
        keepcost: stats.cached_pages + stats.cached_large,
        ..Wide::default()
    }
}

/// [`mallinfo2`] as far as it fits.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> Narrow {
    let wide = mallinfo2();
    let narrow = |figure: usize| c_int::try_from(figure).unwrap_or(c_int::MAX);
    Narrow {
        arena: narrow(wide.arena),
        hblks: narrow(wide.hblks),
        hblkhd: narrow(wide.hblkhd),
        uordblks: narrow(wide.uordblks),
        fordblks: narrow(wide.fordblks),
        keepcost: narrow(wide.keepcost),
        ..Narrow::default()
    }
}

/// Writes mode and figures to file descriptor 2, one line each.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let stats = stats();
    let mut buffer = [0; 2048];
    let mut text = Text::new(&mut buffer);
    // Writing to a `Text` does not fail.
    let _ = write!(text, "rseq-alloc: {}\nrseq-alloc: {stats}\n", stats.mode);
    text::say(text.bytes());
}

/// The value in glibc's and musl's `pthread.h`.
const PTHREAD_CANCEL_DISABLE: c_int = 1;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// Writes the figures as XML in glibc's outer form, version `rseqalloc-1`. `options` must be 0. Returns 0, `EINVAL`, or
/// the `errno` of a stream that cannot be written to. A cancelled thread ends later: nothing here may be unwound.
///
/// # Safety
/// `stream` is an open stream.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if options != 0 {
        return libc::EINVAL;
    }
    let (stats, large) = (stats(), c::large());
    let mut buffer = [0; 2048];
    let mut text = Text::new(&mut buffer);
    // The mode's text has no characters that XML would need escaped. Writing to a `Text` does not fail.
    let _ = write!(
        text,
        "<malloc version=\"rseqalloc-1\">\n<mode>{}</mode>\n\
         <system type=\"current\" size=\"{}\"/>\n<aspace type=\"total\" size=\"{}\"/>\n\
         <total type=\"allocated\" size=\"{}\"/>\n<total type=\"mmap\" count=\"{}\" size=\"{}\"/>\n\
         <total type=\"cached\" size=\"{}\"/>\n<total type=\"waste\" size=\"{}\"/>\n\
         <total type=\"returned\" size=\"{}\"/>\n<total type=\"metadata\" size=\"{}\"/>\n\
         <total type=\"mapped\" size=\"{}\"/>\n<limit type=\"soft\" hits=\"{}\" size=\"{}\"/>\n\
         <limit type=\"hard\" hits=\"{}\" size=\"{}\"/>\n</malloc>\n",
        stats.mode,
        stats.resident,
        stats.reserved,
        stats.allocated,
        large.mappings,
        large.live,
        mallinfo2().fordblks,
        stats.waste,
        stats.returned,
        stats.metadata,
        stats.mapped,
        stats.soft_limit_hits,
        stats.soft_limit,
        stats.hard_limit_hits,
        stats.hard_limit,
    );
    let bytes = text.bytes();
    let mut state = 0;
    // SAFETY: always sound. <https://man7.org/linux/man-pages/man3/pthread_setcancelstate.3.html>
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut state) };
    // SAFETY: the text is valid for its length, the stream by contract.
    // <https://man7.org/linux/man-pages/man3/fread.3.html>
    let written = unsafe { libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), stream) };
    // SAFETY: as above.
    unsafe { pthread_setcancelstate(state, null_mut()) };
    if written == bytes.len() {
        return 0;
    }
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() }
}

/// Gives everything that is free back to the operating system; nothing is kept for `pad`. 1 if there was anything.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(alloc_core::purge() > 0)
}

/// Bionic's name for how long freed memory is kept: 0 for not at all, 1 for the default.
const M_DECAY_TIME: c_int = -100;
/// Bionic's names for what `malloc_trim` does.
const M_PURGE: c_int = -101;
const M_PURGE_ALL: c_int = -104;

/// Sets what can be set: bionic's `M_DECAY_TIME`, `M_PURGE` and `M_PURGE_ALL`, for which it returns 1. glibc's
/// parameters tune mechanisms that are not here; the answer to those is 0.
// SAFETY: this is the function that programs mean by the name.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(parameter: c_int, value: c_int) -> c_int {
    match (parameter, value) {
        (M_DECAY_TIME, 0 | 1) => c::set_decay(value != 0),
        (M_PURGE | M_PURGE_ALL, _) => {
            alloc_core::purge();
        }
        _ => return 0,
    }
    1
}
