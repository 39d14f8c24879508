//! The gate: which vCPU shards exist, and who may use them.
//!
//! The shards lie side by side, one for each id that the kernel may hand out, in memory that reads as zero: a shard
//! without magazines. So nothing depends on how many ids come up, in which order, or on hot-plug; a call with an id that
//! was never seen finds no magazine and comes to the slow path, which makes that shard writable first.
//!
//! There are two tables over the same shards. [`FAST`] is what inlined code uses, [`SHARDS`] what the slow path uses.
//! They are equal, except that `FAST` is closed for good when a thread turns up on a slow path that is not registered
//! although the C library registers all of them: under `mm_cid` its id reads as a valid one. That limits the damage and
//! does not undo it: what such a thread did on the inlined path before went unprotected. Under `cpu_id` its id is
//! negative, and nothing happens.

use super::{SHARD_SHIFT, STACK, Shard};
use crate::os::{futex::Lock, mapping};
use crate::{c, limit};
use core::mem::size_of;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use rseq_sys::sequence::{Entry, Stacks, Vcpu};

/// What inlined code uses.
pub(crate) static FAST: Stacks<SHARD_SHIFT, STACK> = Stacks::new();
/// `pop` and `push` over [`FAST`]: the two sequences of the hit path.
pub(crate) mod fast {
    rseq_sys::stack_functions!(super::FAST, crate::shard::SHARD_SHIFT, crate::shard::STACK);
}

/// What the code behind the gate uses.
pub(crate) static SHARDS: Stacks<SHARD_SHIFT, STACK> = Stacks::new();

/// What the functions of the C interface use, to take blocks and to return them. `FAST` in another form: see
/// [`crate::c`], which also says what displacements count from.
pub static TAKE: Entry = Entry::new();
/// See [`TAKE`].
pub static RETURN: Entry = Entry::new();

/// Address space for this many shards, if it is to be had; no kernel configuration has more CPUs (8192 on x86-64). A
/// process that is restored onto a larger machine finds its shards.
const SHARDS_MAX: usize = 8192;
/// Places before the first shard, for threads that have no id: all ones, or -2 where libc's registration was refused.
const BELOW: usize = 2;

/// The shard of the id 0, and how many there is address space for.
static BASE: AtomicPtr<Shard> = AtomicPtr::new(null_mut());
static RESERVED: AtomicUsize = AtomicUsize::new(0);
/// Shards that can be written: those of the ids below.
static LIMIT: AtomicUsize = AtomicUsize::new(0);
/// Whether [`TAKE`] and [`RETURN`] may be open.
static PREPARED: AtomicBool = AtomicBool::new(false);
/// Held while a limit is raised, or all is closed.
static LIMITS: Lock = Lock::new();

/// Opens both tables for `vcpu`, over shards that can only be read; false if there is no address space for all that may
/// be wanted, or no fence where one is needed.
pub(crate) fn open(vcpu: Vcpu) -> bool {
    let mut base = BASE.load(Ordering::Relaxed);
    // Not null if an earlier set-up came this far and was cut off, by a fork.
    if base.is_null() {
        let Some(ids) = rseq_sys::possible_ids() else { return false };
        // In OS pages, in which it is made writable.
        let below = (BELOW * size_of::<Shard>()).next_multiple_of(mapping::page_size());
        let least = below + (ids * size_of::<Shard>()).next_multiple_of(mapping::page_size());
        let wanted = least * SHARDS_MAX.div_ceil(ids).next_power_of_two();
        let Some((start, bytes)) = mapping::reserve_up_to(wanted, least, mapping::page_size()) else {
            return false;
        };
        // SAFETY: the reservation is ours, and nobody relies on having no access.
        if !unsafe { mapping::make_readable(start, bytes) } {
            return false;
        }
        mapping::name(start, bytes, c"rseq-alloc: shards");
        // SAFETY: a few shards into the reservation.
        base = unsafe { start.as_ptr().add(below) }.cast();
        RESERVED.store((bytes - below) / size_of::<Shard>(), Ordering::Relaxed);
        BASE.store(base, Ordering::Relaxed);
    }
    // SAFETY: both tables are new, or were not opened to the end. The reservation reads as zero from BELOW places before
    // the base to the last id there can be, and stays.
    let opened = unsafe { SHARDS.open(vcpu, base.cast()) && FAST.open(vcpu, base.cast()) };
    if opened {
        // SAFETY: as above, and displacements stay in the reservation.
        unsafe { open_entries(vcpu, base) };
    }
    opened
}

