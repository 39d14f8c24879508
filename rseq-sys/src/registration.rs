//! The decision of the process, and the registration of single threads where nobody else registers them.
//!
//! Process: [`mode()`] asks once and stores the verdict with one compare-and-swap. Whoever comes at the same time asks
//! as well and comes to the same facts; the first verdict stands for good. No lock, so a signal handler, a recursion
//! out of an allocator or a child of `fork` at any instant finds either nothing or all of it.
//!
//! Thread: with libc's registration there is nothing to do but to look. Without, a thread moves through these
//! states, kept in its own block:
//!
//! ```text
//!   UNKNOWN --> Busy --> READY --> Finished      READY: registered; Finished: by the exit hook, for good
//!                  \---> any other reason        the system call or the hook was refused; for good
//! ```
//!
//! Invariants:
//!
//! 1. Only the thread itself changes its state, with signals blocked, so a handler never sees it half done. `Busy` is
//!    seen by calls that come out of `pthread_setspecific` or `dlsym` when these allocate.
//! 2. The exit hook is in place before the area is registered: no area outlives its thread's storage.
//! 3. An area that is not registered holds all ones in `cpu_id`, `node_id` and `mm_cid`. The kernel leaves zeros in
//!    some of them when it unregisters, which would look like ids; nothing of this thread, handlers included, runs
//!    in between.
//! 4. All areas are registered with one length and one signature.
//!
//! `fork` keeps the registration of the thread that calls it, and its state with it. Nothing is ever unregistered
//! that libc registered.
//!
//! Sources: the kernel's `Documentation/userspace-api/rseq.rst`;
//! [`pthread_key_create(3p)`](https://man7.org/linux/man-pages/man3/pthread_key_create.3p.html).

