//! From any address to what lies there: a two-level table over the user address space.
//!
//! The root is a static array with one slot per GiB. A slot holds null or a leaf: for each 8 KiB page a class byte
//! and an owner pointer, and for each 2 MiB huge page a pointer to its descriptor in the page heap and the NUMA node it
//! belongs to. Root and leaves are touched as they are used, so a small heap costs a few pages.
//!
//! Invariants:
//! - Looking up is safe for every value of an address. What nobody set, and everything beyond the user address
//!   space, answers [`NONE`] and null.
//! - Leaves are never freed. Two threads that need the same one race with a compare-and-swap; the loser gives
//!   its own back.
//! - A class is published after its owner, so whoever reads a class reads the owner set with it or a later one.
//!   Owners are type-stable (see [`crate::meta`]), which makes even a stale one safe to look at.
//!
//! A page's byte does not name its class but the header that its blocks are pushed to: the class's last bin, plus one.
//! What is large leads to [`CLOSED_BIN`], and nobody's pages, with 0, to the word before the first header. Both never
//! have room, so such a push fails, and the slow path asks why.
//!
//! Below the C interface's `free` each instruction counts. So where [`window::want`] asked for it, the bytes of the pages
//! around the first leaf stand in one flat array, too: the *window*. It is found by a subtraction, a shift, and one
//! comparison that also tells what lies outside. The regions of the page heap mostly lie there, since the kernel
//! gives out addresses from the top down; what does not is found by root and leaf.
//!
//! What it does not do: no locks, and no protection against looking up an address that is being set or
//! cleared at that moment. The owner of the block rules that out; a wild pointer gets an answer from before or after.

pub(crate) mod window;

use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

use crate::meta;
use crate::os::ADDRESS_BITS;
use crate::size_class::{CLOSED_BIN, HUGE_SHIFT, PAGE_SHIFT, class_of_bin, last_bin_of_class};

/// The class of addresses that belong to nobody.
pub(crate) const NONE: u8 = 0;
/// The class of the first page of a large block; its owner is a descriptor in [`crate::large`].
pub(crate) const LARGE: u8 = 255;

/// A leaf covers 1 GiB.
const LEAF_SHIFT: usize = 30;
const ROOT_SLOTS: usize = 1 << (ADDRESS_BITS - LEAF_SHIFT);
const PAGES: usize = 1 << (LEAF_SHIFT - PAGE_SHIFT);
const HUGE_PAGES: usize = 1 << (LEAF_SHIFT - HUGE_SHIFT);

/// Accounting granularity: the smallest OS page.
const UNIT: usize = 4096;
const OWNER_UNITS: usize = PAGES * size_of::<AtomicPtr<u8>>() / UNIT;
const CLASS_UNITS: usize = PAGES / UNIT;
const UNIT_WORDS: usize = (OWNER_UNITS + CLASS_UNITS).div_ceil(64);

/// Per GiB null or a leaf.
static ROOT: [AtomicPtr<Leaf>; ROOT_SLOTS] = [const { AtomicPtr::new(ptr::null_mut()) }; ROOT_SLOTS];

/// A leaf made in advance, so that [`Spare`] usually costs nothing; the first one needs no system call.
static SPARE: AtomicPtr<Leaf> = AtomicPtr::new((&raw const FIRST).cast_mut());
static FIRST: Leaf = Leaf {
    huge: [const { AtomicPtr::new(ptr::null_mut()) }; _],
    touched: [const { AtomicU64::new(0) }; _],
    nodes: [const { AtomicU8::new(0) }; _],
    _unused: [0; _],
    owners: [const { AtomicPtr::new(ptr::null_mut()) }; _],
    classes: [const { AtomicU8::new(0) }; _],
};

