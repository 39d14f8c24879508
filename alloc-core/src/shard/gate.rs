//! The gate: which mode the process runs in, which vCPU shards exist, and who may use them.
//!
//! The mode is decided once, by the thread whose allocation comes first, and never changes. Nobody waits for that
//! thread: whoever comes meanwhile (another thread, a signal handler, a call from inside the set-up) is served by
//! the central layer. Until then, and in arena mode for ever, both limits are 0 and every call goes to the slow path.
//!
//! There are two tables over the same headers. [`FAST`] is what inlined code compares its id with; [`SHARDS`] is what the
//! slow path uses. Their limits are equal, except that `FAST` is 0 while the gate is closed. It is closed for good when a
//! thread turns up that is not registered although the C library registers all of them: its id would read as a valid
//! one. A feature that wants to see every call closes it too.
//!
//! Limits are recomputed under one lock from what they follow from, never written back to an earlier value.

use super::{SHARD_SHIFT, Shard, arena};
use crate::fork;
use crate::mode::{Kind, Mode, Reason};
use crate::options::{IndexChoice, Options};
use crate::os::{futex::Lock, mapping};
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, size_of};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use rseq_sys::IndexKind;
use rseq_sys::Registrar;
use rseq_sys::sequence::{Stacks, Vcpu};

/// What inlined code uses.
pub(crate) static FAST: Stacks<SHARD_SHIFT> = Stacks::new();
/// What the code behind the gate uses.
pub(crate) static SHARDS: Stacks<SHARD_SHIFT> = Stacks::new();

/// Address space for this many shards; more than any kernel configuration has CPUs (8192 on x86-64).
const SHARDS_MAX: usize = 8192;
/// With less than this there is no point in vCPU shards.
const SHARDS_MIN: usize = 64;

static STATE: AtomicU8 = AtomicU8::new(UNDECIDED);
const UNDECIDED: u8 = 0;
const DECIDING: u8 = 1;
const VCPUS: u8 = 2;
const ARENAS: u8 = 3;

/// Start of the shards, and how many there is address space for.
static BASE: AtomicPtr<Shard> = AtomicPtr::new(null_mut());
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// Guards the limits and what they follow from.
static LIMITS: Lock = Lock::new();
/// Reasons to keep the gate closed.
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Written once by the deciding thread, before `STATE` says so.
struct Decision(UnsafeCell<MaybeUninit<Mode>>);
// SAFETY: written before the release store to STATE, read after an acquire load that sees it.
unsafe impl Sync for Decision {}
static MODE: Decision = Decision(UnsafeCell::new(MaybeUninit::uninit()));

/// Where a call goes that reached the slow path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the shard of the current vCPU.
    Vcpu,
    /// To an arena.
    Arena,
    /// Past both, to the central layer: the mode is being decided.
    Direct,
}

/// The route for the calling thread, which is registered if need be; decides the mode if nobody has.
pub(crate) fn route(options: &Options) -> Route {
    match STATE.load(Ordering::Acquire) {
        VCPUS => vcpu_route(),
        ARENAS => Route::Arena,
        DECIDING => Route::Direct,
        _ => {
            decide(options);
            match STATE.load(Ordering::Acquire) {
                VCPUS => vcpu_route(),
                ARENAS => Route::Arena,
                _ => Route::Direct,
            }
        }
    }
}

fn vcpu_route() -> Route {
    if rseq_sys::thread_is_registered() || rseq_sys::ensure_thread().is_ok() {
        return Route::Vcpu;
    }
    if let Some(Mode { kind: Kind::Vcpus { rseq, .. } }) = mode()
        && rseq.registrar == Registrar::Libc
    {
        close_for_good();
    }
    Route::Arena
}

/// The mode, if it is decided.
pub(crate) fn mode() -> Option<Mode> {
    // SAFETY: the state says that the cell is written, and it is not written again.
    (STATE.load(Ordering::Acquire) >= VCPUS).then(|| unsafe { (*MODE.0.get()).assume_init() })
}

/// [`decide`], at the cost of a load where that has long been done.
#[inline]
pub(crate) fn decide_if_undecided(options: &Options) {
    if STATE.load(Ordering::Relaxed) == UNDECIDED {
        decide(options);
    }
}