use crate::abi::{CPU_ID_UNINITIALIZED, Errno, FLAG_UNREGISTER, KeepErrno, Rseq, SIGNATURE, sys_rseq};
use crate::arch::{self, ABORTS_IN_DOUBT, HAVE_SEQUENCES, OwnBlock};
use crate::features::{FeatureSize, OWN_AREA, Registrar, plan};
use crate::mode::{Mode, Unavailable};
use crate::signals::{BlockedSignals, filtered};
use crate::{membarrier, probe, self_test};
use core::ffi::c_void;
use core::mem::align_of;
use core::sync::atomic::{AtomicIsize, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Of the process: nobody asked yet. Of a thread: not registered by us.
const UNKNOWN: u32 = 0;
/// Of the process: there is a mode. Of a thread: registered by us.
const READY: u32 = 1;
// Any other word is a packed `Unavailable`.

/// What the process uses. Every writer writes the same facts, before it offers a verdict; they count from then on.
struct Decision {
    verdict: AtomicU32,
    area_offset: AtomicIsize,
    features: AtomicU32,
    registered_len: AtomicU32,
    registrar_is_libc: AtomicU32,
    /// `__rseq_size` plus one; 0 stands for no symbol.
    libc_size: AtomicU64,
}

static DECISION: Decision = Decision {
    verdict: AtomicU32::new(UNKNOWN),
    area_offset: AtomicIsize::new(0),
    features: AtomicU32::new(0),
    registered_len: AtomicU32::new(0),
    registrar_is_libc: AtomicU32::new(0),
    libc_size: AtomicU64::new(0),
};

impl Decision {
    fn publish(&self, mode: &Mode) {
        self.area_offset.store(mode.area_offset, Ordering::Relaxed);
        self.features.store(mode.features.get(), Ordering::Relaxed);
        self.registered_len.store(mode.registered_len, Ordering::Relaxed);
        self.registrar_is_libc.store((mode.registrar == Registrar::Libc).into(), Ordering::Relaxed);
        self.libc_size.store(mode.libc_size.map_or(0, |size| u64::from(size) + 1), Ordering::Relaxed);
    }

    /// `verdict` must have been read with Acquire order.
    fn result(&self, verdict: u32) -> Result<Mode, Unavailable> {
        if verdict != READY {
            return Err(Unavailable::unpack(verdict));
        }
        let libc = self.registrar_is_libc.load(Ordering::Relaxed) != 0;
        Ok(Mode {
            registrar: if libc { Registrar::Libc } else { Registrar::Ourselves },
            features: FeatureSize::new(self.features.load(Ordering::Relaxed)),
            registered_len: self.registered_len.load(Ordering::Relaxed),
            area_offset: self.area_offset.load(Ordering::Relaxed),
            libc_size: self.libc_size.load(Ordering::Relaxed).checked_sub(1).map(|size| size as u32),
        })
    }
}

/// How this process uses rseq, or why it cannot. The first call finds out; from then on the answer never changes.
///
/// If nobody else registers threads, that first call also registers the calling thread, since only that shows
/// whether it can be done. It may be made at any time by any thread, from constructors before `main` on.
///
/// # Errors
///
/// The reason. [`Unavailable::Busy`] is the only one that is not final: this call came out of the first one, through an
/// allocator or a signal handler.
pub fn mode() -> Result<Mode, Unavailable> {
    match DECISION.verdict.load(Ordering::Acquire) {
        UNKNOWN => decide(),
        verdict => DECISION.result(verdict),
    }
}

/// The answer of [`mode()`] if somebody has asked already. Decides nothing, so it fits reports.
pub fn current_mode() -> Option<Result<Mode, Unavailable>> {
    match DECISION.verdict.load(Ordering::Acquire) {
        UNKNOWN => None,
        verdict => Some(DECISION.result(verdict)),
    }
}

#[cold]
fn decide() -> Result<Mode, Unavailable> {
    let verdict = if HAVE_SEQUENCES { examine()? } else { Unavailable::NoSequences.pack() };
    let first = DECISION.verdict.compare_exchange(UNKNOWN, verdict, Ordering::AcqRel, Ordering::Acquire);
    DECISION.result(match first {
        Ok(_) => verdict,
        Err(earlier) => earlier,
    })
}

/// Publishes the facts and returns a verdict; `Busy` if this thread is examining already.
fn examine() -> Result<u32, Unavailable> {
    let _errno = KeepErrno::new();
    let state = own_state();
    // dlsym may allocate and so come back here. Nothing but this thread and its signal handlers uses the word.
    if state.compare_exchange(UNKNOWN, Unavailable::Busy.pack(), Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return Err(Unavailable::Busy);
    }
    let symbols = probe::libc_symbols();
    let plan = plan(probe::libc_says(symbols), probe::auxv());
    let libc = symbols.filter(|_| plan.registrar == Registrar::Libc);
    let mode = Mode {
        registrar: plan.registrar,
        features: plan.features,
        registered_len: plan.registered_len,
        area_offset: libc.map_or_else(arch::own_offset, |symbols| symbols.offset),
        libc_size: symbols.map(|symbols| symbols.size),
    };
    DECISION.publish(&mode);
    let aligned = mode.area().addr().is_multiple_of(align_of::<Rseq>());
    let answer = match mode.registrar {
        Registrar::Libc if !aligned || !mode.features.has_cpu_id() => Err(Unavailable::LibcArea),
        // SAFETY: libc's area, aligned. Nobody but the kernel writes the number of a CPU there.
        Registrar::Libc if unsafe { cpu_id(mode.area()) } <= 0 && rseq_pretends() => Err(Unavailable::Pretended),
        Registrar::Libc => Ok(()),
        Registrar::Ourselves => {
            state.store(UNKNOWN, Ordering::Relaxed);
            register_once(mode.registered_len)
        }
    };
    // Still busy, or registered: a call that comes out of this one is told so.
    let answer = answer.and_then(|()| if ABORTS_IN_DOUBT { try_aborts(&mode) } else { Ok(()) });
    if mode.registrar == Registrar::Libc {
        state.store(UNKNOWN, Ordering::Relaxed);
    }
    Ok(match answer {
        Ok(()) => READY,
        Err(reason) => reason.pack(),
    })
}

/// Whether this kernel aborts what it should.
fn try_aborts(mode: &Mode) -> Result<(), Unavailable> {
    // The trial starts a thread, and registering for fences costs milliseconds in a process with two. An errno is kept
    // there for whoever asks for a fence.
    let _ = membarrier::register();
    self_test::trusted(mode.registered_len)
}

/// Whether a seccomp filter makes the system call "succeed" without making it. libc cannot tell, and the `cpu_id` of
/// glibc's first thread is 0 before anybody writes it, which looks like a CPU. Every kernel refuses an unknown flag.
fn rseq_pretends() -> bool {
    // SAFETY: refused before the area is looked at; nothing is registered.
    filtered() && unsafe { sys_rseq(core::ptr::null_mut(), 0, 1 << 30, SIGNATURE) }.is_ok()
}

/// Makes sure that sequences of the calling thread are protected: registers it if that is our task and has not been
/// done, and looks whether it is registered otherwise.
///
/// Call it once in every thread before its first sequence. It is cheap enough for every slow path.
///
/// # Errors
///
/// The reason why this thread must not run sequences, for now if it is [`Unavailable::Busy`], else for good.
pub fn ensure_thread() -> Result<(), Unavailable> {
    let mode = mode()?;
    if mode.registrar == Registrar::Ourselves {
        register_once(mode.registered_len)?;
    }
    // SAFETY: the area that the mode names.
    unsafe { expect_registered(mode.area()) }
}

/// # Safety
/// As for [`cpu_id`].
unsafe fn expect_registered(area: *mut Rseq) -> Result<(), Unavailable> {
    // SAFETY: by the contract.
    match unsafe { cpu_id(area) } {
        0.. => Ok(()),
        negative => Err(Unavailable::NotRegistered(negative)),
    }
}

/// Whether the calling thread is registered at this moment, by whoever does it in this process. Three loads; decides
/// and registers nothing, so it is false as long as nobody has called [`mode()`].
#[inline]
pub fn thread_is_registered() -> bool {
    DECISION.verdict.load(Ordering::Acquire) == READY && {
        let area = arch::thread_pointer().wrapping_add_signed(DECISION.area_offset.load(Ordering::Relaxed));
        // SAFETY: there is a mode, and this is where it says that the area is.
        unsafe { cpu_id(area as *mut Rseq) >= 0 }
    }
}

/// # Safety
/// `area` is the calling thread's, by libc or of our own: aligned, and readable in every thread that libc started.
unsafe fn cpu_id(area: *mut Rseq) -> i32 {
    // SAFETY: by the contract. Only the field is borrowed, and the kernel writes it when this thread is not running.
    let cpu_id = unsafe { &(*area).cpu_id };
    cpu_id.load(Ordering::Relaxed).cast_signed()
}

fn own_state() -> &'static AtomicU32 {
    // SAFETY: the block is in the calling thread's static TLS, initialised, and there until the thread ends; the
    // reference is not handed to another thread.
    unsafe { &(*arch::own_block()).state }
}