/// Fits its parts to OS pages: what is rarely used stands first.
#[repr(C, align(4096))]
struct Leaf {
    huge: [AtomicPtr<u8>; HUGE_PAGES],
    /// A bit per [`UNIT`] of `owners` and then `classes` that was ever written, for the accounting.
    touched: [AtomicU64; UNIT_WORDS],
    /// By huge page; never changes once the descriptor is there.
    nodes: [AtomicU8; HUGE_PAGES],
    _unused: [u8; UNIT - UNIT_WORDS * 8 - HUGE_PAGES],
    owners: [AtomicPtr<u8>; PAGES],
    classes: [AtomicU8; PAGES],
}

const _: () = assert!(offset_of!(Leaf, owners) == 2 * UNIT);
const _: () = assert!(offset_of!(Leaf, classes).is_multiple_of(UNIT));

/// Gives `pages` pages from `addr` on a class and an owner. False: no memory for a leaf, and nothing changed.
pub(crate) fn set(addr: usize, pages: usize, class: u8, owner: *mut u8) -> bool {
    let Some((first, last)) = page_numbers(addr, pages) else {
        return false;
    };
    let slots = (first / PAGES)..=(last / PAGES);
    if !slots.into_iter().all(|slot| leaf_or_new(slot).is_some()) {
        return false;
    }
    for page in first..=last {
        if let Some(leaf) = leaf(page / PAGES) {
            leaf.store(page, class, owner);
        }
    }
    true
}

/// Makes `pages` pages from `addr` on nobody's.
pub(crate) fn clear(addr: usize, pages: usize) {
    let Some((first, last)) = page_numbers(addr, pages) else {
        return;
    };
    for page in first..=last {
        if let Some(leaf) = leaf(page / PAGES) {
            // The owner stays: a reader that raced for the class may still be about to read it.
            leaf.classes[page % PAGES].store(NONE, Ordering::Release);
            window::set(page, NONE);
        }
    }
}

/// Class and owner of the page that holds `addr`, which may be any number.
#[inline]
pub(crate) fn lookup(addr: usize) -> (u8, *mut u8) {
    let Some(leaf) = leaf(addr >> LEAF_SHIFT) else {
        return (NONE, ptr::null_mut());
    };
    let page = (addr >> PAGE_SHIFT) % PAGES;
    match decode(leaf.classes[page].load(Ordering::Acquire)) {
        NONE => (NONE, ptr::null_mut()),
        class => (class, leaf.owners[page].load(Ordering::Relaxed)),
    }
}

/// The displacement of the header that takes the block at `addr`: that of the last bin of its class. Where `addr` lies
/// in no class, `None` or a displacement, from the shard or as a negative number, of a header that takes nothing.
#[inline(always)]
pub(crate) fn free_displacement(addr: usize) -> Option<usize> {
    let leaf = leaf(addr >> LEAF_SHIFT)?;
    let byte = leaf.classes[(addr >> PAGE_SHIFT) % PAGES].load(Ordering::Relaxed);
    Some((usize::from(byte) * size_of::<usize>()).wrapping_sub(size_of::<usize>()))
}

/// What stands for a class in a leaf.
const fn encode(class: u8) -> u8 {
    match class {
        NONE => 0,
        LARGE => CLOSED_BIN as u8 + 1,
        class => last_bin_of_class(class as usize) as u8 + 1,
    }
}

/// The inverse of [`encode`].
#[inline]
fn decode(byte: u8) -> u8 {
    match usize::from(byte).checked_sub(1) {
        None => NONE,
        Some(CLOSED_BIN) => LARGE,
        Some(bin) => class_of_bin(bin) as u8,
    }
}

const _: () = assert!(CLOSED_BIN + 1 < 256);

/// Records node and descriptor of the huge page at `addr`. False: no memory for a leaf, and nothing changed.
pub(crate) fn set_huge(addr: usize, node: u8, descriptor: *mut u8) -> bool {
    let Some(leaf) = leaf_or_new(addr >> LEAF_SHIFT) else {
        return false;
    };
    let huge_page = (addr >> HUGE_SHIFT) % HUGE_PAGES;
    if node != 0 {
        leaf.nodes[huge_page].store(node, Ordering::Relaxed);
    }
    leaf.huge[huge_page].store(descriptor, Ordering::Release);
    true
}

