//! Memory for the allocator's own data: magazines, spans, descriptors.
//!
//! A bump arena whose pieces are never given back. It lies outside user memory, in chunks with a page without
//! access at either end, so that running over the end of a user's block cannot reach it. The first chunk is static memory,
//! which spares a small program three system calls, and has the program's own data around it.
//!
//! Invariants: what [`alloc`] returns is zero, aligned, disjoint from everything else and stays for the life of the
//! process. Types in a [`Pool`] are type-stable: memory that once held a `T` holds a `T` for ever, so a stale pointer
//! to one reads a valid, if meaningless, `T`.
//!
//! What it does not do: no free (a pool recycles), no per-thread anything.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::limit;
use crate::os::futex::{Lock, Locked};
use crate::os::mapping;

/// Address space of a chunk. Untouched parts cost nothing; half of it is tried when that is refused, and so on.
const CHUNK: usize = 16 << 20;
/// The smallest chunk worth having.
const LEAST_CHUNK: usize = 512 << 10;
/// How much becomes usable at a time: few system calls for a small program, little waste with `mlockall`. A multiple
/// of every OS page size.
const STEP: usize = 256 << 10;
/// The largest alignment on offer: no OS page is smaller, so chunks have it anyway.
const MAX_ALIGN: usize = 4096;
/// Requests above this get a mapping of their own.
const LARGEST_SHARED: usize = 128 << 10;

static ARENA: Locked<Arena> = Locked::new(Arena { next: ptr::null_mut(), committed: 0, end: 0 });

/// The first chunk.
#[repr(C, align(4096))]
struct FirstChunk(UnsafeCell<[u8; STEP]>);
// SAFETY: the arena's alone.
unsafe impl Sync for FirstChunk {}
static FIRST: FirstChunk = FirstChunk(UnsafeCell::new([0; STEP]));
const _: () = assert!(align_of::<FirstChunk>() == MAX_ALIGN && LARGEST_SHARED <= STEP);

static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The current chunk: used up to `next`, usable up to `committed`, ours up to `end`.
struct Arena {
    next: *mut u8,
    committed: usize,
    end: usize,
}

// SAFETY: `next` points into memory that belongs to the arena alone.
unsafe impl Send for Arena {}

/// `bytes` zero bytes aligned to `align` (a power of two, at most 4096), for ever. `None`: out of memory.
pub(crate) fn alloc(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    debug_assert!(align.is_power_of_two() && align <= MAX_ALIGN);
    if !limit::charge_metadata(bytes) {
        return None;
    }
    let piece = if bytes > LARGEST_SHARED { alloc_alone(bytes) } else { ARENA.lock().alloc(bytes, align) };
    match piece {
        Some(_) => BYTES.fetch_add(bytes, Ordering::Relaxed),
        None => {
            limit::release(bytes);
            return None;
        }
    };
    piece
}

/// Bytes in use as metadata: everything [`alloc`] handed out and what was added by [`account`].
pub(crate) fn bytes() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// Counts metadata that lives in a mapping of its own.
pub(crate) fn account(bytes: usize) {
    BYTES.fetch_add(bytes, Ordering::Relaxed);
    limit::account(bytes);
}

/// Zeroed memory in a mapping of its own, with a page without access at either end. For tables that are touched
/// here and there; the caller does the accounting.
pub(crate) fn alloc_alone(bytes: usize) -> Option<NonNull<u8>> {
    let guard = mapping::page_size();
    let len = mapping::whole_pages(bytes)?;
    let all = len.checked_add(2 * guard)?;
    let start = mapping::reserve(all, guard)?;
    // SAFETY: inside the reservation.
    let inside = unsafe { start.add(guard) };
    // SAFETY: whole pages of the reservation.
    if !unsafe { mapping::commit(inside, len) } {
        // SAFETY: reserved above and not handed to anybody.
        unsafe { mapping::unmap(start, all) };
        return None;
    }
    mapping::name(start, all, c"rseq-alloc: metadata");
    Some(inside)
}

/// Undoes [`alloc_alone`].
///
/// # Safety
///
/// `start` came from `alloc_alone(bytes)` and nobody uses it.
pub(crate) unsafe fn free_alone(start: NonNull<u8>, bytes: usize) {
    let guard = mapping::page_size();
    let Some(len) = mapping::whole_pages(bytes) else {
        return;
    };
    // SAFETY: the guard lies below `start` in the same reservation.
    let all = unsafe { start.sub(guard) };
    // SAFETY: the whole reservation, given up by the caller.
    unsafe { mapping::unmap(all, len + 2 * guard) };
}

