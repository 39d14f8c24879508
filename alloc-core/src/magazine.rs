//! Magazines: arrays of pointers to free blocks of one class.
//!
//! ```text
//!   word 0   link of the list or pool it is in
//!   word 1   top of the full magazine below it, 0 for none      in a chain, see rseq_sys::sequence::Stacks; only tops
//!   word 2   top of the empty magazine above it, 0 for none     and 0 ever stand here
//!   word 3   capacity, count while owned, class, depth          capacity and depth may be read by anybody
//!   …        not used
//!   word 255 - capacity      0, the sentinel below the slots
//!   the words after it       the slots, to the end of the magazine
//! ```
//!
//! A *loaded* magazine is one that a shard's header points into; the header's `top` is the address of the first free
//! slot, or the magazine's end if it is full. So an address tells whether a magazine is full, and a top leads to its
//! magazine by masking. With it the header owns a *chain*: full magazines to go on to when it is empty, and empty ones
//! for when it is full. All others are owned: by a thread, a list, the depot.
//!
//! Invariants:
//!
//! * Magazines are never unmapped and never anything else, so a section that was cut may still read a stale one, and a
//!   reader of statistics may follow a chain that others change.
//! * Whoever holds an [`Owned`] is the only one to change the magazine. Capacity changes only then, and only of an
//!   empty one.
//! * No slot below the top holds 0.
//! * [`DEEP`] counts what the magazines have room for that are deep, which none is that lies among empty ones.

use crate::limit;
use crate::meta::{Pool, PoolItem};
use crate::size_class::{CLASSES, class};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use rseq_sys::sequence::{EMPTY, FULL};

/// Bytes of a magazine, and its alignment.
pub(crate) const MAGAZINE: usize = 2048;
/// Words before the sentinel and the slots.
const HEAD: usize = 4;
const WORDS: usize = MAGAZINE / 8 - HEAD;
/// Pointers that a magazine can hold.
pub(crate) const CAPACITY: usize = 251;
/// What a header holds that has no magazine: neither block nor room.
pub(crate) const NONE: usize = 0;

/// See the module's description.
#[repr(C, align(2048))]
pub(crate) struct Magazine {
    link: AtomicUsize,
    full: AtomicUsize,
    empty: AtomicUsize,
    capacity: AtomicU16,
    count: AtomicU16,
    class: AtomicU16,
    /// Its place in its chain or list, counted from the end; read by threads that do not own it, as a hint.
    depth: AtomicU16,
    /// Read by threads that do not own it: sections that will be aborted, and [`peek`].
    words: [AtomicUsize; WORDS],
}

/// Offset of the link, for sequences that pop a list.
pub(crate) const LINK: usize = offset_of!(Magazine, link);

const _: () = {
    assert!(size_of::<Magazine>() == MAGAZINE);
    assert!(offset_of!(Magazine, words) == HEAD * 8);
    assert!(offset_of!(Magazine, full) == FULL && offset_of!(Magazine, empty) == EMPTY);
    assert!(CAPACITY < WORDS);
};

// SAFETY: the link is the first word, and nothing else is kept in it; zero is a value for every field.
unsafe impl PoolItem for Magazine {
    fn link(this: *mut Self) -> *mut *mut Self {
        this.cast()
    }
}

/// Where magazines come from, and go when nobody wants to keep them.
static POOL: Pool<Magazine> = Pool::new();

/// The pool, for the fork handlers.
pub(crate) fn pool() -> &'static Pool<Magazine> {
    &POOL
}

/// A magazine is *deep* if it is one for single blocks and has room for more of them than such magazines have at first.
/// These are the bytes of blocks that all deep ones have room for beyond that. Of small blocks a shard holds little,
/// whatever it is given; of these a few for each vCPU would be a lot, so there is a bound for the process.
pub(crate) static DEEP: AtomicUsize = AtomicUsize::new(0);
/// The bound. One thread that replaces blocks of 64 KiB to 1 MiB at random has use for 20 to 30 MiB of it, and takes as
/// long with 16.
const DEEP_MAX: usize = 32 << 20;

/// A magazine that the holder owns exclusively. It has no destructor: every path hands it on, and a magazine lost in a
/// thread that a fork cut off is only a leak.
#[must_use]
pub(crate) struct Owned(NonNull<Magazine>);

