//! The library's own functions, declared in `include/rseqalloc.h`. None of them allocates.

use crate::text::Text;
use alloc_core::Stats;
use core::ffi::{CStr, c_char, c_int};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

/// What [`rseqalloc_mode`] returns once the mode is decided. Every call writes the same bytes.
static MODE: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

/// What the caches belong to and why, as text that stays valid. Never null.
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub extern "C" fn rseqalloc_mode() -> *const c_char {
    let Some(mode) = alloc_core::c::decided_mode() else {
        return c"arenas: the mode is being decided".as_ptr();
    };
    let mut buffer = [0; MODE.len() - 1];
    let mut text = Text::new(&mut buffer);
    // Writing to a `Text` does not fail.
    let _ = write!(text, "{mode}");
    for (to, &from) in MODE.iter().zip(text.bytes()) {
        to.store(from, Ordering::Relaxed);
    }
    MODE.as_ptr().cast()
}

/// One line of figures, as `snprintf` writes it: cut to `size` bytes with a 0 at the end. Returns the length without
/// that of the whole.
///
/// # Safety
/// `buffer` may be written to for `size` bytes, or `size` is 0.
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rseqalloc_stats_text(buffer: *mut c_char, size: usize) -> usize {
    // SAFETY: the contract of this function.
    unsafe { print(buffer, size, format_args!("{}", alloc_core::stats())) }
}

/// As [`rseqalloc_stats_text`], all figures as one JSON object. Bytes, or counts where the name says so.
///
/// # Safety
/// As for [`rseqalloc_stats_text`].
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rseqalloc_stats_json(buffer: *mut c_char, size: usize) -> usize {
    // SAFETY: the contract of this function.
    unsafe { print(buffer, size, format_args!("{}", Json(&alloc_core::stats()))) }
}

/// Gives everything that is free back to the operating system; returns the bytes.
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub extern "C" fn rseqalloc_purge() -> usize {
    alloc_core::purge()
}

/// Changes options while the process runs: `decay=`, `budget=`, `cache=`, `background=`, `soft_limit=` and `hard_limit=` as in
/// the environment variable `RSEQ_ALLOC`. Returns 0, or `EINVAL` if a part made no sense or came too late (`index=` and `thp=`, which the
/// first allocation decides); such a part is named on file descriptor 2, and the others apply.
///
/// # Safety
/// `options` is a C string.
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rseqalloc_set_options(options: *const c_char) -> c_int {
    // SAFETY: the contract of this function.
    match alloc_core::c::set_options(unsafe { CStr::from_ptr(options) }.to_bytes()) {
        Ok(()) => 0,
        Err(alloc_core::c::Refused) => libc::EINVAL,
    }
}

/// Writes `what` as `snprintf` does.
///
/// # Safety
/// `buffer` may be written to for `size` bytes, or `size` is 0.
unsafe fn print(buffer: *mut c_char, size: usize, what: fmt::Arguments<'_>) -> usize {
    let mut none = [];
    let buffer: &mut [u8] = if size == 0 {
        &mut none
    } else {
        // SAFETY: the contract of this function; bytes of any content are good for writing.
        unsafe { core::slice::from_raw_parts_mut(buffer.cast(), size) }
    };
    let (text, end) = match buffer.split_last_mut() {
        Some((end, text)) => (text, Some(end)),
        None => (Default::default(), None),
    };
    let mut text = Text::new(text);
    // Writing to a `Text` does not fail.
    let _ = text.write_fmt(what);
    let len = text.len();
    if let Some(end) = end {
        *end = 0;
    }
    if let Some(end) = buffer.get_mut(len) {
        *end = 0;
    }
    len
}

/// See [`rseqalloc_stats_json`].
struct Json<'a>(&'a Stats);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Json(stats) = self;
        // The mode's text has neither quotes nor backslashes.
        write!(f, "{{\"mode\":\"{}\"", stats.mode)?;
        macro_rules! fields {
            ($($field:ident)+) => {
                $(write!(f, concat!(",\"", stringify!($field), "\":{}"), stats.$field)?;)+
            };
        }
        fields! {
            allocated waste active resident metadata mapped counted large_mappings reserved returned returned_in_spans
            huge_pages
            cached_shards cached_depot cached_central cached_pages cached_large cache_room cache_limit shards arenas_used
            magazine_exchanges depot_exchanges depot_retries central_locks page_heap_locks refills flushes
            aborts give_ups bypasses drains idle_drains cache_limit_hits cache_limit_drains arena_moves
            soft_limit hard_limit soft_limit_hits hard_limit_hits soft_limit_purges
        }
        f.write_str("}")
    }
}
