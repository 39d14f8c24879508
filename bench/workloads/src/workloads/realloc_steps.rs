//! Models a buffer that is read into piece by piece: it grows by `realloc` in steps of 64 KiB to 4 MiB, every new page
//! is written, and it is freed. Who copies at every step moves 130 MiB for 4.
//!
//! Counted: buffers, from the first piece to the free.

use std::alloc::{Layout, handle_alloc_error};
use std::hint::black_box;

use super::{Outcome, Settings};
use crate::blocks::{ALIGN, Subject, touch};
use crate::crew;

const STEP: usize = 64 << 10;
const LAST: usize = 4 << 20;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let layout = |size| Layout::from_size_align(size, ALIGN).expect("4 MiB fit");
    let pace = crew::alone(settings.span, || {
        let mut size = black_box(STEP);
        // SAFETY: the size is not zero.
        let mut block = unsafe { allocator.alloc(layout(size)) };
        loop {
            if block.is_null() {
                handle_alloc_error(layout(size));
            }
            // SAFETY: the block is `size` bytes long.
            unsafe { touch(block, size - STEP, size) };
            black_box(block);
            if size == LAST {
                break;
            }
            // SAFETY: the block has this layout, and the new size is neither 0 nor too much.
            block = unsafe { allocator.realloc(block, layout(size), size + STEP) };
            size += STEP;
        }
        // SAFETY: the block's last layout.
        unsafe { allocator.dealloc(block, layout(size)) };
        1
    });
    Ok(pace.into())
}
