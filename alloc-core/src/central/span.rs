//! Spans: runs of pages cut into blocks of one class, with a bitmap of the free ones outside of the pages.
//!
//! Invariants, all under the lock of the class:
//!
//! * `free` is the number of set bits; a bit is set if and only if the block is in no magazine and no user's hands.
//! * A span with free blocks is in exactly one list, that of its fullness; a full one is in none.
//! * Spans are type-stable: the map may hand out a stale pointer to a program that frees a stale address, and reading
//!   it is harmless.

use crate::meta::PoolItem;
use crate::size_class::{Class, PAGE, SPAN_BLOCKS};
use core::ptr::{NonNull, null_mut};

const WORDS: usize = SPAN_BLOCKS / 64;
/// Lists of spans by fullness.
pub(super) const FULLNESS: usize = 8;

// SAFETY: a span is reached only under the lock of its class, or by the one who took it out of its list.
unsafe impl Send for Span {}

/// A span. All fields change only under the lock of the class, except `class` and `zeroed` of a span with a single
/// block, which belong to whoever holds the block.
#[repr(C)]
pub(crate) struct Span {
    /// Neighbours in the list it is in; `next` is the link of the pool when the span is not in use.
    next: *mut Span,
    prev: *mut Span,
    /// Address of the first block.
    pub(super) base: usize,
    pub(super) class: u8,
    list: u8,
    free: u16,
    /// Word of the bitmap where the search begins: there is no set bit before it.
    hint: u16,
    /// Whether its memory was all zero when it came from the page heap; only asked for spans of a single block.
    pub(super) zeroed: bool,
    bitmap: [u64; WORDS],
}

// SAFETY: `next` is only used while the span is in a list; zero is a value for every field.
unsafe impl PoolItem for Span {
    fn link(this: *mut Self) -> *mut *mut Self {
        // SAFETY: only forms the address of a field.
        unsafe { &raw mut (*this).next }
    }
}

impl Span {
    /// Makes a span of fresh pages: all blocks free, in no list.
    pub(super) fn init(&mut self, base: usize, class: u8, of: &Class, zeroed: bool) {
        self.next = null_mut();
        self.prev = null_mut();
        self.base = base;
        self.class = class;
        self.list = 0;
        self.free = of.blocks;
        self.hint = 0;
        self.zeroed = zeroed;
        let blocks = usize::from(of.blocks);
        for (i, word) in self.bitmap.iter_mut().enumerate() {
            let bits = blocks.saturating_sub(i * 64).min(64);
            *word = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        }
    }

    /// Free blocks.
    pub(super) fn free(&self) -> usize {
        usize::from(self.free)
    }

    /// Takes the free block with the lowest address.
    pub(super) fn take(&mut self, of: &Class) -> Option<usize> {
        let from = usize::from(self.hint);
        for (i, word) in self.bitmap.iter_mut().enumerate().skip(from) {
            if *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                self.hint = i as u16;
                self.free -= 1;
                return Some(self.base + (i * 64 + bit) * of.size as usize);
            }
        }
        None
    }

    /// Marks block `index` free; false if it is free already.
    pub(super) fn put(&mut self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        match self.bitmap.get_mut(word) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                self.hint = self.hint.min(word as u16);
                self.free += 1;
                true
            }
            _ => false,
        }
    }

    /// Which list a span with that many free blocks belongs to: 0 for the fullest, the last for wholly free ones.
    fn fullness(&self, of: &Class) -> u8 {
        (usize::from(self.free) * (FULLNESS - 1) / usize::from(of.blocks).max(1)) as u8
    }

    /// Bytes of its pages.
    pub(super) fn bytes(of: &Class) -> usize {
        usize::from(of.pages) * PAGE
    }
}

/// The spans of a class that have free blocks, by fullness.
pub(super) struct Spans {
    heads: [*mut Span; FULLNESS],
}

// SAFETY: the lists are reached only under the lock they live behind.
unsafe impl Send for Spans {}

impl Spans {
    pub(super) const fn new() -> Self {
        Self { heads: [null_mut(); FULLNESS] }
    }

    /// The fullest span that has a free block: of the first list that is not empty, its head.
    pub(super) fn fullest(&self) -> *mut Span {
        self.heads.iter().copied().find(|head| !head.is_null()).unwrap_or(null_mut())
    }

