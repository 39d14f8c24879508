//! Blocks of the global allocator whose pages are touched, and so resident.

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

/// A block that is freed when it is dropped.
#[derive(Debug)]
pub struct Block {
    at: *mut u8,
    size: usize,
}

impl Block {
    /// A block of `size` bytes, which is not 0.
    pub fn new(size: usize) -> Self {
        assert_ne!(size, 0);
        // SAFETY: the size is not zero.
        let at = black_box(unsafe { alloc(Self::layout(size)) });
        assert!(!at.is_null(), "{size} bytes are refused");
        // SAFETY: a fresh block of that size.
        unsafe { at.write_bytes(1, size) };
        Self { at, size }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("a valid layout")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and given up here.
        unsafe { dealloc(self.at, Self::layout(self.size)) };
    }
}
