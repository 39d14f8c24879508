//! Shards: the caches of the vCPUs, and of the arenas that stand in for them.
//!
//! A shard is one 4 KiB page: per bin the top of the loaded magazine, which leads to a short chain of full and empty
//! ones, and the same of the *parked* magazine, which few bins have and only the slow path uses ([`toll`]); and one list
//! of empty ones for all. What may touch it is decided once for its life:
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
//!   allocate: loaded magazine - next full one of the chain - depot - filled from the spans     first that has a block
//!   free:     loaded magazine - next empty one of the chain - a new one that makes the chain longer
//!             - or, where it is long enough, one that takes the place of the full one, which goes to the depot - spans
//! ```
//!
//! A chain grows only by frees, since only they show that blocks come back to this vCPU. It stays as long as it has
//! become until it is drained, or another bin of the shard wants its budget. What is drained: shards that nobody uses
//! ([`idle`]), those changed least recently when all together have too much ([`bound`]), and all by a purge ([`drain`]).

pub(crate) mod arena;
pub(crate) mod bound;
pub(crate) mod drain;
pub(crate) mod gate;
pub(crate) mod idle;
pub(crate) mod private;
mod protocol;
mod toll;
pub(crate) mod vcpu;

use self::bound::{Bound, Charge, Room};
use self::toll::Way;
use crate::depot::Put;
use crate::fatal::{self, Seen};
use crate::magazine::{self, List, MAGAZINE, NONE, Owned, depth_of_chain, depth_of_list, peek};
use crate::size_class::{BINS, CLASSES, TABLE, class, class_of_bin};
use crate::{central, decay, depot, limit, os};
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// `log2` of the bytes of a shard.
pub(crate) const SHARD_SHIFT: u32 = 12;
/// Where a stack of pointers ends, see [`rseq_sys::sequence::Stacks`]: a magazine is one.
pub(crate) const STACK: usize = MAGAZINE;

/// Bytes of blocks for which a chain has room, and magazines in it; what is more goes to the depot. Two threads with
/// bursts of 1000 blocks took 8.7 to 9.8 ns per block without such a reserve and 4.3 ns with it.
const CHAIN_BUDGET: usize = 192 * 1024;
const CHAIN_MAX: usize = 64;
/// Empty magazines that a shard keeps.
const EMPTY_DEPTH: u16 = 16;
/// Misses of a class after which its magazines become deeper.
const GROW_AFTER: u8 = 16;

/// See the module's description. All zero is a shard without magazines.
#[repr(C, align(4096))]
pub(crate) struct Shard {
    /// The headers: tops of the loaded magazines, then those of the parked ones. First, so that a bin's displacement is
    /// `bin * 8`.
    tops: [AtomicUsize; HEADERS],
    /// Head of the list of empty magazines.
    empty: AtomicUsize,
    /// Not 0 while a drainer wants the slow paths to stay away.
    seal: AtomicUsize,
    /// Bytes of blocks for which there is room in its chains, the loaded magazines not counted.
    room: AtomicUsize,
    /// The same of all its magazines, see [`bound`].
    held: AtomicUsize,
    /// How often there was to be no more, since a header last gave up its chain.
    refused: AtomicUsize,
    /// The header that has to do so next.
    hand: AtomicUsize,
    /// Magazines exchanged with a header.
    exchanges: AtomicU64,
    /// How often the bound refused it a magazine.
    hits: AtomicU64,
    toll: toll::Toll,
    seen: idle::Seen,
}

const _: () = {
    assert!(size_of::<Shard>() == 1 << SHARD_SHIFT);
    assert!(offset_of!(Shard, tops) == 0);
    // The word before a shard's first header is 0 for ever, see `map`.
    assert!(offset_of!(Shard, toll) + size_of::<toll::Toll>() <= (1 << SHARD_SHIFT) - size_of::<usize>());
};

impl Shard {
    fn top(&self, header: usize) -> &AtomicUsize {
        &self.tops[if header < HEADERS { header } else { 0 }]
    }
}

/// Headers of a shard, two for each bin. That of the loaded magazine has the bin's own number.
const HEADERS: usize = 2 * BINS;

/// The header of a bin's parked magazine.
const fn parked(bin: usize) -> usize {
    BINS + bin
}

/// The bin that a header is one of.
const fn bin_of(header: usize) -> usize {
    header % BINS
}

/// Displacement of a header in its shard.
#[inline(always)]
pub(crate) const fn displacement(header: usize) -> usize {
    header * size_of::<usize>()
}