fn own_area() -> *mut Rseq {
    // SAFETY: only forms the address of a field of the thread's own block.
    unsafe { (&raw mut (*arch::own_block()).area).cast() }
}

const _: () = {
    assert!(core::mem::offset_of!(OwnBlock, area) == 0 && core::mem::offset_of!(OwnBlock, state) == OWN_AREA as usize);
    assert!(size_of::<Rseq>() <= OWN_AREA as usize && align_of::<OwnBlock>() >= OWN_AREA as usize);
};

/// Registers the calling thread in its own block, unless that was done or tried before.
fn register_once(len: u32) -> Result<(), Unavailable> {
    match own_state().load(Ordering::Relaxed) {
        UNKNOWN => register_first_time(len),
        READY => Ok(()),
        reason => Err(Unavailable::unpack(reason)),
    }
}

#[cold]
fn register_first_time(len: u32) -> Result<(), Unavailable> {
    let _errno = KeepErrno::new();
    let _blocked = BlockedSignals::new().map_err(Unavailable::Signals)?;
    let state = own_state();
    // A handler may have come first, between the caller's look and the block.
    match state.load(Ordering::Relaxed) {
        UNKNOWN => {}
        READY => return Ok(()),
        reason => return Err(Unavailable::unpack(reason)),
    }
    state.store(Unavailable::Busy.pack(), Ordering::Relaxed);
    let answer = set_exit_hook().map_err(Unavailable::ExitHook).and_then(|()| {
        // SAFETY: the area is 64 bytes, aligned to 64, and lives as long as the thread; the hook unregisters it
        // before. All sequences of this crate carry SIGNATURE.
        unsafe { sys_rseq(own_area(), len, 0, SIGNATURE) }.map_err(Unavailable::Register)?;
        // A seccomp filter can make a call "succeed" that was never made.
        // SAFETY: the thread's own area.
        unsafe { expect_registered(own_area()) }
    });
    state.store(answer.map_or_else(Unavailable::pack, |()| READY), Ordering::Relaxed);
    answer
}