impl Owned {
    /// An empty magazine from the pool, `None` when memory is exhausted.
    pub(crate) fn new() -> Option<Self> {
        let magazine = POOL.get()?;
        let new = Self(magazine);
        let m = new.get();
        // Written before it is read: a fresh page that is read first costs two faults.
        m.count.store(0, Relaxed);
        // All zero when it is new, and then there is a sentinel everywhere.
        if m.capacity.load(Relaxed) == 0 {
            m.capacity.store(CAPACITY as u16, Relaxed);
        }
        Some(new)
    }

    /// Gives an empty magazine back to the pool.
    pub(crate) fn discard(mut self) {
        debug_assert!(self.is_empty());
        self.make_shallow();
        // SAFETY: it came from the pool and is ours.
        unsafe { POOL.put(self.0) }
    }

    /// The magazine that `top` points into.
    ///
    /// # Safety
    /// `top` was the content of a header (not [`NONE`]), and the caller has just won exclusive ownership of it.
    pub(crate) unsafe fn from_top(top: usize) -> Self {
        // SAFETY: no magazine is at address 0.
        let magazine = Self(unsafe { NonNull::new_unchecked(at(top).cast_mut()) });
        magazine.get().count.store(count_of(top) as u16, Relaxed);
        magazine
    }

    /// The magazine at `address`, as [`Owned::into_address`] gave it.
    ///
    /// # Safety
    /// The caller has just won exclusive ownership, for instance by taking it from a list.
    pub(crate) unsafe fn from_address(address: usize) -> Option<Self> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(address)).map(Self)
    }

    /// The address, for a list that owns it from now on.
    pub(crate) fn into_address(self) -> usize {
        self.0.as_ptr().expose_provenance()
    }

    fn get(&self) -> &Magazine {
        // SAFETY: magazines are never unmapped. All fields are atomics, so that others may read them although this is
        // the only owner.
        unsafe { self.0.as_ref() }
    }

    /// The address, while it stays ours.
    pub(crate) fn address(&self) -> usize {
        self.0.as_ptr().expose_provenance()
    }

    /// Makes an empty magazine one for `class`, with room for `capacity` pointers (1 to [`CAPACITY`]), or for fewer if
    /// there is enough of deep ones.
    pub(crate) fn prepare(&mut self, class: usize, capacity: usize) {
        debug_assert!(self.is_empty());
        self.make_shallow();
        let mut capacity = capacity.clamp(1, CAPACITY);
        let deep = beyond(class, capacity);
        if deep > 0 {
            if DEEP.load(Relaxed) + deep <= limit::cache_budget(DEEP_MAX) {
                DEEP.fetch_add(deep, Relaxed);
            } else {
                capacity = shallow(class);
            }
        }
        let m = self.get();
        m.capacity.store(capacity as u16, Relaxed);
        if let Some(sentinel) = m.word(0) {
            sentinel.store(0, Relaxed);
        }
        m.class.store(class as u16, Relaxed);
    }

    /// Takes an empty magazine off the count of [`DEEP`] if it is there.
    pub(crate) fn make_shallow(&mut self) {
        debug_assert!(self.is_empty());
        let deep = beyond(self.class(), self.capacity());
        if deep > 0 {
            self.get().capacity.store(shallow(self.class()) as u16, Relaxed);
            DEEP.fetch_sub(deep, Relaxed);
        }
    }

    /// See [`DEEP`].
    pub(crate) fn is_deep(&self) -> bool {
        beyond(self.class(), self.capacity()) > 0
    }

    /// Pointers in it.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.get().count.load(Relaxed))
    }

    /// Bytes of the blocks in it.
    pub(crate) fn bytes(&self) -> usize {
        self.count() * class(self.class()).size as usize
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Pointers that fit.
    pub(crate) fn capacity(&self) -> usize {
        usize::from(self.get().capacity.load(Relaxed))
    }

    /// The class that the pointers in it belong to.
    pub(crate) fn class(&self) -> usize {
        usize::from(self.get().class.load(Relaxed))
    }

    /// Asks for the first cache lines of all its blocks, which are about to be written. Where another CPU freed them it
    /// has had those lines last, and then the stores of the program, which become visible in their order, wait for one
    /// after the other; so many prefetches are under way at once.
    pub(crate) fn prefetch(&self) {
        let m = self.get();
        for word in (1..=self.count()).rev().filter_map(|at| m.word(at)) {
            rseq_sys::prefetch_to_write(word.load(Relaxed));
        }
    }

    /// Takes the topmost pointer.
    pub(crate) fn pop(&mut self) -> Option<usize> {
        let count = self.count();
        let word = self.get().word(count).filter(|_| count > 0)?;
        self.get().count.store(count as u16 - 1, Relaxed);
        Some(word.load(Relaxed))
    }

    /// Adds a pointer; false if it is full.
    pub(crate) fn push(&mut self, p: usize) -> bool {
        let count = self.count() + 1;
        let Some(word) = self.get().word(count).filter(|_| count <= self.capacity()) else { return false };
        word.store(p, Relaxed);
        self.get().count.store(count as u16, Relaxed);
        true
    }

    /// The top to store into a header that is to own this magazine.
    pub(crate) fn top(&self) -> usize {
        let free = self.capacity().saturating_sub(self.count());
        // The end of a full magazine is where the next one begins, but belongs to this one.
        self.0.as_ptr().expose_provenance() + MAGAZINE - free * size_of::<usize>()
    }

    /// The link of the list that is to own it.
    pub(crate) fn link(&self) -> &AtomicUsize {
        &self.get().link
    }

    /// Notes how deep the list or the chain is, this magazine included.
    pub(crate) fn set_depth(&self, depth: u16) {
        self.get().depth.store(depth, Relaxed);
    }

    /// Makes it a chain of its own.
    pub(crate) fn unchain(&self) {
        self.get().full.store(NONE, Relaxed);
        self.get().empty.store(NONE, Relaxed);
        self.set_depth(1);
    }
}

