//! The depot: full magazines of each class and empty ones for all, between the shards and the spans.
//!
//! What one vCPU frees and another one needs passes through here a magazine at a time, so the price of a lock is shared
//! by up to 251 blocks and no span is touched. One short lock per class, and one for the empty magazines; a lock-free
//! depot measured the same and would have to deal with ABA.
//!
//! There is a depot for each last-level cache, so that blocks stay in the one they were used in. A thread puts magazines
//! into that of the CPU it runs on; it takes them from there, too, or else from another one, the same node's first: what
//! one cache frees and another one needs must not pile up. Which depots have magazines of a class is one word, [`HELD`].
//!
//! Bounds: per class [`CLASS_BUDGET`] bytes and 2 to [`CLASS_MAGAZINES`] magazines, or one that is deep, in each
//! depot, and [`SPREAD`] times as much in all together (but so few in each); what exceeds that goes back to the spans.
//!
//! Ageing: each class notes the least number of magazines it held since it was last looked at, [`PER_INTERVAL`] times in a
//! decay interval. So many were not needed, and those leave, the longest unused ones first, to be emptied into their
//! spans a few at a time. The idea is the low-water mark of jemalloc's and tcmalloc's caches. Who takes a single block
//! does not need a magazine: the spans can serve it as well. Light activity would else keep a magazine of each class here, whose
//! blocks lie on an OS page each where they were freed in any order: of 512 MiB of small blocks 3.5 MiB stayed, which
//! kept 26 MiB resident.

use crate::central;
use crate::limit::cache_budget;
use crate::magazine::{List, Owned, is_full, peek};
use crate::options::DEFAULT_DECAY_MS;
use crate::os::futex::{Lock, Locked};
use crate::os::topology::{self, CACHES};
use crate::pages::NEVER;
use crate::size_class::{CLASSES, class};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;

/// Bytes of free blocks of one class that the depot keeps. Producers and consumers that pass blocks at full speed have
/// about this much under way between them.
const CLASS_BUDGET: usize = 1 << 20;
/// Magazines of one class at most, however small its blocks: each takes 2 KiB itself.
const CLASS_MAGAZINES: usize = 128;
/// Empty magazines that are kept for all classes together; 512 KiB.
const EMPTY_MAX: usize = 256;
/// How many times these bounds all depots together may hold.
const SPREAD: usize = 4;

/// Looks at the classes in a decay interval: what leaves is to decay after that.
const PER_INTERVAL: u64 = 32;
/// Milliseconds between two looks at least.
const LEAST_PERIOD: u64 = 10;
/// Magazines that one tick empties: some 50 µs.
const TICK_FLUSHES: usize = 16;

/// The full magazines of a class.
struct Shelf {
    list: List,
    /// The least number of them since [`Shelf::age`].
    low: usize,
}

impl Shelf {
    const fn new() -> Self {
        Self { list: List::new(), low: 0 }
    }

    fn take(&mut self) -> Option<Owned> {
        let magazine = self.list.pop();
        self.low = self.low.min(self.list.len());
        magazine
    }

    fn put(&mut self, magazine: Owned, limit: usize) -> Result<(), Owned> {
        if self.list.len() >= limit {
            return Err(magazine);
        }
        self.list.push(magazine);
        Ok(())
    }

    /// A block of the next magazine; and that magazine, if it was the last one in it.
    fn take_block(&mut self) -> Option<(usize, Option<Owned>)> {
        let mut magazine = self.list.pop()?;
        let block = magazine.pop()?;
        if magazine.is_empty() {
            self.low = self.low.min(self.list.len());
            return Some((block, Some(magazine)));
        }
        self.list.push(magazine);
        Some((block, None))
    }

    /// Puts a block into the next magazine.
    fn put_block(&mut self, block: usize) -> Put {
        let Some(mut magazine) = self.list.pop() else { return Put::NoMagazine };
        let top = magazine.top();
        let put = if is_full(top) {
            Put::NoRoom
        } else if peek(top) == block {
            Put::Twice
        } else {
            magazine.push(block);
            Put::Done
        };
        self.list.push(magazine);
        put
    }

    /// Those that nobody needed since the last time.
    fn age(&mut self) -> List {
        let aged = self.list.cut(self.list.len().saturating_sub(self.low));
        self.low = self.list.len();
        aged
    }