/// The thread-specific data key of the exit hook, plus one; 0 before there is one.
static EXIT_KEY: AtomicU64 = AtomicU64::new(0);

/// Has [`exit_hook`] called when this thread ends. May allocate.
fn set_exit_hook() -> Result<(), Errno> {
    let key = exit_key()?;
    // SAFETY: a key that exists; the value only has to differ from null for the hook to be called.
    match unsafe { libc::pthread_setspecific(key, arch::own_block().cast::<c_void>()) } {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

fn exit_key() -> Result<libc::pthread_key_t, Errno> {
    let known = EXIT_KEY.load(Ordering::Relaxed);
    if known != 0 {
        return Ok((known - 1) as libc::pthread_key_t);
    }
    let mut key: libc::pthread_key_t = 0;
    // SAFETY: the hook is a function of this object, which stays mapped (crate documentation).
    let errno = unsafe { libc::pthread_key_create(&mut key, Some(exit_hook)) };
    if errno != 0 {
        return Err(Errno(errno));
    }
    match EXIT_KEY.compare_exchange(0, u64::from(key) + 1, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(key),
        Err(earlier) => {
            // SAFETY: made a moment ago and used by nobody.
            unsafe { libc::pthread_key_delete(key) };
            Ok((earlier - 1) as libc::pthread_key_t)
        }
    }
}

/// What else is called when a thread ends.
static AT_EXIT: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Has `f` called when the calling thread ends, for the library that embeds this crate: one function for the process,
/// asked for by each thread that wants it called. It runs among the destructors of thread-specific data, after those
/// of Rust's and C++'s thread-locals; others may still come after it. It must not unwind.
///
/// May allocate.
///
/// # Errors
/// What `pthread_key_create` or `pthread_setspecific` answered; then it will not be called.
pub fn call_at_thread_exit(f: extern "C" fn()) -> Result<(), Errno> {
    let _errno = KeepErrno::new();
    AT_EXIT.store(f as *mut (), Ordering::Release);
    set_exit_hook()
}

/// Runs among the destructors of thread-specific data, after those of Rust's and C++'s thread-locals.
unsafe extern "C" fn exit_hook(_: *mut c_void) {
    let _errno = KeepErrno::new();
    let at_exit = AT_EXIT.load(Ordering::Acquire);
    if !at_exit.is_null() {
        // SAFETY: stored by `call_at_thread_exit`, and a function of this type.
        let at_exit = unsafe { core::mem::transmute::<*mut (), extern "C" fn()>(at_exit) };
        at_exit();
    }
    // Where signals cannot be blocked the registration would not have been made; going on is the lesser evil.
    let _blocked = BlockedSignals::new();
    let state = own_state();
    if state.load(Ordering::Relaxed) != READY {
        return;
    }
    state.store(Unavailable::Finished.pack(), Ordering::Relaxed);
    unregister(DECISION.registered_len.load(Ordering::Relaxed));
}

/// Takes the registration back. Signals must be blocked.
fn unregister(len: u32) {
    let area = own_area();
    // SAFETY: the area, length and signature that were registered; no sequence of this thread is under way, since it
    // is here.
    let answer = unsafe { sys_rseq(area, len, FLAG_UNREGISTER, SIGNATURE) };
    // EINVAL: not registered any more, somebody was faster. After any other refusal the registration stands, the
    // kernel keeps the ids right, and they are not ours to write.
    if matches!(answer, Ok(()) | Err(Errno(libc::EINVAL))) {
        // SAFETY: the thread's own block; only the fields are borrowed.
        let (cpu_id, node_id, mm_cid) = unsafe { (&(*area).cpu_id, &(*area).node_id, &(*area).mm_cid) };
        for field in [cpu_id, node_id, mm_cid] {
            field.store(CPU_ID_UNINITIALIZED.cast_unsigned(), Ordering::Relaxed);
        }
    }
}
