//! Private arenas: shards of one thread each, in a process without vCPUs.
//!
//! Where there is no rseq, the sequences of the hit path still run: nothing aborts them, so a shard may have one thread
//! only, and the index is a number that the thread carries in its own block. Such a thread takes no lock and no atomic
//! instruction. There are a few times as many of these arenas as CPUs; threads that come when all are taken share the
//! arenas that have locks ([`super::arena`]), and so do threads that are about to end.
//!
//! ```text
//!   NEW --> MAKING --> TAKEN by a thread, until it ends --> FREE --> TAKEN by a thread, or by a drainer for a moment
//! ```
//!
//! Whoever takes an arena finds what the last one left there. What a living thread has nobody else can drain: its shard
//! is sealed instead, and the thread gives everything back when it next comes to the slow path. In the child of a fork
//! all arenas but that of its one thread are free again: each change of a shard is one store, so they are in order.
//!
//! A signal handler must not allocate in the middle of an operation on such a shard. No other mode promises that it may.

use super::arena::OnArena;
use super::{SHARD_SHIFT, Shard, gate};
use crate::limit;
use crate::os::mapping;
use core::mem::size_of;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};

/// Private arenas for each CPU, and at most.
const PER_CPU: usize = 8;
const MOST: usize = 64;
/// Places before the first, for threads that have no number.
const BELOW: usize = 1;

/// Which of the thread's words says what it has.
const WORD: usize = 1;
/// It has not asked yet.
const UNKNOWN: usize = 0;
/// It does without: it asks right now, got none, or is about to end.
const WITHOUT: usize = 1;
/// It has that of the number above this.
const NUMBER: usize = 2;

/// The states of an arena. The memory of those that are NEW or MAKING cannot be written yet, but reads as zero.
const NEW: u8 = 0;
const MAKING: u8 = 1;
const FREE: u8 = 2;
const TAKEN: u8 = 3;

static STATES: [AtomicU8; MOST] = [const { AtomicU8::new(NEW) }; MOST];
/// The first shard, and how many there are: 0 where threads do without.
static BASE: AtomicPtr<Shard> = AtomicPtr::new(null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Lets threads take private arenas, in a process whose mode is to be arenas. Without address space they do without.
pub(crate) fn open(cpus: usize) {
    let count = cpus.saturating_mul(PER_CPU).clamp(PER_CPU, MOST);
    let os_page = mapping::page_size();
    let below = (BELOW << SHARD_SHIFT).next_multiple_of(os_page);
    let bytes = below + (count << SHARD_SHIFT).next_multiple_of(os_page);
    // A shard that shares an OS page with others would be made writable with them; that does no harm.
    let Some(start) = mapping::reserve(bytes, os_page) else { return };
    // SAFETY: the reservation is ours, and nobody relies on having no access.
    if !unsafe { mapping::make_readable(start, bytes) } {
        return;
    }
    mapping::name(start, bytes, c"rseq-alloc: arenas");
    // SAFETY: inside the reservation.
    let base = unsafe { start.as_ptr().add(below) };
    BASE.store(base.cast(), Ordering::Relaxed);
    // SAFETY: no thread has a number before COUNT says that there are some. The reservation reads as zero from BELOW
    // places before the base to the last number, and stays.
    unsafe { gate::open_private(base.cast()) };
    COUNT.store(count, Ordering::Release);
}

/// The number of the calling thread's arena, if it has one.
fn number() -> Option<usize> {
    rseq_sys::with_thread_words(|words| words[WORD].load(Ordering::Relaxed)).checked_sub(NUMBER)
}

fn state(number: usize) -> &'static AtomicU8 {
    &STATES[number % MOST]
}

/// The shard of a number below COUNT.
fn shard(number: usize) -> &'static Shard {
    // SAFETY: a place of the reservation, which stays and can be read; zero is a value. Written are those only that can
    // be.
    unsafe { &*BASE.load(Ordering::Relaxed).add(number) }
}

