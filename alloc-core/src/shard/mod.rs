//! Shards: the caches of the vCPUs, and of the arenas that stand in for them.
//!
//! A shard is one 4 KiB page: per bin the top of the loaded magazine, per class a short list of filled magazines, one
//! list of empty ones. What may touch it is decided once for its life:
//!
//! * A vCPU's shard changes only by commits of sequences that run on that vCPU ([`vcpu`]), or by the sealed
//!   [`protocol`].
//! * An arena's shard changes only under its lock ([`arena`]), or by the one thread that has it ([`private`]).
//!
//! The slow paths here are the same for both, written over [`Access`]. They follow one rule: a magazine is owned by
//! exactly one of a header, a list, the depot, or the thread that is moving it; each step hands it on by one commit,
//! and a step that fails leaves it with the thread, which finds another place for it.
//!
//! ```text
//!   allocate: loaded magazine - filled list - depot - filled from the spans        first that has a block
//!   free:     loaded magazine - an empty one takes its place, the full one goes to the filled list - depot - spans
//! ```

pub(crate) mod arena;
pub(crate) mod drain;
pub(crate) mod gate;
pub(crate) mod private;
mod protocol;
pub(crate) mod vcpu;

use crate::fatal::{self, Seen};
use crate::magazine::{self, MAGAZINE, NONE, Owned, depth_of, peek};
use crate::size_class::{BINS, CLASSES, TABLE, class, class_of_bin};
use crate::{central, decay, depot, limit};
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// `log2` of the bytes of a shard.
pub(crate) const SHARD_SHIFT: u32 = 12;
/// Where a stack of pointers ends, see [`rseq_sys::sequence::Stacks`]: a magazine is one.
pub(crate) const STACK: usize = MAGAZINE;

/// Bytes of filled magazines that a list keeps before the depot gets them. Two threads with bursts of 1000 blocks took
/// 8.7 to 9.8 ns per block without such lists and 4.3 ns with them.
const LIST_BUDGET: usize = 192 * 1024;
/// Empty magazines that a shard keeps.
const EMPTY_DEPTH: u32 = 16;
/// Misses of a class after which its magazines become deeper.
const GROW_AFTER: u8 = 16;

/// See the module's description. All zero is a shard without magazines.
#[repr(C, align(4096))]
pub(crate) struct Shard {
    /// Tops of the loaded magazines. First, so that a bin's displacement is `bin * 8`.
    tops: [AtomicUsize; BINS],
    /// Heads of the lists of filled magazines.
    filled: [AtomicUsize; CLASSES],
    /// Head of the list of empty magazines.
    empty: AtomicUsize,
    /// Not 0 while a drainer wants the slow paths to stay away.
    seal: AtomicUsize,
    /// Bytes in the lists of filled magazines, about.
    cached: AtomicUsize,
    /// Magazines exchanged with a header.
    exchanges: AtomicU64,
}

const _: () = {
    assert!(size_of::<Shard>() == 1 << SHARD_SHIFT);
    assert!(offset_of!(Shard, tops) == 0);
};

impl Shard {
    fn top(&self, bin: usize) -> &AtomicUsize {
        &self.tops[if bin < BINS { bin } else { 0 }]
    }

    fn filled(&self, class: usize) -> &AtomicUsize {
        &self.filled[if class < CLASSES { class } else { 0 }]
    }
}

/// Displacement of a bin's header in its shard.
#[inline(always)]
pub(crate) const fn displacement(bin: usize) -> usize {
    bin * size_of::<usize>()
}

/// The bin whose header is at a displacement.
pub(crate) const fn bin_at(displacement: usize) -> usize {
    displacement / size_of::<usize>()
}

/// How many bytes of filled magazines a shard keeps in all its lists; an option.
static SHARD_BUDGET: AtomicUsize = AtomicUsize::new(DEFAULT_BUDGET);
/// Enough for a dozen classes in full use.
pub(crate) const DEFAULT_BUDGET: usize = 4 << 20;

/// Sets the bytes that a shard's lists keep.
pub(crate) fn set_budget(bytes: usize) {
    // The sum it is compared with is signed, since lists are counted after they changed.
    SHARD_BUDGET.store(bytes.min(isize::MAX as usize), Ordering::Relaxed);
}

/// How deep the magazines of a class are made now (in pointers), and the misses since that last changed.
struct Depth {
    capacity: AtomicU8,
    misses: AtomicU8,
}

static DEPTHS: [Depth; CLASSES] = {
    let mut depths = [const { Depth { capacity: AtomicU8::new(0), misses: AtomicU8::new(0) } }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        depths[class].capacity = AtomicU8::new(TABLE[class].capacity as u8);
        class += 1;
    }
    depths
};

fn depth(class_index: usize) -> &'static Depth {
    &DEPTHS[if class_index < CLASSES { class_index } else { 0 }]
}

/// The capacity that a magazine of `class_index` gets when it is next made ready.
fn capacity(class_index: usize) -> usize {
    usize::from(depth(class_index).capacity.load(Ordering::Relaxed))
}