impl Magazine {
    /// The word of pointer number `count`, the first being 1; 0 is the sentinel.
    fn word(&self, count: usize) -> Option<&AtomicUsize> {
        self.words.get((WORDS - 1 + count).wrapping_sub(usize::from(self.capacity.load(Relaxed))))
    }
}

/// Pointers in a magazine for single blocks that is not deep.
fn shallow(class_index: usize) -> usize {
    usize::from(class(class_index).capacity)
}

/// What a magazine of a class and capacity counts in [`DEEP`]. New magazines have the class 0.
fn beyond(class_index: usize, capacity: usize) -> usize {
    if class_index == 0 || class_index >= CLASSES || class(class_index).blocks > 1 {
        return 0;
    }
    capacity.saturating_sub(shallow(class_index)) * class(class_index).size as usize
}

/// The magazine that `top` points into.
#[inline]
fn at(top: usize) -> *const Magazine {
    core::ptr::with_exposed_provenance((top - size_of::<usize>()) & !(MAGAZINE - 1))
}

/// Pointers below `top` in its magazine, which is a hint unless the caller owns it; 0 for [`NONE`].
#[inline]
pub(crate) fn count_of(top: usize) -> usize {
    if top == NONE {
        return 0;
    }
    // SAFETY: tops lead to magazines, which are never unmapped; the field is atomic.
    let capacity = unsafe { &(*at(top)).capacity }.load(Relaxed);
    let free = (MAGAZINE - 1 - (top - 1) % MAGAZINE) / size_of::<usize>();
    usize::from(capacity).saturating_sub(free)
}

/// Whether nothing can be pushed at `top`.
#[inline]
pub(crate) fn is_full(top: usize) -> bool {
    top.is_multiple_of(MAGAZINE)
}

/// The depth noted at the head of a list, as a hint; 0 for an empty list.
#[inline]
pub(crate) fn depth_of_list(head: usize) -> u16 {
    if head == 0 { 0 } else { depth_of_chain(head + MAGAZINE) }
}

/// The depth noted in the magazine at `top`, as a hint; 0 for [`NONE`].
#[inline]
pub(crate) fn depth_of_chain(top: usize) -> u16 {
    if top == NONE {
        return 0;
    }
    // SAFETY: tops lead to magazines, which are never unmapped; the field is atomic.
    unsafe { &(*at(top)).depth }.load(Relaxed)
}

/// How far a chain is followed to one side. They are much shorter, but others may lead a reader in a circle.
const FOLLOW: usize = 1024;

/// The tops of the full magazine below and the empty one above the one at `top`, as a hint; [`NONE`] for none.
pub(crate) fn neighbours(top: usize) -> (usize, usize) {
    if top == NONE {
        return (NONE, NONE);
    }
    // SAFETY: tops lead to magazines, which are never unmapped; the words are atomic.
    let magazine = unsafe { &*at(top) };
    (magazine.full.load(Relaxed), magazine.empty.load(Relaxed))
}