/// Opens [`FAST`] over the private arenas at `base`.
///
/// # Safety
/// That of [`Stacks::open_private`].
pub(super) unsafe fn open_private(base: *mut Shard) {
    // SAFETY: by contract.
    unsafe { FAST.open_private(base.cast()) };
    // SAFETY: the table was opened just now.
    unsafe { open_entries(FAST.vcpu(), base) };
}

/// # Safety
/// That of [`Entry::open`], for shards that begin at `base`.
unsafe fn open_entries(vcpu: Vcpu, base: *mut Shard) {
    let base = base.cast::<u8>();
    // SAFETY: by contract; the displacements of the fronts lie in the shard or in the word before it.
    unsafe { TAKE.prepare(vcpu, base.wrapping_add(c::TAKE_BIAS)) };
    // SAFETY: as above.
    unsafe { RETURN.prepare(vcpu, base.wrapping_sub(c::RETURN_BIAS)) };
    PREPARED.store(true, Ordering::Release);
    // SAFETY: prepared just now.
    unsafe { TAKE.open(c::TAKE_LIMITS) };
}

/// Opens [`RETURN`], if it is prepared and the tables were not closed for good.
pub(crate) fn limit_returns(limits: [usize; 2]) {
    if !PREPARED.load(Ordering::Relaxed) {
        return;
    }
    let _guard = LIMITS.lock();
    if PREPARED.load(Ordering::Acquire) {
        // SAFETY: it is prepared.
        unsafe { RETURN.open(limits) };
    }
}

/// The shard of a vCPU that can be written already.
#[inline]
pub(crate) fn existing(id: u32) -> Option<&'static Shard> {
    if (id as usize) < LIMIT.load(Ordering::Acquire) {
        // SAFETY: shards below the limit are usable memory and stay so; zero is a value.
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

/// Makes the shards up to that of `id` writable.
#[cold]
fn raise(id: u32) -> Option<&'static Shard> {
    let wanted = id as usize + 1;
    if wanted > RESERVED.load(Ordering::Relaxed) {
        return None;
    }
    let _guard = LIMITS.lock();
    let made = LIMIT.load(Ordering::Relaxed);
    if wanted <= made {
        return existing(id);
    }
    let bytes = (wanted - made) * size_of::<Shard>();
    if !limit::charge_metadata(bytes) {
        return None;
    }
    // Whole OS pages; shards beyond the limit on the last one are not used before it is raised to them.
    let os_page = mapping::page_size();
    let from = (made * size_of::<Shard>()).next_multiple_of(os_page);
    let to = (wanted * size_of::<Shard>()).next_multiple_of(os_page);
    if to > from {
        // SAFETY: inside the reservation, which is a multiple of the OS page.
        let start = unsafe { BASE.load(Ordering::Relaxed).cast::<u8>().add(from) };
        // SAFETY: as above, and not null.
        if !unsafe { mapping::commit(NonNull::new_unchecked(start), to - from) } {
            limit::release(bytes);
            return None;
        }
    }
    LIMIT.store(wanted, Ordering::Release);
    existing(id)
}

/// Sends every call to the slow path from now on.
#[cold]
pub(crate) fn close_for_good() {
    let _guard = LIMITS.lock();
    PREPARED.store(false, Ordering::Relaxed);
    FAST.close();
    TAKE.close();
    RETURN.close();
}

/// Shards in use.
pub(crate) fn shards() -> impl Iterator<Item = &'static Shard> {
    (0..count()).filter_map(|id| existing(id as u32))
}

/// How many that are.
#[inline]
pub(crate) fn count() -> usize {
    LIMIT.load(Ordering::Acquire)
}

/// The lock of the limit, for the fork handlers.
pub(crate) fn lock() -> &'static Lock {
    &LIMITS
}
