//! Set-up, in two steps, each taken once by whichever thread comes first:
//!
//! * It *begins* with the first allocation of all, which brings in what depends on when and by whom it is asked: handlers
//!   for `fork` (before those of others), options and environment, limits, the CPUs that the process may use, and the
//!   registration for fences, which takes milliseconds in a process that has several threads.
//! * The first allocation that [`early`](crate::early) does not serve *decides* the mode, which never changes.
//!
//! Nobody waits for that thread: whoever comes meanwhile (another thread, a signal handler, a call from inside the
//! set-up) is served by the central layer, or from early memory. Until the mode is decided, and in arena mode for ever, both
//! tables of the [`gate`] are closed and every call comes through here.

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

/// What the process begins with.
struct Basis {
    options: Options,
    /// The CPUs that it may use.
    cpus: CpuSet,
}

static BASIS: Step<Basis> = Step::new();
static MODE: Step<Mode> = Step::new();

/// A value that one thread makes for all, while others go on without it.
struct Step<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by the one thread that found the state OPEN, before a release store of DONE, and read
// after an acquire load that sees that.
unsafe impl<T: Send + Sync> Sync for Step<T> {}

/// Nobody has taken the step.
const OPEN: u32 = 0;
const DONE: u32 = 1;
/// From here on: it is being taken, by a thread of the process whose number is the state without this bit.
const UNDER_WAY: u32 = 1 << 31;

impl<T> Step<T> {
    const fn new() -> Self {
        Self { state: AtomicU32::new(OPEN), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    #[inline]
    fn get(&self) -> Option<&T> {
        // SAFETY: the state says that the value is written, and it is not written again.
        (self.state.load(Ordering::Acquire) == DONE).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// Takes the step unless somebody has or is about to. `make` returns `None` if a later call is to take it.
    fn take(&self, make: impl FnOnce() -> Option<T>) {
        let here = under_way_here();
        let state = self.state.load(Ordering::Relaxed);
        if state & UNDER_WAY != 0 && state != here {
            // A fork has cut that thread off, without the handlers that would have seen to this.
            let _ = self.state.compare_exchange(state, OPEN, Ordering::Relaxed, Ordering::Relaxed);
        }
        if self.state.compare_exchange(OPEN, here, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        let made = os::keep_errno(make);
        let state = if made.is_some() { DONE } else { OPEN };
        if let Some(value) = made {
            // SAFETY: only the thread that won the exchange comes here, and nobody reads before it stores the state.
            unsafe { (*self.value.get()).write(value) };
        }
        self.state.store(state, Ordering::Release);
    }

    /// In the child of a fork: `state` in place of the parent's, if the step was under way there.
    fn in_child(&self, state: u32) {
        if self.state.load(Ordering::Relaxed) & UNDER_WAY != 0 {
            self.state.store(state, Ordering::Relaxed);
        }
    }
}

/// The state of a step that this process takes.
fn under_way_here() -> u32 {
    // SAFETY: always sound. <https://man7.org/linux/man-pages/man2/getpid.2.html>
    UNDER_WAY | unsafe { libc::getpid() }.cast_unsigned()
}

/// In the child of a fork that cut off all other threads: lets this one take the steps that they were taking.
pub(crate) fn in_child() {
    BASIS.in_child(OPEN);
    MODE.in_child(OPEN);
}

/// In the child of a fork by a signal handler that interrupted the only thread: that goes on with its step.
pub(crate) fn in_child_of_handler() {
    let here = under_way_here();
    BASIS.in_child(here);
    MODE.in_child(here);
}

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
    match MODE.get() {
        Some(Mode { kind: Kind::Vcpus { rseq, .. } }) => vcpu_route(rseq.registrar),
        Some(Mode { kind: Kind::Arenas(_) }) => Route::Arena,
        None => Route::Direct,
    }
}

fn vcpu_route(registrar: Registrar) -> Route {
    if rseq_sys::thread_is_registered() || rseq_sys::ensure_thread().is_ok() {
        return Route::Vcpu;
    }
    if registrar == Registrar::Libc {
        gate::close_for_good();
    }
    Route::Arena
}

/// The mode, if it is decided.
pub(crate) fn mode() -> Option<Mode> {
    MODE.get().copied()
}

/// Whether nobody has decided the mode or is about to.
#[inline]
pub(crate) fn is_undecided() -> bool {
    MODE.state.load(Ordering::Relaxed) == OPEN
}

/// The first step, unless somebody has taken it or is about to.
#[inline]
pub(crate) fn begin(options: &Options) {
    if BASIS.state.load(Ordering::Relaxed) != DONE {
        take_basis(options);
    }
}

#[cold]
fn take_basis(options: &Options) {
    BASIS.take(|| {
        // First of all, so that a child of a fork in the middle of this can be helped.
        fork::install();
        let options = options.with_environment();
        options.apply_limits();
        if options.index != IndexChoice::Arenas {
            // What comes of it is asked for when the mode is decided.
            let _ = rseq_sys::membarrier::register();
        }
        Some(Basis { options, cpus: CpuSet::allowed() })
    });
}

/// Both steps, at the cost of a load where they have long been taken.
#[inline]
pub(crate) fn decide_if_undecided(options: &Options) {
    if MODE.state.load(Ordering::Relaxed) != DONE {
        decide(options);
    }
}

#[cold]
fn decide(options: &Options) {
    begin(options);
    if let Some(basis) = BASIS.get() {
        MODE.take(|| make_mode(basis));
    }
}

fn make_mode(basis: &Basis) -> Option<Mode> {
    let Basis { options, cpus } = basis;
    see_topology(cpus, options);
    let cpus = cpus.count().max(1);
    options.apply(cpus);
    arena::set_count(cpus);
    let kind = match choose(options.index) {
        // This thread is registering right now, and that is where this call comes from. A later one decides.
        Err(Reason::Rseq(Unavailable::Busy)) => return None,
        chosen => chosen.unwrap_or_else(Kind::Arenas),
    };
    if matches!(kind, Kind::Arenas(_)) {
        private::open(cpus);
    }
    Some(Mode { kind })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_taken_once() {
        let step = Step::new();
        step.take(|| None);
        assert_eq!(step.get(), None);
        step.take(|| {
            // From inside, or as another thread would.
            step.take(|| Some(1));
            Some(2)
        });
        step.take(|| Some(3));
        assert_eq!(step.get(), Some(&2));
    }

    /// In place of the state of a step that the child takes.
    const HERE: u32 = UNDER_WAY;

    #[test]
    fn a_fork_in_the_middle_of_a_step() {
        // The thread was cut off, which the handlers told or not; or it goes on.
        for (told, expected) in [(None, Some(&1)), (Some(OPEN), Some(&1)), (Some(HERE), None)] {
            let step = Step::new();
            step.take(|| {
                let again = || {
                    let state = |told| if told == HERE { under_way_here() } else { told };
                    told.map(state).into_iter().for_each(|state| step.in_child(state));
                    step.take(|| Some(1));
                    step.get() == expected
                };
                // SAFETY: the child calls nothing but this.
                os::tests::expect_success(unsafe { os::tests::fork(again) });
                Some(2)
            });
        }
    }
}
