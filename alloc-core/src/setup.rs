//! Set-up: the mode is decided once, by the thread whose allocation comes first, and never changes.
//!
//! Nobody waits for that thread: whoever comes meanwhile (another thread, a signal handler, a call from inside the
//! set-up) is served by the central layer. Until then, and in arena mode for ever, both tables of the
//! [`gate`] are closed and every call comes through here.

use crate::mode::{Kind, Mode, Reason};
use crate::options::{IndexChoice, Options};
use crate::os::topology::{self, CpuSet};
use crate::shard::{arena, gate, private};
use crate::{fork, os, pages};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};
use rseq_sys::sequence::Vcpu;
use rseq_sys::{IndexKind, Registrar, Unavailable};

static STATE: AtomicU32 = AtomicU32::new(UNDECIDED);
const UNDECIDED: u32 = 0;
const VCPUS: u32 = 1;
const ARENAS: u32 = 2;
/// From here on: it is being decided, by a thread of the process whose number is the state without this bit.
const DECIDING: u32 = 1 << 31;

const fn is_decided(state: u32) -> bool {
    matches!(state, VCPUS | ARENAS)
}

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
    decide_if_undecided(options);
    match STATE.load(Ordering::Acquire) {
        VCPUS => vcpu_route(),
        ARENAS => Route::Arena,
        _ => Route::Direct,
    }
}

fn vcpu_route() -> Route {
    if rseq_sys::thread_is_registered() || rseq_sys::ensure_thread().is_ok() {
        return Route::Vcpu;
    }
    if let Some(Mode { kind: Kind::Vcpus { rseq, .. } }) = mode()
        && rseq.registrar == Registrar::Libc
    {
        gate::close_for_good();
    }
    Route::Arena
}

/// The mode, if it is decided.
pub(crate) fn mode() -> Option<Mode> {
    // SAFETY: the state says that the cell is written, and it is not written again.
    is_decided(STATE.load(Ordering::Acquire)).then(|| unsafe { (*MODE.0.get()).assume_init() })
}

/// [`decide`], at the cost of a load where that has long been done.
#[inline]
pub(crate) fn decide_if_undecided(options: &Options) {
    if !is_decided(STATE.load(Ordering::Relaxed)) {
        decide(options);
    }
}

/// Decides the mode unless somebody has or is about to.
#[cold]
fn decide(options: &Options) {
    // SAFETY: always sound. <https://man7.org/linux/man-pages/man2/getpid.2.html>
    let here = DECIDING | unsafe { libc::getpid() }.cast_unsigned();
    let state = STATE.load(Ordering::Relaxed);
    if state & DECIDING != 0 && state != here {
        // A fork has cut that thread off, before it had installed the handlers that would have seen to this.
        if STATE.compare_exchange(state, UNDECIDED, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            fork::not_installed();
        }
    }
    if STATE.compare_exchange(UNDECIDED, here, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return;
    }
    let state = os::keep_errno(|| decide_alone(options));
    STATE.store(state, Ordering::Release);
}

/// [`decide`], for the one thread that does it; returns the new state.
fn decide_alone(options: &Options) -> u32 {
    // First of all, so that a child of a fork in the middle of this can be helped.
    let first = fork::install();
    let options = options.with_environment(first);
    let allowed = CpuSet::allowed();
    see_topology(&allowed, &options);
    let cpus = allowed.count().max(1);
    options.apply(cpus);
    arena::set_count(cpus);
    let kind = match choose(options.index) {
        // This thread is registering right now, and that is where this call comes from. A later one decides.
        Err(Reason::Rseq(Unavailable::Busy)) => return UNDECIDED,
        chosen => chosen.unwrap_or_else(Kind::Arenas),
    };
    let state = if matches!(kind, Kind::Vcpus { .. }) {
        VCPUS
    } else {
        private::open(cpus);
        ARENAS
    };
    // SAFETY: only the thread that won the exchange comes here, and nobody reads before it stores the state.
    unsafe { (*MODE.0.get()).write(Mode { kind }) };
    state
}

/// Makes a page heap for each node and a depot for each last-level cache, where there are several. Before the options are
/// applied to all of them, and before the first magazine.
fn see_topology(cpus: &CpuSet, options: &Options) {
    let Some(found) = topology::find(cpus, options.places).filter(|found| !found.is_one()) else { return };
    // A fork must lock all that there are, and takes this one first.
    let _guard = gate::lock().lock();
    pages::open(found.nodes());
    topology::publish(found);
}

/// In the child of a fork that cut another thread off in the middle of deciding: lets this one begin again.
pub(crate) fn in_child() {
    if !is_decided(STATE.load(Ordering::Relaxed)) {
        STATE.store(UNDECIDED, Ordering::Relaxed);
    }
}

/// Opens the shards for the index that is asked for and offered, or says why not.
fn choose(index: IndexChoice) -> Result<Kind, Reason> {
    if index == IndexChoice::Arenas {
        return Err(Reason::Asked);
    }
    let rseq = rseq_sys::mode().map_err(Reason::Rseq)?;
    let membarrier = rseq_sys::membarrier::register().is_ok();
    // Without a fence a section might read a new shard's memory as it was before, unless loads stay in order.
    if !membarrier && !rseq_sys::LOADS_IN_ORDER {
        return Err(Reason::NoMembarrier);
    }
    let index = match index {
        IndexChoice::CpuId => IndexKind::CpuId,
        // An index that the kernel does not fill would be 0 on every CPU.
        _ => rseq.default_index(),
    };
    if !gate::open(Vcpu::new(&rseq, index)) {
        return Err(Reason::NoMemory);
    }
    Ok(Kind::Vcpus { rseq, index, membarrier })
}