/// Notes that a class went past its shard. Classes that do so often get deeper magazines: 59, 123, 251 pointers, at
/// most what their size allows. Lost counts do no harm.
fn miss(class_index: usize) {
    decay::tick();
    let depth = depth(class_index);
    let misses = depth.misses.load(Ordering::Relaxed).saturating_add(1);
    if misses < GROW_AFTER {
        depth.misses.store(misses, Ordering::Relaxed);
        return;
    }
    depth.misses.store(0, Ordering::Relaxed);
    let now = capacity(class_index);
    let next = (now * 2 + 5).min(usize::from(class(class_index).capacity_max));
    if next > now {
        depth.capacity.store(next as u8, Ordering::Relaxed);
    }
}

/// How the slow path reaches a shard. Every method that commits may fail, and then has changed nothing.
pub(crate) trait Access {
    /// The shard.
    fn shard(&self) -> &Shard;
    /// Pops from the loaded magazine.
    fn pop(&self, bin: usize) -> Result<usize, Miss>;
    /// Pushes on the loaded magazine.
    fn push(&self, bin: usize, block: usize) -> Result<(), Miss>;
    /// Stores `new` to a bin's header if it still holds `expect`.
    fn replace(&self, bin: usize, expect: usize, new: usize) -> Result<(), Miss>;
    /// Whether a bin's header holds `top` and the slot there `block`, at one moment.
    fn confirm(&self, bin: usize, top: usize, block: usize) -> bool;
    /// Takes the head of a list.
    fn list_pop(&self, head: &AtomicUsize) -> Result<Owned, Miss>;
    /// Puts a magazine, linked to `expect`, at the head of a list if that is still `expect`.
    fn list_push(&self, head: &AtomicUsize, expect: usize, magazine: &Owned) -> Result<(), Miss>;
}

/// Why an [`Access`] did nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Empty, full, or not what was expected any more; look again.
    Differs,
    /// This access does not lead to the shard any more (the thread runs on another vCPU): get another one.
    Stale,
    /// Do without this shard: the sequence gave up, or the shard is sealed.
    Bypass,
}

/// How a visit to a shard ended.
pub(crate) enum Visit<T> {
    Done(T),
    /// Get another access and try again.
    Again,
    /// Do without the shard.
    Bypass,
}

impl<T> From<Miss> for Visit<T> {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Differs | Miss::Stale => Self::Again,
            Miss::Bypass => Self::Bypass,
        }
    }
}

/// Takes a block of `bin`. `Done(0)` when memory is exhausted.
pub(crate) fn allocate(access: &impl Access, bin: usize) -> Visit<usize> {
    match access.pop(bin) {
        Ok(block) => return Visit::Done(block),
        Err(Miss::Differs) => {}
        Err(miss) => return miss.into(),
    }
    let shard = access.shard();
    let class_index = class_of_bin(bin);
    let top = shard.top(bin).load(Ordering::Relaxed);
    if peek(top) != 0 {
        // Somebody else put blocks there in between.
        return Visit::Again;
    }
    let Some(mut magazine) = filled_magazine(access, class_index) else { return Visit::Done(0) };
    let Some(block) = magazine.pop() else {
        stash_empty(access, magazine);
        return Visit::Again;
    };
    install(access, bin, top, magazine);
    Visit::Done(block)
}

/// Whether the shard has blocks of `bin`, as a hint.
pub(crate) fn has_blocks(access: &impl Access, bin: usize) -> bool {
    let shard = access.shard();
    peek(shard.top(bin).load(Ordering::Relaxed)) != 0 || shard.filled(class_of_bin(bin)).load(Ordering::Relaxed) != 0
}

/// A magazine with blocks of a class, wherever the next one is.
fn filled_magazine(access: &impl Access, class_index: usize) -> Option<Owned> {
    let shard = access.shard();
    if let Ok(magazine) = access.list_pop(shard.filled(class_index)) {
        shard.cached.fetch_sub(magazine.bytes(), Ordering::Relaxed);
        return Some(magazine);
    }
    miss(class_index);
    if let Some(magazine) = depot::take_full(class_index) {
        return Some(magazine);
    }
    let mut magazine = empty_magazine(access)?;
    magazine.prepare(class_index, capacity(class_index));
    let n = magazine.capacity();
    if central::fill(&mut magazine, n) == 0 {
        depot::put_empty(magazine);
        return None;
    }
    Some(magazine)
}

/// An empty magazine, wherever the next one is.
fn empty_magazine(access: &impl Access) -> Option<Owned> {
    access.list_pop(&access.shard().empty).ok().or_else(depot::take_empty)
}

/// Makes `magazine` the loaded one of `bin` in place of the empty one at `top`, or finds another place for it.
fn install(access: &impl Access, bin: usize, top: usize, magazine: Owned) {
    if !magazine.is_empty() && access.replace(bin, top, magazine.top()).is_ok() {
        access.shard().exchanges.fetch_add(1, Ordering::Relaxed);
        // The header owns it now.
        let _ = magazine.into_address();
        retire(access, top);
    } else {
        stash(access, magazine);
    }
}