/// The node of the huge page that holds `addr`; 0 where there is none.
pub(crate) fn node(addr: usize) -> usize {
    leaf(addr >> LEAF_SHIFT)
        .map_or(0, |leaf| leaf.nodes[(addr >> HUGE_SHIFT) % HUGE_PAGES].load(Ordering::Relaxed).into())
}

/// The descriptor of the huge page that holds `addr`, or null.
#[inline]
pub(crate) fn huge(addr: usize) -> *mut u8 {
    match leaf(addr >> LEAF_SHIFT) {
        Some(leaf) => leaf.huge[(addr >> HUGE_SHIFT) % HUGE_PAGES].load(Ordering::Acquire),
        None => ptr::null_mut(),
    }
}

/// A leaf in the hand of a caller who must not fail later, when a block moves to an address it cannot foresee.
pub(crate) struct Spare(NonNull<Leaf>);

impl Spare {
    /// Takes the leaf kept in reserve, or makes one. `None`: out of memory.
    pub(crate) fn take() -> Option<Self> {
        let kept = SPARE.swap(ptr::null_mut(), Ordering::AcqRel);
        Some(Self(match NonNull::new(kept) {
            Some(leaf) => leaf,
            None => meta::alloc_alone(size_of::<Leaf>())?.cast(),
        }))
    }

    /// As [`set`] for a single page inside the user address space, but cannot fail.
    pub(crate) fn set_page(self, addr: usize, class: u8, owner: *mut u8) {
        let slot = addr >> LEAF_SHIFT;
        if let Some(leaf) = leaf(slot).or_else(|| self.install(slot)) {
            leaf.store(addr >> PAGE_SHIFT, class, owner);
        }
    }

    /// The leaf of a slot: this one, or that of another thread which was there first; then this one stays a spare. `None`:
    /// there is no such slot.
    fn install(self, slot: usize) -> Option<&'static Leaf> {
        let root = ROOT.get(slot)?;
        window::make_if_wanted(slot << LEAF_SHIFT);
        let new = self.0.as_ptr();
        let leaf = match root.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                meta::account(2 * UNIT);
                core::mem::forget(self);
                new
            }
            Err(other) => other,
        };
        // SAFETY: installed by this or another thread, for ever; zero bytes are a valid leaf.
        unsafe { leaf.as_ref() }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let kept = SPARE.compare_exchange(ptr::null_mut(), self.0.as_ptr(), Ordering::AcqRel, Ordering::Relaxed);
        if kept.is_err() && !ptr::eq(self.0.as_ptr(), &raw const FIRST) {
            // SAFETY: made by `alloc_alone` with this size and never installed.
            unsafe { meta::free_alone(self.0.cast(), size_of::<Leaf>()) };
        }
    }
}

impl Leaf {
    /// For a page of this leaf, by its number in the address space.
    fn store(&self, number: usize, class: u8, owner: *mut u8) {
        let (page, byte) = (number % PAGES, encode(class));
        self.touch(page * size_of::<AtomicPtr<u8>>() / UNIT);
        self.touch(OWNER_UNITS + page / UNIT);
        self.owners[page].store(owner, Ordering::Relaxed);
        self.classes[page].store(byte, Ordering::Release);
        window::set(number, byte);
    }

    /// Counts a unit of the leaf the first time that something is written there.
    fn touch(&self, unit: usize) {
        account_once(&self.touched, unit);
    }
}

/// Counts a [`UNIT`] the first time that something is written there, which its bit tells.
fn account_once(touched: &[AtomicU64], unit: usize) {
    let Some(word) = touched.get(unit / 64) else {
        return;
    };
    let bit = 1 << (unit % 64);
    if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        meta::account(UNIT);
    }
}

