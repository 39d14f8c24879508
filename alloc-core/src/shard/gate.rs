//! The gate: which vCPU shards exist, and who may use them.
//!
//! There are two tables over the same headers. [`FAST`] is what inlined code compares its id with; [`SHARDS`] is what
//! the slow path uses. Their limits are equal, except that `FAST` is 0 while the gate is closed. It is closed for good
//! when a thread turns up on a slow path that is not registered although the C library registers all of them: under
//! `mm_cid` its id reads as a valid one. That limits the damage and does not undo it: what such a thread did on the
//! inlined path before went unprotected. Under `cpu_id` its id is all ones, and nothing happens. A checked
//! mode would close it too.
//!
//! An id at or beyond the limit leads to the slow path, which initialises the shards up to it and raises the limit. So
//! nothing depends on the number of possible CPUs, on holes between them or on hot-plug. Limits are recomputed under
//! one lock, each time from the shards that exist and from whether the gate is closed.

use super::{SHARD_SHIFT, Shard};
use crate::limit as limits;
use crate::os::{futex::Lock, mapping};
use core::mem::size_of;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use rseq_sys::sequence::{Stacks, Vcpu};

/// What inlined code uses.
pub(crate) static FAST: Stacks<SHARD_SHIFT> = Stacks::new();
/// `pop` and `push` over [`FAST`]: the two sequences of the hit path.
pub(crate) mod fast {
    rseq_sys::stack_functions!(super::FAST, crate::shard::SHARD_SHIFT);
}

/// What the code behind the gate uses.
pub(crate) static SHARDS: Stacks<SHARD_SHIFT> = Stacks::new();

/// Address space for this many shards; more than any kernel configuration has CPUs (8192 on x86-64).
const SHARDS_MAX: usize = 8192;
/// With less than this there is no point in vCPU shards.
const SHARDS_MIN: usize = 64;

/// Start of the shards, and how many there is address space for.
static BASE: AtomicPtr<Shard> = AtomicPtr::new(null_mut());
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// Guards the limits and what they follow from.
static LIMITS: Lock = Lock::new();
/// Whether the gate is closed for good.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Opens both tables for `vcpu`, over address space without any shard yet; false if there is none to be had. The limits
/// are raised by the first call that comes with an id.
pub(crate) fn open(vcpu: Vcpu) -> bool {
    let mut base = BASE.load(Ordering::Relaxed);
    // Not null if an earlier set-up came this far and was cut off, by a fork.
    if base.is_null() {
        let least = SHARDS_MIN * size_of::<Shard>();
        let Some((start, bytes)) = mapping::reserve_up_to(SHARDS_MAX * size_of::<Shard>(), least, mapping::page_size())
        else {
            return false;
        };
        mapping::name(start, bytes, c"rseq-alloc: shards");
        base = start.as_ptr().cast();
        RESERVED.store(bytes / size_of::<Shard>(), Ordering::Relaxed);
        BASE.store(base, Ordering::Relaxed);
    }
    // SAFETY: the limits are raised only once the mode is decided, which is after this; the reservation stays.
    unsafe { SHARDS.open(vcpu, base.cast()) };
    // SAFETY: as above.
    unsafe { FAST.open(vcpu, base.cast()) };
    true
}

/// The shard of a vCPU that is served already.
#[inline]
pub(crate) fn existing(id: u32) -> Option<&'static Shard> {
    if (id as usize) < SHARDS.limit() {
        // SAFETY: shards below the limit are usable memory, initialised, and stay so.
        Some(unsafe { &*BASE.load(Ordering::Relaxed).add(id as usize) })
    } else {
        None
    }
}

/// The shard of a vCPU, made if need be. `None` if there is no memory or the id is none.
#[inline]
pub(crate) fn shard(id: u32) -> Option<&'static Shard> {
    existing(id).or_else(|| raise(id))
}

/// Initialises the shards up to that of `id` and raises the limits.
#[cold]
fn raise(id: u32) -> Option<&'static Shard> {
    let wanted = id as usize + 1;
    if wanted > RESERVED.load(Ordering::Relaxed) {
        return None;
    }
    let _guard = LIMITS.lock();
    let limit = SHARDS.limit();
    if wanted <= limit {
        return existing(id);
    }
    let base = BASE.load(Ordering::Relaxed);
    // Whole OS pages; the shards on the last one that are not asked for stay beyond the limit.
    let os_page = mapping::page_size();
    let from = (limit * size_of::<Shard>()).next_multiple_of(os_page);
    let to = (wanted * size_of::<Shard>()).next_multiple_of(os_page);
    if to > from {
        // SAFETY: inside the reservation, which is a multiple of the OS page.
        let start = unsafe { base.cast::<u8>().add(from) };
        // SAFETY: as above, and not null.
        if !unsafe { mapping::commit(NonNull::new_unchecked(start), to - from) } {
            return None;
        }
    }
    for index in limit..wanted {
        // SAFETY: usable memory now, zeroed by the kernel, for which zero is a value.
        unsafe { &*base.add(index) }.init();
    }
    // Lets no running section see the new limit with the old memory.
    if rseq_sys::membarrier::fence().is_err() && !rseq_sys::LOADS_IN_ORDER {
        return None;
    }
    limits::account((wanted - limit) * size_of::<Shard>());
    // SAFETY: all headers below `wanted` point at the dummy, and a fence (or the order of x86) lies in between.
    unsafe { SHARDS.set_limit(wanted) };
    set_fast_limit();
    existing(id)
}

/// Recomputes what inlined code compares with. Under the lock of the limits.
fn set_fast_limit() {
    let limit = if CLOSED.load(Ordering::Relaxed) { 0 } else { SHARDS.limit() };
    // SAFETY: no larger than the other limit, whose headers are initialised.
    unsafe { FAST.set_limit(limit) };
}

/// Sends every call to the slow path from now on.
#[cold]
pub(crate) fn close_for_good() {
    if CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let _guard = LIMITS.lock();
    CLOSED.store(true, Ordering::Relaxed);
    set_fast_limit();
}

/// Shards in use.
pub(crate) fn shards() -> impl Iterator<Item = &'static Shard> {
    (0..SHARDS.limit()).filter_map(|id| existing(id as u32))
}

/// The lock of the limits, for the fork handlers.
pub(crate) fn lock() -> &'static Lock {
    &LIMITS
}