/// The arena of the calling thread, which takes one if it has not asked yet. What others asked it to give back it gives
/// back now.
pub(super) fn own() -> Option<OnArena> {
    let count = COUNT.load(Ordering::Acquire);
    if count == 0 {
        return None;
    }
    rseq_sys::with_thread_words(|words| {
        let word = &words[WORD];
        if word.load(Ordering::Relaxed) == UNKNOWN {
            word.store(WITHOUT, Ordering::Relaxed);
            // Comes back here if it allocates.
            if rseq_sys::call_at_thread_exit(leave).is_ok()
                && let Some(number) = (0..count).find(|&number| take(number))
            {
                word.store(NUMBER + number, Ordering::Relaxed);
                // SAFETY: the number was taken by this thread.
                unsafe { rseq_sys::set_private_id(Some(number as u32)) };
            }
        }
        let shard = shard(word.load(Ordering::Relaxed).checked_sub(NUMBER)?);
        let arena = OnArena::owned(shard);
        if shard.seal.load(Ordering::Relaxed) != 0 {
            shard.seal.store(0, Ordering::Relaxed);
            super::drain::give_back(&arena);
        }
        Some(arena)
    })
}

/// Takes an arena that nobody has, and makes its memory writable if that was not done.
fn take(number: usize) -> bool {
    let state = state(number);
    if state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return true;
    }
    if state.compare_exchange(NEW, MAKING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return false;
    }
    let os_page = mapping::page_size();
    let at = (BASE.load(Ordering::Relaxed).addr() + (number << SHARD_SHIFT)) & !(os_page - 1);
    let start = NonNull::new(BASE.load(Ordering::Relaxed).cast::<u8>().with_addr(at));
    let charged = limit::charge_metadata(size_of::<Shard>());
    // SAFETY: whole pages of the reservation, which are ours.
    let commit = |start| unsafe { mapping::commit(start, os_page.max(1 << SHARD_SHIFT)) };
    let usable = charged && start.is_some_and(commit);
    if charged && !usable {
        limit::release(size_of::<Shard>());
    }
    state.store(if usable { TAKEN } else { NEW }, Ordering::Release);
    usable
}

/// Called when a thread ends that asked for an arena.
extern "C" fn leave() {
    rseq_sys::with_thread_words(|words| {
        // What comes after this in the thread shares.
        let word = words[WORD].swap(WITHOUT, Ordering::Relaxed);
        if let Some(number) = word.checked_sub(NUMBER) {
            // SAFETY: this thread is not in the middle of an operation.
            unsafe { rseq_sys::set_private_id(None) };
            state(number).store(FREE, Ordering::Release);
        }
    });
}

/// Calls `f` with every arena that nobody has, and with that of the calling thread; asks the other threads to give back
/// what they have.
pub(super) fn for_each(mut f: impl FnMut(&OnArena)) {
    let mine = number();
    for number in 0..COUNT.load(Ordering::Acquire) {
        if mine == Some(number) {
            f(&OnArena::owned(shard(number)));
        } else if state(number).compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            f(&OnArena::owned(shard(number)));
            state(number).store(FREE, Ordering::Release);
        } else if state(number).load(Ordering::Acquire) == TAKEN {
            // Written for the owner, who looks at it on the slow path; a new one gives back what is there.
            shard(number).seal.store(1, Ordering::Relaxed);
        }
    }
}

/// The shards that were ever taken, whoever has them now.
pub(super) fn shards() -> impl Iterator<Item = &'static Shard> {
    (0..COUNT.load(Ordering::Acquire)).filter(|&number| state(number).load(Ordering::Acquire) >= FREE).map(shard)
}

/// How many that are.
pub(crate) fn made() -> usize {
    shards().count()
}

/// In the child of a fork: the other threads' arenas are free.
pub(crate) fn in_child() {
    let mine = number();
    for (number, state) in STATES.iter().enumerate() {
        if mine != Some(number) {
            let _ = state.compare_exchange(TAKEN, FREE, Ordering::Relaxed, Ordering::Relaxed);
            let _ = state.compare_exchange(MAKING, NEW, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    /// In a process whose mode is vCPUs nobody takes one.
    #[test]
    fn there_are_none_unless_they_were_opened() {
        if COUNT.load(Ordering::Relaxed) == 0 {
            assert!(own().is_none());
            assert_eq!(shards().count(), 0);
        }
    }
}
