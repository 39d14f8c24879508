//! Arenas: shards that are taken by lock, for threads that have no vCPU to go by.
//!
//! The fallback of a process without rseq whose threads have no [`private`] arenas (left), and of single threads that are
//! not registered in a process with it. There are as many arenas as CPUs the process may use. A thread is assigned one
//! on its first allocation, round robin, and moves on when it finds it locked. The assignment is a word of the thread; losing it costs nothing.
//!
//! An arena belongs to nobody: a thread that ends leaves nothing behind in it, and any thread may free into any.

use super::bound::{self, Bound};
use super::protocol::Place;
use super::{Access, Miss, STACK, Shard, private, take_chain};
use crate::magazine::{self, NONE, Owned};
use crate::meta;
use crate::os::futex::{Guard, Lock};
use core::mem::size_of;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;
use rseq_sys::sequence::portable::{pop_chained_plain, push_chained_plain, replace_chained_plain};

/// Arenas at most. Beyond this many CPUs, threads share.
const ARENAS: usize = 256;
/// Which of the thread's words holds the number of its arena plus one.
const WORD: usize = 0;

struct Arena {
    lock: Lock,
    /// Null until it is first used; written under the lock.
    shard: AtomicPtr<Shard>,
}

static TABLE: [CachePadded<Arena>; ARENAS] =
    [const { CachePadded::new(Arena { lock: Lock::new(), shard: AtomicPtr::new(null_mut()) }) }; ARENAS];
/// How many of them are ever used; 0 until that is known.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Whose turn it is.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Threads that moved on.
static MOVES: AtomicU64 = AtomicU64::new(0);

/// Sets the number of arenas to that of the CPUs the process may use. Once, before an arena is used.
pub(crate) fn set_count(cpus: usize) {
    let _ = COUNT.compare_exchange(0, cpus.clamp(1, ARENAS), Ordering::Relaxed, Ordering::Relaxed);
}

/// An arena that the thread has for itself: it holds the lock, or the arena is a [`private`] one.
pub(crate) struct OnArena {
    shard: &'static Shard,
    _guard: Option<Guard<'static>>,
}

fn arena(index: usize) -> &'static Arena {
    &TABLE[index % ARENAS]
}

/// The thread's arena, or the next one that is free. `None` when memory is exhausted.
pub(crate) fn acquire() -> Option<OnArena> {
    private::own().or_else(|| rseq_sys::with_thread_words(|words| acquire_from(&words[WORD])))
}

/// [`acquire`], with the word that remembers the thread's arena.
fn acquire_from(word: &AtomicUsize) -> Option<OnArena> {
    let count = COUNT.load(Ordering::Relaxed).max(1);
    let mine = match word.load(Ordering::Relaxed) {
        0 => {
            let index = NEXT.fetch_add(1, Ordering::Relaxed) % count;
            word.store(index + 1, Ordering::Relaxed);
            index
        }
        assigned => (assigned - 1) % count,
    };
    for step in 0..count {
        let index = (mine + step) % count;
        if let Some(guard) = arena(index).lock.try_lock() {
            if step > 0 {
                word.store(index + 1, Ordering::Relaxed);
                MOVES.fetch_add(1, Ordering::Relaxed);
            }
            return locked(arena(index), guard);
        }
    }
    locked(arena(mine), arena(mine).lock.lock())
}

fn locked(arena: &'static Arena, guard: Guard<'static>) -> Option<OnArena> {
    let mut shard = arena.shard.load(Ordering::Relaxed);
    if shard.is_null() {
        shard = meta::alloc(size_of::<Shard>(), align_of::<Shard>())?.as_ptr().cast();
        arena.shard.store(shard, Ordering::Release);
    }
    // SAFETY: shards are never freed, and zero is a value.
    Some(OnArena { shard: unsafe { &*shard }, _guard: Some(guard) })
}

/// Nobody else is there: what did not succeed found something else than it looked for.
fn done(succeeded: bool) -> Result<(), Miss> {
    if succeeded { Ok(()) } else { Err(Miss::Differs) }
}

impl Access for OnArena {
    fn shard(&self) -> &Shard {
        self.shard
    }

