//! The C library of `foreign/`, as Rust sees it. What each function does stands in `foreign/foreign.c`.
//!
//! The unsafe ones are those whose sequences need an area that is registered for the calling thread.

use std::ffi::{c_int, c_uint, c_void};

use rseq_sys::Errno;

/// Sums over all CPUs, and what the sequences met.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Totals {
    pub(crate) counted: u64,
    pub(crate) nodes: u64,
    pub(crate) aborts: u64,
    /// How often `rseq_cs` still held one of the library's own descriptors when a sequence of it was to begin.
    pub(crate) found_own: u64,
    /// How often it held somebody else's.
    pub(crate) found_others: u64,
    pub(crate) cpus: u64,
}

mod c {
    use super::{Totals, c_int, c_uint, c_void};

    // SAFETY: the signatures are those of foreign.c; the functions declared safe have no preconditions.
    unsafe extern "C" {
        pub(super) safe fn foreign_use_offset(offset: isize);
        pub(super) safe fn foreign_has_area() -> c_int;
        pub(super) safe fn foreign_is_registrar() -> c_int;
        pub(super) safe fn foreign_register() -> c_int;
        pub(super) safe fn foreign_unregister() -> c_int;
        pub(super) safe fn foreign_still_registered() -> c_int;
        pub(super) safe fn foreign_aborts() -> u64;
        pub(super) fn foreign_count(spin: u32);
        pub(super) fn foreign_move_node() -> c_int;
        pub(super) fn foreign_disarm();
        pub(super) fn foreign_prepare(cpu: u32) -> c_uint;
        pub(super) fn foreign_totals(to: *mut Totals);
        pub(super) fn foreign_start(
            thread: *mut libc::pthread_t,
            body: extern "C" fn(*mut c_void),
            argument: *mut c_void,
        ) -> c_int;
    }
}

fn answer(errno: c_int) -> Result<(), Errno> {
    if errno == 0 { Ok(()) } else { Err(Errno(errno)) }
}

/// Tells the library where the area of each thread lies, from its thread pointer, should it find none by itself.
pub(crate) fn use_offset(offset: isize) {
    c::foreign_use_offset(offset);
}

/// Whether the calling thread has an area that the library can use.
pub(crate) fn has_area() -> bool {
    c::foreign_has_area() != 0
}

/// Whether the library registered the calling thread.
pub(crate) fn is_registrar() -> bool {
    c::foreign_is_registrar() != 0
}

/// Registers the calling thread in the library's own area.
pub(crate) fn register() -> Result<(), Errno> {
    answer(c::foreign_register())
}

/// Takes that back.
pub(crate) fn unregister() -> Result<(), Errno> {
    answer(c::foreign_unregister())
}

/// Whether the kernel still has the calling thread registered in the library's own area.
pub(crate) fn still_registered() -> bool {
    c::foreign_still_registered() != 0
}

/// How many of the library's sequences were aborted so far.
pub(crate) fn aborts() -> u64 {
    c::foreign_aborts()
}

/// Counts on the current CPU.
///
/// # Safety
/// [`has_area`] holds for this thread.
pub(crate) unsafe fn count(spin: u32) {
    // SAFETY: the contract of this function.
    unsafe { c::foreign_count(spin) }
}

/// Takes a node and puts it back; false if there was none.
///
/// # Safety
/// [`has_area`] holds for this thread.
pub(crate) unsafe fn move_node() -> bool {
    // SAFETY: the contract of this function.
    match unsafe { c::foreign_move_node() } {
        0 => false,
        1 => true,
        _ => integration::die!("foreign: a node of the C library's lists was held by two at once"),
    }
}

/// Clears `rseq_cs`.
///
/// # Safety
/// [`has_area`] holds for this thread.
pub(crate) unsafe fn disarm() {
    // SAFETY: the contract of this function.
    unsafe { c::foreign_disarm() }
}

/// Puts all nodes on one list; their number.
///
/// # Safety
/// Once, before any thread counts.
pub(crate) unsafe fn prepare(cpu: u32) -> u64 {
    // SAFETY: the contract of this function.
    u64::from(unsafe { c::foreign_prepare(cpu) })
}

/// The sums.
///
/// # Safety
/// No thread counts any more.
pub(crate) unsafe fn totals() -> Totals {
    let mut totals = Totals::default();
    // SAFETY: the contract of this function; the pointer is valid.
    unsafe { c::foreign_totals(&raw mut totals) };
    totals
}

/// A thread that the library started, and registered before anything else ran in it.
pub(crate) struct Thread(libc::pthread_t);

impl Thread {
    /// Starts one that calls `body` with `argument`.
    pub(crate) fn start(body: extern "C" fn(*mut c_void), argument: usize) -> Self {
        // SAFETY: a number with glibc, a pointer with musl; all zero is a value of both.
        let mut thread: libc::pthread_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is valid for the call; the argument is a number.
        let started = answer(unsafe { c::foreign_start(&raw mut thread, body, argument as *mut c_void) });
        started.unwrap_or_else(|errno| panic!("the C library starts no thread: {errno}"));
        Self(thread)
    }

    /// Waits for its end.
    pub(crate) fn join(self) {
        // SAFETY: started once, joined once.
        assert_eq!(unsafe { libc::pthread_join(self.0, std::ptr::null_mut()) }, 0, "pthread_join");
    }
}