/// Decides the mode unless somebody has or is about to.
#[cold]
fn decide(options: &Options) {
    if STATE.compare_exchange(UNDECIDED, DECIDING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return;
    }
    let options = options.with_environment();
    options.apply();
    arena::set_count(allowed_cpus());
    fork::install();
    let kind = choose(options.index).unwrap_or_else(Kind::Arenas);
    let state = if matches!(kind, Kind::Vcpus { .. }) { VCPUS } else { ARENAS };
    // SAFETY: only the thread that won the exchange above comes here, and nobody reads before the store below.
    unsafe { (*MODE.0.get()).write(Mode { kind }) };
    STATE.store(state, Ordering::Release);
}

/// Opens the shards for the index that is asked for and offered, or says why not.
fn choose(index: IndexChoice) -> Result<Kind, Reason> {
    if index == IndexChoice::Arenas {
        return Err(Reason::Asked);
    }
    let rseq = rseq_sys::mode().map_err(Reason::Rseq)?;
    let membarrier = rseq_sys::membarrier::register().is_ok();
    // Without a fence nobody could tell a section that still reads a new shard's memory as it was before; only x86
    // keeps its loads in order.
    if !membarrier && !cfg!(target_arch = "x86_64") {
        return Err(Reason::NoMembarrier);
    }
    let index = match index {
        IndexChoice::CpuId => IndexKind::CpuId,
        // An index that the kernel does not fill would be 0 on every CPU.
        _ => rseq.default_index(),
    };
    let (base, bytes) = reserve().ok_or(Reason::NoMemory)?;
    BASE.store(base, Ordering::Relaxed);
    RESERVED.store(bytes / size_of::<Shard>(), Ordering::Relaxed);
    let vcpu = Vcpu::new(&rseq, index);
    SHARDS.open(vcpu, base.cast());
    FAST.open(vcpu, base.cast());
    // The first limit is raised by the first call that comes with its id.
    Ok(Kind::Vcpus { rseq, index, membarrier })
}

/// Address space for the shards, less of it where that is refused.
fn reserve() -> Option<(*mut Shard, usize)> {
    let mut count = SHARDS_MAX;
    while count >= SHARDS_MIN {
        if let Some(base) = mapping::reserve(count * size_of::<Shard>(), mapping::page_size()) {
            mapping::name(base, count * size_of::<Shard>(), c"rseq-alloc: shards");
            return Some((base.as_ptr().cast(), count * size_of::<Shard>()));
        }
        count /= 2;
    }
    None
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
        if !unsafe { mapping::commit(core::ptr::NonNull::new_unchecked(start), to - from) } {
            return None;
        }
    }
    for index in limit..wanted {
        // SAFETY: usable memory now, zeroed by the kernel, for which zero is a value.
        unsafe { &*base.add(index) }.init();
    }
    // Lets no running section see the new limit with the old memory. Where it is missing, see `choose`.
    let _ = rseq_sys::membarrier::fence();
    // SAFETY: all headers below `wanted` point at the dummy, and a fence (or the order of x86) lies in between.
    unsafe { SHARDS.set_limit(wanted) };
    set_fast_limit();
    existing(id)
}

/// Recomputes what inlined code compares with. Under the lock of the limits.
fn set_fast_limit() {
    let limit = if CLOSED.load(Ordering::Relaxed) == 0 { SHARDS.limit() } else { 0 };
    // SAFETY: no larger than the other limit, whose headers are initialised.
    unsafe { FAST.set_limit(limit) };
}

/// Sends every call to the slow path from now on.
#[cold]
fn close_for_good() {
    if CLOSED.load(Ordering::Relaxed) > 0 {
        return;
    }
    let _guard = LIMITS.lock();
    CLOSED.store(1, Ordering::Relaxed);
    set_fast_limit();
}

/// CPUs that this process may run on.
fn allowed_cpus() -> usize {
    // Room for 8192 CPUs, whatever the size of libc's own set is.
    let mut set = [0u64; 128];
    // SAFETY: the buffer is valid for its size. <https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html>
    let filled = crate::os::keep_errno(|| unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&set), set.as_mut_ptr())
    });
    if filled <= 0 {
        return 1;
    }
    set.iter().map(|word| word.count_ones() as usize).sum()
}

/// Shards in use.
pub(crate) fn shards() -> impl Iterator<Item = &'static Shard> {
    (0..SHARDS.limit()).filter_map(|id| existing(id as u32))
}

/// The lock of the limits, for the fork handlers.
pub(crate) fn lock() -> &'static Lock {
    &LIMITS
}