    fn bound(&self) -> &'static Bound {
        &bound::ARENAS
    }

    fn pop(&self, header: usize) -> Result<usize, Miss> {
        // SAFETY: the lock guards header and chain.
        let block = unsafe { pop_chained_plain::<STACK>(self.shard.top(header).as_ptr()) };
        if block == 0 { Err(Miss::Differs) } else { Ok(block) }
    }

    fn push(&self, header: usize, block: usize) -> Result<(), Miss> {
        // SAFETY: the lock guards header and chain; blocks are not 0.
        done(unsafe { push_chained_plain::<STACK>(self.shard.top(header).as_ptr(), block) })
    }

    fn replace(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
        let word = self.shard.top(header);
        let same = word.load(Ordering::Relaxed) == expect;
        if same {
            word.store(new, Ordering::Relaxed);
        }
        done(same)
    }

    fn exchange(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
        // SAFETY: the lock guards header and chain; tops lead to magazines, which have the words of chains.
        done(unsafe { replace_chained_plain::<STACK>(self.shard.top(header).as_ptr(), expect, new, false) })
    }

    fn extend(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss> {
        // SAFETY: as in `exchange`.
        done(unsafe { replace_chained_plain::<STACK>(self.shard.top(header).as_ptr(), expect, new, true) })
    }

    fn confirm(&self, header: usize, top: usize, block: usize) -> bool {
        self.shard.top(header).load(Ordering::Relaxed) == top && magazine::peek(top) == block
    }

    fn list_pop(&self, head: &AtomicUsize) -> Result<Owned, Miss> {
        // SAFETY: the lock guards the list, whose elements are owned by it.
        let magazine = unsafe { Owned::from_address(head.load(Ordering::Relaxed)) }.ok_or(Miss::Differs)?;
        head.store(magazine.link().load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(magazine)
    }

    fn list_push(&self, head: &AtomicUsize, _expect: usize, magazine: &Owned) -> Result<(), Miss> {
        head.store(magazine.address(), Ordering::Relaxed);
        Ok(())
    }
}

impl OnArena {
    /// One that the caller took.
    pub(super) fn owned(shard: &'static Shard) -> Self {
        Self { shard, _guard: None }
    }

    /// Takes all magazines out.
    pub(super) fn drain(&self, list: &mut magazine::List) {
        for top in self.shard.headers() {
            let old = top.swap(NONE, Ordering::Relaxed);
            if old != NONE {
                // SAFETY: the lock gives us the header, and so the chain.
                unsafe { take_chain(self.bound(), self.shard, old, list) };
            }
        }
        for head in self.shard.lists() {
            // SAFETY: the lock gives us the lists.
            unsafe { list.append_list(head.swap(0, Ordering::Relaxed)) };
        }
    }
}

/// Calls `f` with every arena that can be had: those with a lock, and the private ones that no other thread has.
pub(crate) fn for_each(mut f: impl FnMut(&OnArena)) {
    private::for_each(&mut f);
    for arena in &TABLE {
        if arena.shard.load(Ordering::Acquire).is_null() {
            continue;
        }
        if let Some(locked) = locked(arena, arena.lock.lock()) {
            f(&locked);
        }
    }
}

/// What the arenas hold that have been used, exact while nobody uses them.
pub(crate) fn usages() -> impl Iterator<Item = super::Usage> {
    let shared = TABLE.iter().filter_map(|arena| {
        // SAFETY: shards are never freed.
        unsafe { arena.shard.load(Ordering::Acquire).as_ref() }
    });
    private::shards().chain(shared).map(Shard::usage)
}

/// Threads that moved on to another arena.
pub(crate) fn moves() -> u64 {
    MOVES.load(Ordering::Relaxed)
}

/// How many arenas may be used from now on: all, as long as their number is not known.
pub(crate) fn usable() -> usize {
    match COUNT.load(Ordering::Relaxed) {
        0 => ARENAS,
        count => count,
    }
}

/// The locks of the first so many arenas, in their order, for the fork handlers.
pub(crate) fn locks(count: usize) -> impl Iterator<Item = &'static Lock> {
    TABLE.iter().take(count).map(|arena| &arena.lock)
}