impl Arena {
    fn alloc(&mut self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        if let Some(piece) = self.alloc_here(bytes, align) {
            return Some(piece);
        }
        if self.room(bytes, align) {
            // The kernel refused to make more of the chunk usable; another chunk would be refused too.
            return None;
        }
        self.new_chunk()?;
        self.alloc_here(bytes, align)
    }

    /// Bytes to skip for the alignment.
    fn padding(&self, align: usize) -> usize {
        self.next.addr().wrapping_neg() & (align - 1)
    }

    fn room(&self, bytes: usize, align: usize) -> bool {
        self.end - self.next.addr() >= bytes + self.padding(align)
    }

    fn alloc_here(&mut self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        if !self.room(bytes, align) {
            return None;
        }
        let padding = self.padding(align);
        let needed = self.next.addr() + padding + bytes;
        if needed > self.committed && !self.commit_to(needed) {
            return None;
        }
        // SAFETY: there is room in the chunk, so both stay inside it.
        let start = unsafe { self.next.add(padding) };
        // SAFETY: as above.
        self.next = unsafe { start.add(bytes) };
        NonNull::new(start)
    }

    /// Makes the chunk usable up to `needed` at least, which lies inside it.
    fn commit_to(&mut self, needed: usize) -> bool {
        let missing = needed - self.committed;
        let left = self.end - self.committed;
        let len = missing.next_multiple_of(STEP).min(left);
        let from = self.next.with_addr(self.committed);
        let Some(from) = NonNull::new(from) else {
            return false;
        };
        // SAFETY: whole pages of the chunk behind what is usable already.
        if !unsafe { mapping::commit(from, len) } {
            return false;
        }
        self.committed += len;
        true
    }

    fn new_chunk(&mut self) -> Option<()> {
        if self.end == 0 {
            self.next = FIRST.0.get().cast();
            self.end = self.next.addr() + STEP;
            self.committed = self.end;
            return Some(());
        }
        let guard = mapping::page_size();
        let (start, size) = mapping::reserve_up_to(CHUNK, LEAST_CHUNK, guard)?;
        mapping::name(start, size, c"rseq-alloc: metadata");
        // SAFETY: the first page stays without access; the chunk is larger than that.
        let first = unsafe { start.add(guard) };
        self.next = first.as_ptr();
        self.committed = first.addr().get();
        self.end = start.addr().get() + size - guard;
        Some(())
    }
}

/// Takes the locks of this module, for a handler that runs before `fork`. Pools have theirs: [`Pool::raw`].
pub(crate) fn lock_for_fork() {
    ARENA.raw().acquire();
}

/// Releases what [`lock_for_fork`] took.
///
/// # Safety
///
/// Once after `lock_for_fork`, in the parent.
pub(crate) unsafe fn unlock_after_fork() {
    // SAFETY: held since `lock_for_fork`.
    unsafe { ARENA.raw().release() };
}

/// Makes the locks free in the child. The data is in order, because they were held.
///
/// # Safety
///
/// Once after `lock_for_fork`, in the child.
pub(crate) unsafe fn reset_after_fork() {
    // SAFETY: there is no other thread, and the data is in order.
    unsafe { ARENA.raw().reset() };
}

/// A type whose unused instances can be linked.
///
/// # Safety
///
/// The word that `link` names lies inside `*this`, is aligned, and may be overwritten while the item is in the
/// pool. All-zero bytes are a valid value of the type.
pub(crate) unsafe trait PoolItem: Sized {
    /// The word that holds the next unused item.
    fn link(this: *mut Self) -> *mut *mut Self;
}

/// Items of one type that are taken, put back and taken again, and never become anything else.
///
/// The link sits in a word that the type nominates, so that fields which stale readers look at keep their meaning.
pub(crate) struct Pool<T> {
    unused: Locked<Unused<T>>,
}

struct Unused<T>(*mut T);

// SAFETY: items in the pool belong to nobody else; taking one on another thread than put it moves it there.
unsafe impl<T: Send> Send for Unused<T> {}

impl<T: PoolItem> Pool<T> {
    /// An empty pool.
    pub(crate) const fn new() -> Self {
        Self { unused: Locked::new(Unused(ptr::null_mut())) }
    }
}

impl<T: PoolItem + Send> Pool<T> {
    /// An item: all zero if it is new, otherwise as it was put back, except for the link. `None`: out of memory.
    pub(crate) fn get(&self) -> Option<NonNull<T>> {
        let mut unused = self.unused.lock();
        if let Some(item) = NonNull::new(unused.0) {
            // SAFETY: items in the pool are live memory whose link word is the pool's.
            unused.0 = unsafe { *T::link(item.as_ptr()) };
            return Some(item);
        }
        drop(unused);
        const { assert!(align_of::<T>() <= MAX_ALIGN) };
        Some(alloc(size_of::<T>(), align_of::<T>())?.cast())
    }