/// Calls `f` with the tops of all magazines of the chain whose loaded one is at `top`. They are hints unless the caller
/// owns the chain, but always tops.
pub(crate) fn for_each_of_chain(top: usize, mut f: impl FnMut(usize)) {
    // What a magazine says is read before `f` has it.
    let (mut full, mut empty) = neighbours(top);
    if top != NONE {
        f(top);
    }
    for _ in 0..FOLLOW {
        let (here, further) = if full != NONE { (full, neighbours(full).0) } else { break };
        full = further;
        f(here);
    }
    for _ in 0..FOLLOW {
        let (here, further) = if empty != NONE { (empty, neighbours(empty).1) } else { break };
        empty = further;
        f(here);
    }
}

/// The word of the topmost pointer at `top`, which is not [`NONE`]: a slot, or the sentinel.
#[inline]
pub(crate) fn topmost(top: usize) -> *const usize {
    core::ptr::with_exposed_provenance(top - size_of::<usize>())
}

/// The topmost pointer at `top`, 0 if there is none, without owning it.
#[inline]
pub(crate) fn peek(top: usize) -> usize {
    if top == NONE {
        return 0;
    }
    // SAFETY: below a top is a word of a magazine, which are never unmapped, and the words are
    // atomics. Others may write it at the same time; the value is a hint unless the caller knows better.
    unsafe { (*topmost(top).cast::<AtomicUsize>()).load(Relaxed) }
}

/// A list of magazines that its holder owns.
pub(crate) struct List {
    head: usize,
    len: usize,
}