    fn take_all(&mut self) -> List {
        self.low = 0;
        core::mem::replace(&mut self.list, List::new())
    }
}

/// The shelves of a depot, by class.
type Shelves = [CachePadded<Locked<Shelf>>; CLASSES];

/// By cache. Those of caches that there are not stay zero and untouched.
static FULL: [Shelves; CACHES] = [const { [const { CachePadded::new(Locked::new(Shelf::new())) }; CLASSES] }; CACHES];
/// By class, the depots whose shelf is not empty, bit by bit; each bit is changed under the lock of its shelf. With a
/// single depot it is not kept. (What was known as one becomes several before the first magazine comes here.)
static HELD: [AtomicU32; CLASSES] = [const { AtomicU32::new(0) }; CLASSES];
/// Magazines of all classes on their way back to the spans, and how many they are.
static LEAVING: CachePadded<Locked<List>> = CachePadded::new(Locked::new(List::new()));
static LEAVING_LEN: AtomicUsize = AtomicUsize::new(0);
/// When the classes are looked at next, in milliseconds. 0: the depot is empty; 1: soon; [`NEVER`].
static DUE: AtomicU64 = AtomicU64::new(0);
/// Milliseconds between two looks, or [`NEVER`].
static PERIOD: AtomicU64 = AtomicU64::new(DEFAULT_DECAY_MS / PER_INTERVAL);
/// By cache.
static EMPTY: [CachePadded<Locked<List>>; CACHES] = [const { CachePadded::new(Locked::new(List::new())) }; CACHES];

/// Magazines handed over, in either direction.
static EXCHANGES: AtomicU64 = AtomicU64::new(0);
/// Locks that were not free at once.
static RETRIES: AtomicU64 = AtomicU64::new(0);

/// Runs `f` on a list under its lock.
fn with<T, R>(list: &Locked<T>, f: impl FnOnce(&mut T) -> R) -> R {
    let mut guard = list.try_lock().unwrap_or_else(|| {
        RETRIES.fetch_add(1, Ordering::Relaxed);
        list.lock()
    });
    f(&mut guard)
}

/// Runs `f` on a shelf under its lock.
fn with_shelf<R>(cache: usize, class: usize, f: impl FnOnce(&mut Shelf) -> R) -> R {
    let shelves = &FULL[if cache < CACHES { cache } else { 0 }];
    with(&shelves[if class < CLASSES { class } else { 0 }], |shelf| {
        let result = f(shelf);
        if topology::caches() > 1 {
            note(cache, class, shelf.list.len() > 0);
        }
        result
    })
}

/// Keeps a bit of [`HELD`] right.
fn note(cache: usize, class: usize, holds: bool) {
    let (Some(held), bit) = (HELD.get(class), 1 << cache) else { return };
    match (holds, held.load(Ordering::Relaxed) & bit != 0) {
        (true, false) => held.fetch_or(bit, Ordering::Relaxed),
        (false, true) => held.fetch_and(!bit, Ordering::Relaxed),
        _ => 0,
    };
}

/// The depots that have magazines of a class, or may have, bit by bit.
fn holders(class: usize) -> u32 {
    if topology::caches() == 1 { 1 } else { HELD.get(class).map_or(0, |held| held.load(Ordering::Relaxed)) }
}

/// What each depot may have of something that a single one may have `bound` of.
fn share(bound: usize) -> usize {
    match topology::caches() {
        0..=SPREAD => bound,
        caches => bound * SPREAD / caches,
    }
}

/// Takes a magazine with blocks of `class`.
pub(crate) fn take_full(class: usize) -> Option<Owned> {
    let cache = topology::cache();
    let magazine = with_shelf(cache, class, Shelf::take).or_else(|| from_others(cache, class, Shelf::take))?;
    EXCHANGES.fetch_add(1, Ordering::Relaxed);
    Some(magazine)
}

/// The first that `take` finds in other depots, those of the same node first.
fn from_others<T>(cache: usize, class: usize, take: fn(&mut Shelf) -> Option<T>) -> Option<T> {
    if topology::caches() == 1 {
        return None;
    }
    let (held, near) = (holders(class) & !(1 << cache), topology::near(cache));
    let depots = bits(held & near).chain(bits(held & !near));
    depots.into_iter().find_map(|depot| with_shelf(depot, class, take))
}