/// Takes care of the magazine that a header held until the caller replaced it.
fn retire(access: &impl Access, top: usize) {
    if top != NONE {
        // SAFETY: winning the replacement gave the caller exclusive ownership.
        stash(access, unsafe { Owned::from_top(top) });
    }
}

/// Finds a place for a magazine, filled or empty.
fn stash(access: &impl Access, magazine: Owned) {
    if magazine.is_empty() {
        stash_empty(access, magazine);
    } else {
        stash_filled(access, magazine);
    }
}

/// An empty magazine: the shard's list, else the depot.
fn stash_empty(access: &impl Access, magazine: Owned) {
    if let Err(magazine) = list_push(access, &access.shard().empty, magazine, EMPTY_DEPTH) {
        depot::put_empty(magazine);
    }
}

/// A filled magazine: the shard's list, else the depot, else the spans.
fn stash_filled(access: &impl Access, magazine: Owned) {
    let shard = access.shard();
    let class_index = magazine.class();
    let full = magazine.capacity() * class(class_index).size as usize;
    let depth = (limit::cache_budget(LIST_BUDGET) / full.max(1)).min(64) as u32;
    let bytes = magazine.bytes();
    let budget = limit::cache_budget(SHARD_BUDGET.load(Ordering::Relaxed));
    let room = shard.cached.load(Ordering::Relaxed) as isize + bytes as isize <= budget as isize;
    let mut magazine = magazine;
    if room {
        match list_push(access, shard.filled(class_index), magazine, depth) {
            Ok(()) => {
                shard.cached.fetch_add(bytes, Ordering::Relaxed);
                return;
            }
            Err(back) => magazine = back,
        }
    }
    miss(class_index);
    if let Err(mut magazine) = depot::put_full(magazine) {
        central::flush(&mut magazine);
        stash_empty(access, magazine);
    }
}

/// Pushes on a list that is to hold `depth` magazines at most; hands the magazine back if it does not go there.
fn list_push(access: &impl Access, head: &AtomicUsize, magazine: Owned, depth: u32) -> Result<(), Owned> {
    // Another thread of this vCPU may come in between, now and then; three times in a row is its turn to be served.
    for _ in 0..3 {
        let expect = head.load(Ordering::Relaxed);
        // The head may be taken by another thread meanwhile, and then its depth is somebody else's: a hint.
        let deeper = depth_of(expect) + 1;
        if deeper > depth {
            break;
        }
        magazine.link().store(expect, Ordering::Relaxed);
        magazine.set_depth(deeper);
        match access.list_push(head, expect, &magazine) {
            Ok(()) => {
                let _ = magazine.into_address();
                return Ok(());
            }
            Err(Miss::Differs) => {}
            Err(_) => break,
        }
    }
    Err(magazine)
}

/// Returns a block of `bin`.
pub(crate) fn free(access: &impl Access, bin: usize, block: usize) -> Visit<()> {
    match access.push(bin, block) {
        Ok(()) => return Visit::Done(()),
        Err(Miss::Differs) => {}
        Err(miss) => return miss.into(),
    }
    let shard = access.shard();
    let class_index = class_of_bin(bin);
    let top = shard.top(bin).load(Ordering::Relaxed);
    if peek(top) == block {
        // The topmost of the free blocks is being freed again, if both words held that at the same time.
        if access.confirm(bin, top, block) {
            fatal::double_free(block, Seen::Now);
        }
        return Visit::Again;
    }
    if !magazine::is_full(top) {
        return Visit::Again;
    }
    let Some(mut magazine) = empty_magazine(access) else { return Visit::Bypass };
    magazine.prepare(class_index, capacity(class_index));
    magazine.push(block);
    match access.replace(bin, top, magazine.top()) {
        Ok(()) => {
            shard.exchanges.fetch_add(1, Ordering::Relaxed);
            let _ = magazine.into_address();
            retire(access, top);
            Visit::Done(())
        }
        Err(miss) => {
            magazine.pop();
            stash_empty(access, magazine);
            miss.into()
        }
    }
}

/// What [`Shard::usage`] reports.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Bytes of free blocks in the shard.
    pub(crate) cached: usize,
    /// Magazines exchanged with a header.
    pub(crate) exchanges: u64,
}

impl Shard {
    /// What the shard holds, exact while nobody uses it.
    pub(crate) fn usage(&self) -> Usage {
        let loaded: usize = self
            .tops
            .iter()
            .enumerate()
            .map(|(bin, top)| magazine::count_of(top.load(Ordering::Relaxed)) * class(class_of_bin(bin)).size as usize)
            .sum();
        Usage {
            cached: loaded + (self.cached.load(Ordering::Relaxed) as isize).max(0) as usize,
            exchanges: self.exchanges.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