impl List {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        Self { head: 0, len: 0 }
    }

    /// Magazines in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a magazine.
    pub(crate) fn push(&mut self, magazine: Owned) {
        magazine.link().store(self.head, Relaxed);
        self.head = magazine.into_address();
        self.len += 1;
    }

    /// Takes the magazine that was added last.
    pub(crate) fn pop(&mut self) -> Option<Owned> {
        // SAFETY: what is in the list was owned by who put it there and is owned by the list now.
        let magazine = unsafe { Owned::from_address(self.head) }?;
        self.head = magazine.link().load(Relaxed);
        self.len = self.len.saturating_sub(1);
        Some(magazine)
    }

    /// Takes over a list of linked magazines, as a shard holds them.
    ///
    /// # Safety
    /// The caller owns the whole list that begins at `head` exclusively.
    pub(crate) unsafe fn append_list(&mut self, mut head: usize) {
        // SAFETY: by contract every element of the list is ours.
        while let Some(magazine) = unsafe { Owned::from_address(head) } {
            head = magazine.link().load(Relaxed);
            self.push(magazine);
        }
    }

    /// Takes over the chain that a header with this `top` owned. Returns its class and how many magazines it had, if any.
    ///
    /// # Safety
    /// The caller has just won exclusive ownership of it.
    pub(crate) unsafe fn append_chain(&mut self, top: usize) -> Option<(usize, usize)> {
        let (mut class, before) = (None, self.len);
        for_each_of_chain(top, |top| {
            // SAFETY: by contract every element of the chain is ours.
            let magazine = unsafe { Owned::from_top(top) };
            class = Some(magazine.class());
            self.push(magazine);
        });
        class.map(|class| (class, self.len - before))
    }

    /// Cuts off all but the `keep` magazines that were added last.
    pub(crate) fn cut(&mut self, keep: usize) -> List {
        let mut kept = List::new();
        while kept.len < keep
            && let Some(magazine) = self.pop()
        {
            kept.push(magazine);
        }
        let rest = core::mem::replace(self, List::new());
        self.append(kept);
        rest
    }

    /// Adds all magazines of another list, in the reverse order.
    pub(crate) fn append(&mut self, mut other: List) {
        while let Some(magazine) = other.pop() {
            self.push(magazine);
        }
    }

    /// Bytes of the blocks in all its magazines.
    pub(crate) fn bytes(&self) -> usize {
        let mut bytes = 0;
        let mut at = self.head;
        while at != 0 {
            let magazine = core::ptr::with_exposed_provenance::<Magazine>(at);
            // SAFETY: an element of this list, which the caller holds.
            let m = unsafe { &*magazine };
            bytes += usize::from(m.count.load(Relaxed)) * class(usize::from(m.class.load(Relaxed))).size as usize;
            at = m.link.load(Relaxed);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    #[test]
    fn sentinels_follow_the_capacity() {
        let mut m = Owned::new().unwrap();
        for capacity in [59, 123, 251, 3, 27, 251, 1] {
            m.prepare(1, capacity);
            for i in 0..capacity {
                assert!(m.push(8 * (i + 1)));
            }
            assert!(!m.push(8));
            let top = m.top();
            assert!(is_full(top));
            assert_eq!(count_of(top), capacity);
            for i in (0..capacity).rev() {
                assert_eq!(m.pop(), Some(8 * (i + 1)));
            }
            assert_eq!(m.pop(), None);
            assert_eq!((peek(m.top()), count_of(m.top()), is_full(m.top())), (0, 0, false));
        }
        m.discard();
        assert_eq!((peek(NONE), count_of(NONE), is_full(NONE)), (0, 0, true));
    }

    /// Promise: all magazines together have room for a bounded number of single blocks, and those that are empty for none.
    #[test]
    fn deep_magazines_are_bounded() {
        let class_index = CLASSES - 1;
        let (first, most) = (shallow(class_index), usize::from(class(class_index).capacity_max));
        let mut all = std::vec::Vec::new();
        loop {
            let mut m = Owned::new().unwrap();
            m.prepare(class_index, most);
            let deep = m.is_deep();
            assert_eq!(m.capacity(), if deep { most } else { first });
            all.push(m);
            if !deep {
                break;
            }
        }
        // Other tests may have some.
        assert!(all.len() <= 1 + DEEP_MAX / beyond(class_index, most));
        assert!(DEEP.load(Relaxed) <= DEEP_MAX);
        for mut m in all {
            m.make_shallow();
            assert!(!m.is_deep() && m.capacity() == first);
            m.prepare(class_index, first);
            assert!(!m.is_deep());
            m.discard();
        }
    }

    #[test]
    fn a_top_leads_back_to_its_magazine() {
        let mut m = Owned::new().unwrap();
        m.prepare(5, 10);
        assert!(m.push(80) && m.push(160));
        let top = m.top();
        // SAFETY: the magazine is ours, and forgotten in favour of the one made from its top.
        let mut again = unsafe { Owned::from_top(top) };
        assert_eq!((again.count(), again.class(), again.capacity()), (2, 5, 10));
        assert_eq!((again.pop(), again.pop(), again.pop()), (Some(160), Some(80), None));
        again.discard();
    }

    #[test]
    fn lists() {
        let mut list = List::new();
        for class in 1..4 {
            let mut m = Owned::new().unwrap();
            m.prepare(class, 8);
            assert!(m.push(8));
            list.push(m);
        }
        assert_eq!((list.len(), list.bytes()), (3, 8 + 16 + 24));
        assert_eq!(list.cut(3).len(), 0);
        let mut oldest = list.cut(1);
        assert_eq!((oldest.len(), oldest.bytes(), list.len(), list.bytes()), (2, 8 + 16, 1, 24));
        oldest.append(list);
        let all = oldest.cut(0);
        assert_eq!((oldest.len(), oldest.bytes(), all.len()), (0, 0, 3));
        let mut list = all;
        for class in (1..4).rev() {
            let mut m = list.pop().unwrap();
            assert_eq!(m.class(), class);
            m.pop();
            m.discard();
        }
        assert!(list.pop().is_none());
    }

    proptest::proptest! {
        /// Any sequence of pushes, pops and changes of capacity agrees with a vector, and the sentinels stand where
        /// they must.
        #[test]
        fn any_sequence_agrees_with_a_vector(steps in proptest::collection::vec((0..5u8, 1..300usize), 1..400)) {
            let mut magazine = Owned::new().unwrap();
            magazine.prepare(3, 59);
            let (mut model, mut capacity) = (std::vec::Vec::new(), 59);
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        for p in (1..=n).map(|i| 16 * i) {
                            assert_eq!(magazine.push(p), model.len() < capacity);
                            if model.len() < capacity {
                                model.push(p);
                            }
                        }
                    }
                    2 | 3 => (0..n).for_each(|_| assert_eq!(magazine.pop(), model.pop())),
                    _ if model.is_empty() => {
                        capacity = n.clamp(1, CAPACITY);
                        magazine.prepare(3, n);
                    }
                    _ => {}
                }
                assert_eq!((magazine.count(), magazine.capacity()), (model.len(), capacity));
                let top = magazine.top();
                assert_eq!(count_of(top), model.len());
                assert_eq!(peek(top), model.last().copied().unwrap_or(0));
                assert_eq!(is_full(top), model.len() == capacity);
            }
            while magazine.pop().is_some() {}
            magazine.discard();
        }
    }
}