    /// Puts an item back.
    ///
    /// # Safety
    ///
    /// It came from this pool, and the caller gives it up (stale readers of fields other than the link aside).
    pub(crate) unsafe fn put(&self, item: NonNull<T>) {
        let mut unused = self.unused.lock();
        // SAFETY: the caller's item, whose link word is the pool's from now on.
        unsafe { *T::link(item.as_ptr()) = unused.0 };
        unused.0 = item.as_ptr();
    }

    /// The bare lock, for handlers of `fork`.
    pub(crate) fn raw(&self) -> &Lock {
        self.unused.raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn pieces_are_zero_aligned_and_disjoint() {
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        let before = bytes();
        let mut sum = 0;
        for round in 0..4000usize {
            let size = 1 + (round * 7919) % 9000;
            let align = 1 << (round % 13);
            let piece = alloc(size, align).unwrap();
            assert_eq!(piece.addr().get() % align, 0);
            // SAFETY: handed out just now.
            let piece = unsafe { core::slice::from_raw_parts_mut(piece.as_ptr(), size) };
            assert!(piece.iter().all(|&byte| byte == 0));
            piece.fill(0xa5);
            pieces.push((piece.as_ptr().addr(), size));
            sum += size;
        }
        pieces.sort_unstable();
        assert!(pieces.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
        // Other tests may have taken some meanwhile.
        assert!(bytes() >= before + sum);
    }

    #[test]
    fn large_pieces_stand_alone() {
        let piece = alloc(3 << 20, 4096).unwrap();
        // SAFETY: handed out just now.
        let bytes = unsafe { core::slice::from_raw_parts_mut(piece.as_ptr(), 3 << 20) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(1);
        assert!(alloc(usize::MAX - 5, 8).is_none());
    }

    /// A stale write over either end of a chunk meets no access.
    #[test]
    #[cfg_attr(miri, ignore = "there are no guards")]
    fn guards_have_no_access() {
        let piece = alloc_alone(100).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let access = |addr: usize| {
            maps.lines()
                .find_map(|line| {
                    let (range, rest) = line.split_once(' ')?;
                    let (low, high) = range.split_once('-')?;
                    let low = usize::from_str_radix(low, 16).ok()?;
                    let high = usize::from_str_radix(high, 16).ok()?;
                    (low..high).contains(&addr).then(|| std::string::String::from(&rest[..4]))
                })
                .unwrap()
        };
        let page = mapping::page_size();
        let start = piece.addr().get();
        assert_eq!(access(start - 1), "---p");
        assert_eq!(access(start), "rw-p");
        assert_eq!(access(start + page), "---p");
        // SAFETY: nobody uses it.
        unsafe { free_alone(piece, 100) };
    }

    #[repr(C)]
    struct Item {
        value: usize,
        link: *mut Item,
    }

    // SAFETY: test items are plain memory.
    unsafe impl Send for Item {}
    // SAFETY: `link` is a word of the item used for nothing else; zero is valid.
    unsafe impl PoolItem for Item {
        fn link(this: *mut Self) -> *mut *mut Self {
            // SAFETY: only the place is computed.
            unsafe { &raw mut (*this).link }
        }
    }

    #[test]
    fn pools_recycle() {
        static POOL: Pool<Item> = Pool::new();
        let first = POOL.get().unwrap();
        let second = POOL.get().unwrap();
        assert_ne!(first, second);
        // SAFETY: both items are ours.
        unsafe {
            assert_eq!((*first.as_ptr()).value, 0);
            (*first.as_ptr()).value = 1;
            POOL.put(first);
            POOL.put(second);
        }
        assert_eq!(POOL.get(), Some(second));
        assert_eq!(POOL.get(), Some(first));
        // SAFETY: ours again; as left.
        assert_eq!(unsafe { (*first.as_ptr()).value }, 1);
    }

    #[test]
    fn pools_hand_an_item_to_one_thread() {
        static POOL: Pool<Item> = Pool::new();
        std::thread::scope(|scope| {
            for me in 1..=4 {
                scope.spawn(move || {
                    for _ in 0..5000 {
                        let item = POOL.get().unwrap();
                        // SAFETY: the item is this thread's until it is put back.
                        unsafe {
                            (*item.as_ptr()).value = me;
                            core::hint::spin_loop();
                            assert_eq!((*item.as_ptr()).value, me);
                            POOL.put(item);
                        }
                    }
                });
            }
        });
    }
}
