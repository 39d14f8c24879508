//! Models large tables that stay mostly empty: 8 MiB of zeroes are allocated, one page in the middle is written, and the
//! memory is freed. Clearing what nobody reads is what this shows.
//!
//! Counted: such tables.

use std::alloc::{Layout, handle_alloc_error};
use std::hint::black_box;

use super::{Outcome, Settings};
use crate::blocks::{ALIGN, Subject};
use crate::crew;

const SIZE: usize = 8 << 20;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let layout = Layout::from_size_align(SIZE, ALIGN).map_err(|error| error.to_string())?;
    let pace = crew::alone(settings.span, || {
        // SAFETY: the size is not zero.
        let block = black_box(unsafe { allocator.alloc_zeroed(layout) });
        if block.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the middle is inside the block, which is freed once with its layout.
        unsafe {
            let middle = block.add(SIZE / 2).cast::<u64>();
            assert_eq!(middle.read_volatile(), 0, "not zeroed");
            middle.write_volatile(1);
            allocator.dealloc(block, layout);
        }
        1
    });
    Ok(pace.into())
}