/// Numbers of the first and the last page, or `None` for a range that is empty or leaves the address space.
fn page_numbers(addr: usize, pages: usize) -> Option<(usize, usize)> {
    let first = addr >> PAGE_SHIFT;
    let last = first.checked_add(pages.checked_sub(1)?)?;
    (last < ROOT_SLOTS * PAGES).then_some((first, last))
}

#[inline]
fn leaf(slot: usize) -> Option<&'static Leaf> {
    // SAFETY: the root holds null or a leaf, which lives for ever and has only atomic fields.
    unsafe { ROOT.get(slot)?.load(Ordering::Acquire).as_ref() }
}

fn leaf_or_new(slot: usize) -> Option<&'static Leaf> {
    leaf(slot).or_else(|| Spare::take()?.install(slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::CLASSES;
    extern crate std;
    use std::sync::atomic::AtomicUsize as Counter;

    const PAGE: usize = 1 << PAGE_SHIFT;
    const GIB: usize = 1 << LEAF_SHIFT;

    /// A GiB that no other test and no mapping uses: nothing is mapped there, only the table is.
    fn unused_gib() -> usize {
        static NEXT: Counter = Counter::new(100);
        NEXT.fetch_add(4, Ordering::Relaxed) * GIB
    }

    fn owner(value: usize) -> *mut u8 {
        ptr::without_provenance_mut(value)
    }

    #[test]
    fn any_number_can_be_looked_up() {
        let foreign = (NONE, ptr::null_mut());
        for addr in [
            0,
            1,
            PAGE,
            GIB - 1,
            (1 << ADDRESS_BITS) - 1,
            1 << ADDRESS_BITS,
            1 << 56,
            usize::MAX,
            usize::MAX - PAGE,
            0xffff_8000_0000_0000,
        ] {
            assert_eq!(lookup(addr), foreign, "{addr:x}");
            assert!(huge(addr).is_null());
        }
    }

    #[test]
    fn set_and_clear_touch_their_pages_only() {
        let base = unused_gib();
        assert!(set(base + 3 * PAGE, 5, 17, owner(64)));
        for page in 0..10 {
            let expected = if (3..8).contains(&page) { (17, owner(64)) } else { (NONE, ptr::null_mut()) };
            assert_eq!(lookup(base + page * PAGE), expected);
            assert_eq!(lookup(base + page * PAGE + PAGE - 1), expected);
        }
        clear(base + 4 * PAGE, 1);
        assert_eq!(lookup(base + 4 * PAGE).0, NONE);
        assert_eq!(lookup(base + 5 * PAGE), (17, owner(64)));
        clear(base, 20);
        assert_eq!(lookup(base + 5 * PAGE).0, NONE);
    }

    #[test]
    fn ranges_may_cross_leaves() {
        let base = unused_gib();
        assert!(set(base + GIB - 2 * PAGE, 4, 9, owner(8)));
        for page in 0..4 {
            assert_eq!(lookup(base + GIB + page * PAGE - 2 * PAGE), (9, owner(8)));
        }
        assert_eq!(lookup(base + GIB + 2 * PAGE).0, NONE);
    }

    #[test]
    fn ranges_beyond_the_address_space_are_refused() {
        assert!(!set(1 << ADDRESS_BITS, 1, 1, owner(8)));
        assert!(!set((1 << ADDRESS_BITS) - PAGE, 2, 1, owner(8)));
        assert!(!set(usize::MAX, 1, 1, owner(8)));
        assert!(!set(0, usize::MAX, 1, owner(8)));
        assert!(!set(0, 0, 1, owner(8)));
        assert!(!set_huge(usize::MAX, 1, owner(8)));
        clear(usize::MAX, usize::MAX);
        assert_eq!(lookup((1 << ADDRESS_BITS) - PAGE).0, NONE);
    }

    #[test]
    fn huge_pages_have_their_own_entry() {
        let base = unused_gib();
        assert!(set_huge(base + (7 << HUGE_SHIFT), 3, owner(4096)));
        assert_eq!(huge(base + (7 << HUGE_SHIFT) + 12345), owner(4096));
        assert!(huge(base + (8 << HUGE_SHIFT)).is_null());
        assert_eq!(lookup(base + (7 << HUGE_SHIFT)).0, NONE);
    }

    #[test]
    fn threads_race_for_a_leaf() {
        for _ in 0..50 {
            let base = unused_gib();
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for me in 0..4usize {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        assert!(set(base + me * PAGE, 1, me as u8 + 1, owner(me + 1)));
                    });
                }
            });
            for me in 0..4 {
                assert_eq!(lookup(base + me * PAGE), (me as u8 + 1, owner(me + 1)));
            }
        }
    }

    #[test]
    fn a_spare_leaf_cannot_fail() {
        let base = unused_gib();
        let spare = Spare::take().unwrap();
        spare.set_page(base + PAGE, LARGE, owner(16));
        assert_eq!(lookup(base + PAGE), (LARGE, owner(16)));
        // The leaf exists now, so this one goes back into reserve.
        Spare::take().unwrap().set_page(base + 2 * PAGE, LARGE, owner(24));
        assert_eq!(lookup(base + 2 * PAGE), (LARGE, owner(24)));
        let (one, two) = (Spare::take().unwrap(), Spare::take().unwrap());
        assert_ne!(one.0, two.0);
    }

    #[test]
    fn only_touched_parts_count() {
        let base = unused_gib();
        assert!(set(base, 1, 1, owner(8)));
        let leaf = leaf(base >> LEAF_SHIFT).unwrap();
        let touched = || -> u32 { leaf.touched.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum() };
        assert_eq!(touched(), 2);
        assert!(set(base, 512, 1, owner(8)));
        assert_eq!(touched(), 2);
        assert!(set(base, 513, 1, owner(8)));
        assert_eq!(touched(), 3);
        assert!(set(base, PAGES, 1, owner(8)));
        assert_eq!(touched() as usize, OWNER_UNITS + CLASS_UNITS);
    }

    #[test]
    fn displacements_are_those_of_the_last_bin() {
        let base = unused_gib();
        assert_eq!(free_displacement(base), None);
        for class in 1..CLASSES {
            assert!(set(base + class * PAGE, 1, class as u8, owner(8)));
            assert_eq!(free_displacement(base + class * PAGE + 9), Some(last_bin_of_class(class) * 8));
        }
        assert!(set(base, 1, LARGE, owner(8)));
        assert_eq!(free_displacement(base), Some(CLOSED_BIN * 8));
        for nobodys in [base + CLASSES * PAGE, base + GIB - 1] {
            assert_eq!(free_displacement(nobodys), Some(0_usize.wrapping_sub(8)));
        }
        for outside in [0, 1 << ADDRESS_BITS, usize::MAX] {
            assert_eq!(free_displacement(outside), None);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

        /// Any sequence of set and clear agrees with a plain table, across the boundary between two leaves.
        #[test]
        fn any_sequence_agrees_with_a_table(steps in proptest::collection::vec((0..60usize, 1..20usize, 0..4u8), 1..40)) {
            let base = unused_gib() + GIB - 40 * PAGE;
            let mut table = [NONE; 80];
            for (first, pages, class) in steps {
                table[first..first + pages].fill(class);
                if class == NONE {
                    clear(base + first * PAGE, pages);
                } else {
                    assert!(set(base + first * PAGE, pages, class, owner(8 * usize::from(class))));
                }
            }
            for (page, &class) in table.iter().enumerate() {
                let expected = if class == NONE { ptr::null_mut() } else { owner(8 * usize::from(class)) };
                assert_eq!(lookup(base + page * PAGE + 77), (class, expected));
            }
        }
    }
}