/// The bin whose header is at a displacement.
pub(crate) const fn bin_at(displacement: usize) -> usize {
    displacement / size_of::<usize>()
}

/// For how many bytes of blocks a shard has room beyond a magazine for each bin; an option.
static SHARD_BUDGET: AtomicUsize = AtomicUsize::new(DEFAULT_BUDGET);
/// Enough for 20 bins with the longest chains.
pub(crate) const DEFAULT_BUDGET: usize = 4 << 20;
/// How many times a chain is not to grow before another one is given up for it. A loop over random sizes, all of which want
/// more than there is, would else do nothing but take them from each other: 12.9 instead of 9.4 ns.
const GIVE_UP_AFTER: usize = 64;

/// Sets the bytes of blocks for which a shard has room.
pub(crate) fn set_budget(bytes: usize) {
    // The sum it is compared with is signed, since magazines are counted after they came or went.
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
    /// What it is counted in.
    fn bound(&self) -> &'static Bound;
    /// Does what is due in the layers below, and for other shards if they can be reached from here. On visits that the
    /// loaded magazine could not serve. Returns the time in milliseconds.
    fn tick(&self) -> u64 {
        tick_below(os::clock::now_ms())
    }
    /// The shard gets a magazine.
    fn note(&self) {}
    /// Drains others for this one, if they can be reached from here.
    fn make_room(&self, _now: u64) -> Room {
        Room::Never
    }
    /// Pops from the magazine of a header, or the next full one of its chain.
    fn pop(&self, header: usize) -> Result<usize, Miss>;
    /// Pushes on the magazine of a header, or the next empty one of its chain.
    fn push(&self, header: usize, block: usize) -> Result<(), Miss>;
    /// Stores `new` to a header if it still holds `expect`: another chain in place of the one that was there.
    fn replace(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss>;
    /// Puts the magazine at `new` in the place of the one at `expect`, whose neighbours it gets.
    fn exchange(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss>;
    /// Puts the magazine at `new` in front of the full one at `expect`.
    fn extend(&self, header: usize, expect: usize, new: usize) -> Result<(), Miss>;
    /// Whether a header holds `top` and the slot there `block`, at one moment.
    fn confirm(&self, header: usize, top: usize, block: usize) -> bool;
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
    let header = access.shard().top(bin);
    if header.load(Ordering::Relaxed) != NONE {
        match access.pop(bin) {
            Ok(block) => return Visit::Done(block),
            Err(Miss::Differs) => {}
            Err(miss) => return miss.into(),
        }
    }
    let class_index = class_of_bin(bin);
    let top = header.load(Ordering::Relaxed);
    if peek(top) != 0 {
        // Somebody else put blocks there in between.
        return Visit::Again;
    }
    let now = match toll::way(access, bin) {
        Way::Load(now) => now,
        Way::Aside => return allocate_aside(class_index),
        Way::Parked => match access.pop(parked(bin)) {
            Ok(block) => return Visit::Done(block),
            Err(Miss::Differs) => return toll::end(access, bin),
            Err(miss) => return miss.into(),
        },
        Way::Back => return toll::end(access, bin),
    };
    let Some(place) = place(access, bin, top, now) else { return allocate_aside(class_index) };
    let Some(mut magazine) = filled_magazine(access, class_index) else { return Visit::Done(0) };
    let Some(block) = magazine.pop() else {
        stash_empty(access, magazine);
        return Visit::Again;
    };
    if magazine.is_empty() {
        stash_empty(access, magazine);
    } else if let Err((_, magazine)) = install(access, bin, place, magazine) {
        stash(access, magazine);
    }
    Visit::Done(block)
}

/// A block for a bin that is to stay without a magazine: from one of the depot, else from the spans.
fn allocate_aside(class_index: usize) -> Visit<usize> {
    depot::take_block(class_index).map_or(Visit::Bypass, Visit::Done)
}

/// Returns a block of such a bin: to a magazine of the depot, else to the spans. Where the depot has full ones, the block
/// goes there with a new one, in which the next ones have room; so does a block that is a span of its own, which
/// would leave its place to others at once, and need a new one with the next call.
fn free_aside(access: &impl Access, class_index: usize, block: usize) -> Visit<()> {
    match depot::put_block(class_index, block) {
        Put::Done => return Visit::Done(()),
        Put::Twice => fatal::double_free(block, Seen::Now),
        Put::NoMagazine if class(class_index).blocks > 1 => return Visit::Bypass,
        Put::NoMagazine | Put::NoRoom => {}
    }
    let Some(mut magazine) = empty_magazine(access) else { return Visit::Bypass };
    magazine.prepare(class_index, capacity(class_index));
    let pushed = magazine.push(block);
    stash(access, magazine);
    if pushed { Visit::Done(()) } else { Visit::Bypass }
}

/// Does what is due in the layers below at the time `now`, which it returns.
fn tick_below(now: u64) -> u64 {
    decay::tick_at(now);
    depot::tick(now);
    now
}

/// Whether the shard has blocks of `bin`, as a hint.
pub(crate) fn has_blocks(access: &impl Access, bin: usize) -> bool {
    [bin, parked(bin)].into_iter().any(|header| {
        let top = access.shard().top(header).load(Ordering::Relaxed);
        peek(top) != 0 || magazine::neighbours(top).0 != NONE
    })
}

/// A magazine with blocks of a class, from wherever the next one is below the shard.
fn filled_magazine(access: &impl Access, class_index: usize) -> Option<Owned> {
    miss(class_index);
    let magazine = match depot::take_full(class_index) {
        Some(magazine) => {
            // Another vCPU's, most often.
            magazine.prefetch();
            magazine
        }
        None => {
            let mut magazine = empty_magazine(access)?;
            magazine.prepare(class_index, capacity(class_index));
            let n = magazine.capacity();
            if central::fill(&mut magazine, n) == 0 {
                depot::put_empty(magazine);
                return None;
            }
            magazine
        }
    };
    access.shard().toll.note_taken(magazine.bytes());
    Some(magazine)
}

/// An empty magazine, wherever the next one is.
fn empty_magazine(access: &impl Access) -> Option<Owned> {
    access.list_pop(&access.shard().empty).ok().or_else(depot::take_empty)
}

/// Where a magazine is to be loaded.
enum Place<'a> {
    /// Instead of the one at this top.
    Of(usize),
    /// In front of the full one at this top, with room for one more.
    InFrontOf(usize, Charge<'a>),
    /// Where there is none, with room for it.
    First(Charge<'a>),
}

/// The place for a magazine in a header that holds `top`: that of the loaded one. `None` if there is none, and no room
/// for one.
fn place<A: Access>(access: &A, bin: usize, top: usize, now: u64) -> Option<Place<'_>> {
    if top == NONE { bound::first(access, bin, now).map(Place::First) } else { Some(Place::Of(top)) }
}

/// Makes `magazine` the loaded one of `bin`, and finds a place for the one whose place it takes.
fn install(access: &impl Access, bin: usize, place: Place<'_>, magazine: Owned) -> Result<(), (Miss, Owned)> {
    let shard = access.shard();
    let result = match &place {
        Place::First(_) => {
            magazine.unchain();
            access.replace(bin, NONE, magazine.top())
        }
        Place::InFrontOf(top, _) => {
            magazine.set_depth(depth_of_chain(*top).saturating_add(1));
            access.extend(bin, *top, magazine.top())
        }
        Place::Of(top) => {
            magazine.set_depth(depth_of_chain(*top));
            access.exchange(bin, *top, magazine.top())
        }
    };
    if let Err(miss) = result {
        return Err((miss, magazine));
    }
    // The header owns it now.
    let _ = magazine.into_address();
    match place {
        Place::First(charge) => {
            charge.keep();
            access.note();
        }
        Place::InFrontOf(_, charge) => {
            charge.keep();
            shard.room.fetch_add(counted(class_of_bin(bin)), Ordering::Relaxed);
            return Ok(());
        }
        // SAFETY: winning the exchange gave the caller exclusive ownership.
        Place::Of(top) => stash(access, unsafe { Owned::from_top(top) }),
    }
    shard.exchanges.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// What a magazine of a class counts in a chain, in bytes: the most that fit, whatever its capacity is now. What deep ones
/// have room for beyond that of others has a bound of its own, [`magazine::DEEP`].
fn counted(class_index: usize) -> usize {
    let of = class(class_index);
    usize::from(if of.blocks == 1 { of.capacity } else { of.capacity_max }) * of.size as usize
}

/// Room for another magazine in the chain of `bin` whose full loaded one is at `top`. Bins that are refused again and
/// again, since the shard's budget is used up or the bound reached, make others give up their chains.
fn longer<'a>(access: &'a impl Access, bin: usize, top: usize) -> Option<Charge<'a>> {
    let bytes = counted(class_of_bin(bin));
    let longest = (limit::cache_budget(CHAIN_BUDGET) / bytes).min(CHAIN_MAX);
    if usize::from(depth_of_chain(top)) > longest {
        return None;
    }
    let shard = access.shard();
    let budget = limit::cache_budget(SHARD_BUDGET.load(Ordering::Relaxed)) as isize;
    if shard.room.load(Ordering::Relaxed) as isize + bytes as isize <= budget
        && let Some(charge) = access.bound().charge(shard, bytes)
    {
        return Some(charge);
    }
    if refused_often(shard) {
        give_up_another(access, bin, false);
    }
    None
}

/// Counts that there was no room; true every [`GIVE_UP_AFTER`] times.
fn refused_often(shard: &Shard) -> bool {
    // Lost counts do no harm.
    let refused = shard.refused.load(Ordering::Relaxed) + 1;
    shard.refused.store(refused % GIVE_UP_AFTER, Ordering::Relaxed);
    refused == GIVE_UP_AFTER
}

/// Takes the chain that a header with this `top` owned, and notes that its room is free.
///
/// # Safety
/// The caller has just won exclusive ownership of it.
unsafe fn take_chain(bound: &Bound, shard: &Shard, top: usize, list: &mut List) {
    // SAFETY: by contract.
    if let Some((class_index, magazines)) = unsafe { list.append_chain(top) } {
        shard.room.fetch_sub((magazines - 1) * counted(class_index), Ordering::Relaxed);
        bound.release(shard, magazines * counted(class_index));
    }
}

/// Takes the chain of the next header that has one and is not that of `bin`, and gives its blocks to the depot. `single`:
/// so does one that has only one magazine, if that is the next.
fn give_up_another(access: &impl Access, bin: usize, single: bool) {
    let shard = access.shard();
    for _ in 0..HEADERS {
        let hand = (shard.hand.load(Ordering::Relaxed) + 1) % HEADERS;
        shard.hand.store(hand, Ordering::Relaxed);
        let top = shard.top(hand).load(Ordering::Relaxed);
        // A magazine without neighbours is little, and what a bin in use needs.
        if hand == bin || top == NONE || (!single && magazine::neighbours(top) == (NONE, NONE)) {
            continue;
        }
        unload(access, hand);
        return;
    }
}

/// Leaves a header without a magazine and gives what its chain held to the depot.
fn unload(access: &impl Access, header: usize) {
    let top = access.shard().top(header).load(Ordering::Relaxed);
    if top != NONE && access.replace(header, top, NONE).is_ok() {
        // SAFETY: winning the replacement gave the caller exclusive ownership.
        unsafe { stash_chain(access, top) };
    }
}

/// Moves the chain of a header to another one of the same bin, which has none; if that has one after all, to the depot.
///
/// ```text
///   1   from: top -> NONE         the chain is this thread's, and in no header
///   2   to:   NONE -> top         or, if that fails, all its magazines go to the depot
/// ```
///
/// Each step is one commit, so wherever this is cut the chain has one owner: `from` before the first, the thread between
/// the two, `to` after the second. What others may do between the two, and what comes of it:
///
/// * Calls for the bin find no magazine in either header, and another thread of this vCPU may load one in `to`. Then the
///   second step fails. If it loads one in `from`, both headers have a chain in the end. Each counts for what it has
///   room for, each is drained, and the slow path finds the parked one when the loaded one has nothing: that costs
///   calls, and no block.
/// * The thread is moved to another vCPU, or a drainer has sealed the shard: the second step fails. A drain that came
///   and went did not see this chain, as it does not see what any thread has in its hands; one that comes after the
///   second step finds it, since both headers are among those that it exchanges.
/// * The chain itself does not change: no header leads to it, and sections that had read the old top were aborted when
///   they were switched out ([`rseq_sys::sequence::Vcpu::replace`]). So `top` is still right in the second step, and so
///   are the words along which the chain is followed from there. The room that is counted for it stays counted, with
///   the shard that it came from and goes to; [`stash_chain`] takes it off.
///
/// # Errors
/// The first step failed, and nothing was changed.
fn carry(access: &impl Access, from: usize, to: usize) -> Result<(), Miss> {
    let top = access.shard().top(from).load(Ordering::Relaxed);
    if top == NONE {
        return Ok(());
    }
    access.replace(from, top, NONE)?;
    if access.replace(to, NONE, top).is_ok() {
        access.note();
    } else {
        // SAFETY: the first replacement gave the caller exclusive ownership, and the second did not take it.
        unsafe { stash_chain(access, top) };
    }
    Ok(())
}

/// Gives what the chain of a header with this `top` held to the depot.
///
/// # Safety
/// The caller has won exclusive ownership of it.
unsafe fn stash_chain(access: &impl Access, top: usize) {
    let mut chain = List::new();
    // SAFETY: by contract.
    unsafe { take_chain(access.bound(), access.shard(), top, &mut chain) };
    while let Some(magazine) = chain.pop() {
        stash(access, magazine);
    }
}

/// Finds a place for a magazine, filled or empty.
fn stash(access: &impl Access, mut magazine: Owned) {
    if !magazine.is_empty() {
        access.shard().toll.note_given(magazine.bytes());
        match depot::put_full(magazine) {
            Ok(()) => return,
            Err(back) => magazine = back,
        }
        central::flush(&mut magazine);
    }
    stash_empty(access, magazine);
}

/// An empty magazine: the shard's list, else the depot.
fn stash_empty(access: &impl Access, mut magazine: Owned) {
    magazine.make_shallow();
    if let Err(magazine) = list_push(access, &access.shard().empty, magazine, EMPTY_DEPTH) {
        depot::put_empty(magazine);
    }
}

/// Pushes on a list that is to hold `depth` magazines at most; hands the magazine back if it does not go there.
fn list_push(access: &impl Access, head: &AtomicUsize, magazine: Owned, depth: u16) -> Result<(), Owned> {
    // Another thread of this vCPU may come in between, now and then; three times in a row is its turn to be served.
    for _ in 0..3 {
        let expect = head.load(Ordering::Relaxed);
        // The head may be taken by another thread meanwhile, and then its depth is somebody else's: a hint.
        let deeper = depth_of_list(expect).saturating_add(1);
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
    let header = access.shard().top(bin);
    if header.load(Ordering::Relaxed) != NONE {
        match access.push(bin, block) {
            Ok(()) => return Visit::Done(()),
            Err(Miss::Differs) => {}
            Err(miss) => return miss.into(),
        }
    }
    let class_index = class_of_bin(bin);
    let top = header.load(Ordering::Relaxed);
    if is_topmost(access, bin, top, block) || !magazine::is_full(top) {
        return Visit::Again;
    }
    let now = match toll::way(access, bin) {
        Way::Load(now) => now,
        Way::Aside => return free_aside(access, class_index, block),
        Way::Parked => match access.push(parked(bin), block) {
            Ok(()) => return Visit::Done(()),
            Err(Miss::Differs) => {
                let top = access.shard().top(parked(bin)).load(Ordering::Relaxed);
                return if is_topmost(access, parked(bin), top, block) { Visit::Again } else { toll::end(access, bin) };
            }
            Err(miss) => return miss.into(),
        },
        Way::Back => return toll::end(access, bin),
    };
    // A header without a magazine is full, too, and has no chain to make longer.
    let longer = if top == NONE { None } else { longer(access, bin, top) };
    let place = match longer {
        Some(charge) => Some(Place::InFrontOf(top, charge)),
        None => place(access, bin, top, now),
    };
    let Some(place) = place else { return free_aside(access, class_index, block) };
    let Some(mut magazine) = empty_magazine(access) else { return Visit::Bypass };
    magazine.prepare(class_index, capacity(class_index));
    magazine.push(block);
    if matches!(place, Place::Of(_)) {
        miss(class_index);
    }
    match install(access, bin, place, magazine) {
        Ok(()) => Visit::Done(()),
        Err((miss, mut magazine)) => {
            magazine.pop();
            stash_empty(access, magazine);
            miss.into()
        }
    }
}

/// Whether `block`, which is being freed, seemed to be the topmost free one of a header, at `top`. If it was for certain, it is
/// freed twice, and that ends the process.
fn is_topmost(access: &impl Access, header: usize, top: usize, block: usize) -> bool {
    let seems = peek(top) == block;
    // Both words held that at the same time.
    if seems && access.confirm(header, top, block) {
        fatal::double_free(block, Seen::Now);
    }
    seems
}

/// What [`Shard::usage`] reports.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Bytes of free blocks in the shard.
    pub(crate) cached: usize,
    /// Magazines exchanged with a header.
    pub(crate) exchanges: u64,
    /// Times that it was to have no more of them.
    pub(crate) hits: u64,
}

impl Shard {
    /// What the shard holds, exact while nobody uses it.
    pub(crate) fn usage(&self) -> Usage {
        let mut cached = 0;
        for (header, top) in self.tops.iter().enumerate() {
            let size = class(class_of_bin(bin_of(header))).size as usize;
            let count = |top| cached += magazine::count_of(top) * size;
            magazine::for_each_of_chain(top.load(Ordering::Relaxed), count);
        }
        Usage { cached, exchanges: self.exchanges.load(Ordering::Relaxed), hits: self.hits.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests;