    /// A wholly free span, if there is one.
    pub(super) fn wholly_free(&self, of: &Class) -> Option<NonNull<Span>> {
        let mut at = *self.heads.last()?;
        // SAFETY: elements of the lists are valid.
        while let Some(span) = unsafe { at.as_ref() } {
            if span.free() == usize::from(of.blocks) {
                return NonNull::new(at);
            }
            at = span.next;
        }
        None
    }

    /// Adds a span with free blocks.
    ///
    /// # Safety
    /// `span` is valid, of this class, and in no list.
    pub(super) unsafe fn add(&mut self, span: *mut Span, of: &Class) {
        // SAFETY: valid by contract, and under the lock of the class.
        let s = unsafe { &mut *span };
        s.list = s.fullness(of);
        let Some(head) = self.heads.get_mut(usize::from(s.list)) else { return };
        s.prev = null_mut();
        s.next = *head;
        // SAFETY: elements of the lists are valid.
        if let Some(next) = unsafe { (*head).as_mut() } {
            next.prev = span;
        }
        *head = span;
    }

    /// Takes a span out of its list.
    ///
    /// # Safety
    /// `span` is valid and in a list of these.
    pub(super) unsafe fn remove(&mut self, span: *mut Span) {
        // SAFETY: valid by contract, and under the lock of the class.
        let s = unsafe { &mut *span };
        // SAFETY: elements of the lists are valid.
        if let Some(next) = unsafe { s.next.as_mut() } {
            next.prev = s.prev;
        }
        // SAFETY: as above.
        if let Some(prev) = unsafe { s.prev.as_mut() } {
            prev.next = s.next;
        } else if let Some(head) = self.heads.get_mut(usize::from(s.list)) {
            *head = s.next;
        }
        s.next = null_mut();
        s.prev = null_mut();
    }

    /// Moves a span, whose number of free blocks changed from `before`, to the list where it belongs now.
    ///
    /// # Safety
    /// `span` is valid, of this class, and in a list if and only if `before > 0`.
    pub(super) unsafe fn resort(&mut self, span: *mut Span, before: usize, of: &Class) {
        // SAFETY: valid by contract, and under the lock of the class.
        let s = unsafe { &*span };
        let free = s.free();
        if before > 0 {
            if free > 0 && s.fullness(of) == s.list {
                return;
            }
            // SAFETY: by contract it is in a list.
            unsafe { self.remove(span) };
        }
        if free > 0 {
            // SAFETY: it is in no list now.
            unsafe { self.add(span, of) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::CLASS;
    extern crate std;
    use std::boxed::Box;

    fn span(class: usize) -> Box<Span> {
        // SAFETY: all fields are integers or raw pointers, for which zero is a value.
        let mut span: Box<Span> = Box::new(unsafe { core::mem::zeroed() });
        span.init(1 << 21, class as u8, &CLASS[class], true);
        span
    }

    #[test]
    fn takes_every_block_once_in_address_order() {
        for (class, of) in CLASS.iter().enumerate().skip(1) {
            let mut s = span(class);
            let taken: std::vec::Vec<usize> = core::iter::from_fn(|| s.take(of)).collect();
            assert_eq!(taken.len(), usize::from(of.blocks));
            assert!(taken.windows(2).all(|pair| pair[1] - pair[0] == of.size as usize));
            assert_eq!(s.free(), 0);
            for &p in taken.iter().rev() {
                let index = of.index_of(p - s.base).unwrap();
                assert!(s.put(index));
                assert!(!s.put(index), "a second free is seen");
            }
            assert_eq!(s.free(), usize::from(of.blocks));
            assert_eq!(s.take(of), Some(s.base));
        }
    }

    #[test]
    fn the_fullest_span_comes_first() {
        let of = &CLASS[8];
        let (mut a, mut b) = (span(8), span(8));
        let mut spans = Spans::new();
        for _ in 0..of.blocks - 2 {
            a.take(of);
        }
        let (a, b): (*mut Span, *mut Span) = (&mut *a, &mut *b);
        // SAFETY: both live to the end of the test and are of class 8.
        unsafe {
            spans.add(a, of);
            spans.add(b, of);
            assert_eq!(spans.fullest(), a);
            (*a).take(of);
            (*a).take(of);
            spans.resort(a, 2, of);
            assert_eq!(spans.fullest(), b);
            for index in 0..of.blocks as usize {
                let before = (*a).free();
                (*a).put(index);
                spans.resort(a, before, of);
            }
            spans.remove(b);
            assert_eq!(spans.fullest(), a);
            spans.remove(a);
            assert!(spans.fullest().is_null());
        }
    }
}