/// The numbers of the bits in a word.
fn bits(word: u32) -> impl Iterator<Item = usize> {
    (0..CACHES).filter(move |bit| word & (1 << bit) != 0)
}

/// Leaves a magazine with blocks here, or hands it back if the class has enough.
pub(crate) fn put_full(magazine: Owned) -> Result<(), Owned> {
    let bytes = magazine.capacity() * class(magazine.class()).size as usize;
    let least = if magazine.is_deep() { 1 } else { 2 };
    let limit = (cache_budget(share(CLASS_BUDGET)) / bytes.max(1)).clamp(least, share(CLASS_MAGAZINES));
    with_shelf(topology::cache(), magazine.class(), |shelf| shelf.put(magazine, limit))?;
    EXCHANGES.fetch_add(1, Ordering::Relaxed);
    if DUE.load(Ordering::Relaxed) == 0 {
        DUE.store(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Takes a block of `class`, from the magazine that is taken next.
pub(crate) fn take_block(class: usize) -> Option<usize> {
    let cache = topology::cache();
    let taken = with_shelf(cache, class, Shelf::take_block);
    let (block, emptied) = taken.or_else(|| from_others(cache, class, Shelf::take_block))?;
    if let Some(magazine) = emptied {
        put_empty(magazine);
    }
    Some(block)
}

/// How [`put_block`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Put {
    Done,
    /// The class has no magazine here.
    NoMagazine,
    /// It has full ones.
    NoRoom,
    /// The block is the topmost one already.
    Twice,
}

/// Returns a block of `class` to the magazine that is taken next.
pub(crate) fn put_block(class: usize, block: usize) -> Put {
    with_shelf(topology::cache(), class, |shelf| shelf.put_block(block))
}

/// Takes over magazines whose blocks nobody needs: they are on their way back to the spans.
pub(crate) fn leave(mut magazines: List) {
    let mut full = List::new();
    while let Some(magazine) = magazines.pop() {
        if magazine.is_empty() {
            put_empty(magazine);
        } else {
            full.push(magazine);
        }
    }
    if full.len() > 0 {
        with(&LEAVING, |list| {
            list.append(full);
            LEAVING_LEN.store(list.len(), Ordering::Relaxed);
        });
    }
}

/// Takes an empty magazine, from the pool if there is none; `None` when memory is exhausted.
pub(crate) fn take_empty() -> Option<Owned> {
    with(empty(), List::pop).or_else(Owned::new)
}

/// The empty magazines of the own depot.
fn empty() -> &'static Locked<List> {
    let cache = topology::cache();
    &EMPTY[if cache < CACHES { cache } else { 0 }]
}

/// Leaves an empty magazine here, or in the pool if there are enough.
pub(crate) fn put_empty(mut magazine: Owned) {
    magazine.make_shallow();
    let rest = with(empty(), |list| {
        if list.len() >= share(EMPTY_MAX) {
            return Some(magazine);
        }
        list.push(magazine);
        None
    });
    if let Some(magazine) = rest {
        magazine.discard();
    }
}

/// Sets the decay interval; see [`Decay`](crate::pages::Decay).
pub(crate) fn set_decay_ms(ms: u64) {
    PERIOD.store(if ms == NEVER { NEVER } else { (ms / PER_INTERVAL).max(LEAST_PERIOD) }, Ordering::Relaxed);
    if DUE.load(Ordering::Relaxed) != 0 {
        DUE.store(1, Ordering::Relaxed);
    }
}

/// The time in milliseconds from which [`tick`] has something to do; 0 or [`NEVER`]: never, as things are.
pub(crate) fn due() -> u64 {
    if LEAVING_LEN.load(Ordering::Relaxed) > 0 { 1 } else { DUE.load(Ordering::Relaxed) }
}

/// Whether magazines wait until it is known that nobody needs them, or to be emptied.
pub(crate) fn pending() -> bool {
    let due = due();
    due != 0 && due != NEVER
}

/// Does what is due at the time `now_ms`, on visits to a shard; two loads if there is nothing.
#[inline]
pub(crate) fn tick(now_ms: u64) {
    let due = DUE.load(Ordering::Relaxed);
    if due != 0 && due <= now_ms {
        look(due, now_ms);
    }
    if LEAVING_LEN.load(Ordering::Relaxed) > 0 {
        for mut magazine in core::iter::from_fn(next_leaving).take(TICK_FLUSHES) {
            central::flush(&mut magazine);
            put_empty(magazine);
        }
    }
}

/// Lets those magazines leave that nobody needed since the last look, of each depot. Moves links only: at most
/// [`CLASS_MAGAZINES`] under each lock. An empty shelf has nothing to age.
#[cold]
fn look(due: u64, now_ms: u64) {
    let next = now_ms.saturating_add(PERIOD.load(Ordering::Relaxed));
    // One thread looks; and the first time after the depot was empty nobody does.
    if DUE.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() || due == 1 || next == NEVER {
        return;
    }
    let mut seen = 0;
    for (class, cache) in (1..CLASSES).flat_map(|class| bits(holders(class)).map(move |cache| (class, cache))) {
        let (aged, kept) = with_shelf(cache, class, |shelf| (shelf.age(), shelf.list.len()));
        seen += aged.len() + kept;
        if aged.len() > 0 {
            with(&LEAVING, |list| {
                list.append(aged);
                LEAVING_LEN.store(list.len(), Ordering::Relaxed);
            });
        }
    }
    if seen == 0 {
        let _ = DUE.compare_exchange(next, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The next magazine to be emptied.
fn next_leaving() -> Option<Owned> {
    with(&LEAVING, |list| {
        let magazine = list.pop();
        LEAVING_LEN.store(list.len(), Ordering::Relaxed);
        magazine
    })
}

/// Takes everything: calls `flush` with each magazine that has blocks, outside of the locks.
pub(crate) fn drain(mut flush: impl FnMut(Owned)) {
    for cache in 0..topology::caches() {
        for class in 0..CLASSES {
            let mut taken = with_shelf(cache, class, Shelf::take_all);
            while let Some(magazine) = taken.pop() {
                flush(magazine);
            }
        }
    }
    while let Some(magazine) = next_leaving() {
        flush(magazine);
    }
    for list in EMPTY.iter().take(topology::caches()) {
        let mut taken = with(list, |list| core::mem::replace(list, List::new()));
        while let Some(magazine) = taken.pop() {
            magazine.discard();
        }
    }
}

/// What [`usage`] reports.
pub(crate) struct Usage {
    /// Bytes of free blocks.
    pub(crate) cached: usize,
    /// Magazines handed over.
    pub(crate) exchanges: u64,
    /// Locks that were not free at once.
    pub(crate) retries: u64,
}

/// What is in the depots, and what passed through them.
pub(crate) fn usage() -> Usage {
    let shelves = FULL.iter().take(topology::caches()).flatten();
    let shelves: usize = shelves.map(|shelf| with(shelf, |shelf| shelf.list.bytes())).sum();
    let cached = shelves + with(&LEAVING, |list| list.bytes());
    Usage { cached, exchanges: EXCHANGES.load(Ordering::Relaxed), retries: RETRIES.load(Ordering::Relaxed) }
}

/// All locks of this layer, in their order, for the fork handlers.
pub(crate) fn locks() -> impl Iterator<Item = &'static Lock> {
    let caches = topology::caches();
    let shelves = FULL.iter().take(caches).flatten().map(|shelf| shelf.raw());
    shelves.chain([LEAVING.raw()]).chain(EMPTY.iter().take(caches).map(|list| list.raw()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::{bin, class_of_bin};
    use proptest::prelude::*;
    extern crate std;
    use std::collections::BTreeSet;

    /// A magazine of `class` that looks as if it had a block, and is never emptied into spans.
    fn fake(class_index: usize) -> Owned {
        let mut magazine = Owned::new().unwrap();
        magazine.prepare(class_index, 4);
        assert!(magazine.push(4096));
        magazine
    }

    /// Promise: of the magazines of a class, those go that were not needed since the last look, and no others.
    #[test]
    fn what_was_not_needed_ages() {
        let mut shelf = Shelf::new();
        let mut all: std::vec::Vec<usize> = std::vec::Vec::new();
        for _ in 0..10 {
            let magazine = fake(3);
            all.push(magazine.address());
            assert!(shelf.put(magazine, 10).is_ok());
        }
        assert!(shelf.put(fake(3), 10).is_err());
        assert_eq!(shelf.age().len(), 0, "nobody has looked at them before");
        // Six are needed at one time, so four were not: the oldest.
        let held: std::vec::Vec<Owned> = (0..6).map(|_| shelf.take().unwrap()).collect();
        for magazine in held.into_iter().rev() {
            assert!(shelf.put(magazine, 10).is_ok());
        }
        let mut aged = shelf.age();
        assert_eq!((aged.len(), shelf.list.len()), (4, 6));
        while let Some(magazine) = aged.pop() {
            assert!(all[..4].contains(&magazine.address()));
        }
        let one = shelf.take().unwrap();
        assert_eq!(shelf.age().len(), 5, "the taken one was needed");
        assert!(shelf.put(one, 10).is_ok());
        assert_eq!(shelf.age().len(), 0);
        assert_eq!((shelf.age().len(), shelf.list.len()), (1, 0));
    }

    /// Promise: taking and returning single blocks does not keep magazines from ageing, and no block is lost by it.
    #[test]
    fn single_blocks_are_no_need() {
        let mut shelf = Shelf::new();
        for _ in 0..3 {
            assert!(shelf.put(fake(3), 10).is_ok());
        }
        assert_eq!(shelf.age().len(), 0);
        assert_eq!([8, 16, 16].map(|block| shelf.put_block(block)), [Put::Done, Put::Done, Put::Twice]);
        for _ in 0..100 {
            let Some((block, None)) = shelf.take_block() else { panic!("there are others in it") };
            assert_eq!((block, shelf.put_block(block)), (16, Put::Done));
        }
        assert_eq!(shelf.put_block(24), Put::Done);
        assert_eq!(shelf.put_block(32), Put::NoRoom);
        let mut aged = shelf.age();
        assert_eq!((aged.len(), shelf.list.len()), (3, 0));
        assert_eq!(shelf.put_block(8), Put::NoMagazine);
        assert!(shelf.take_block().is_none());
        // The last block of a magazine is handed out with it.
        let (mut blocks, mut emptied) = (0, 0);
        while let Some(magazine) = aged.pop() {
            assert!(shelf.put(magazine, 10).is_ok());
        }
        while let Some((_, magazine)) = shelf.take_block() {
            blocks += 1;
            emptied += usize::from(magazine.is_some());
        }
        assert_eq!((blocks, emptied, shelf.low), (6, 3, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 32 }))]

        /// Whatever goes in and out, a magazine comes out with its class and blocks, and no block is in two hands.
        /// Another test may drain the depot at any time, so an empty answer is always allowed.
        #[test]
        fn magazines_keep_their_blocks(steps in proptest::collection::vec(any::<bool>(), 1..80)) {
            let class_index = class_of_bin(bin(856 - 1).unwrap());
            let mut held: std::vec::Vec<Owned> = std::vec::Vec::new();
            let mut blocks = BTreeSet::new();
            let hold = |mut magazine: Owned, blocks: &mut BTreeSet<usize>| {
                assert_eq!(magazine.class(), class_index);
                let mut taken = std::vec::Vec::new();
                while let Some(block) = magazine.pop() {
                    assert!(blocks.insert(block), "in two hands");
                    taken.push(block);
                }
                assert!(!taken.is_empty());
                assert!(taken.iter().rev().all(|&block| magazine.push(block)));
                magazine
            };
            for put in steps {
                if put {
                    let magazine = held.pop().or_else(|| {
                        let mut magazine = take_empty()?;
                        magazine.prepare(class_index, 9);
                        (central::fill(&mut magazine, 9) > 0).then(|| hold(magazine, &mut blocks))
                    });
                    let mut magazine = magazine.unwrap();
                    let mut taken = std::vec::Vec::new();
                    while let Some(block) = magazine.pop() {
                        blocks.remove(&block);
                        taken.push(block);
                    }
                    assert!(taken.iter().rev().all(|&block| magazine.push(block)));
                    if let Err(back) = put_full(magazine) {
                        held.push(hold(back, &mut blocks));
                    }
                } else if let Some(magazine) = take_full(class_index) {
                    held.push(hold(magazine, &mut blocks));
                }
            }
            for mut magazine in held {
                central::flush(&mut magazine);
                put_empty(magazine);
            }
        }
    }
}
