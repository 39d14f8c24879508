//! The program whose instructions `count_hot_path` counts: it allocates through `Box` and `Vec`, as programs do.
//!
//! Two shapes matter. Where a size is known only at run time, and in every crate compiled before this one (the standard
//! library's `Vec` growth among them), allocation goes through the compiler's `__rust_alloc` and `__rust_dealloc`,
//! which contain the allocator's inlined code. Where the layout is a constant and the whole program is optimised
//! together (profile `lto`), the same code is folded into the caller: [`box_64`] and [`drop_64`] are such callers.
//!
//! It measures no time and checks no result; it only has to exist and to run.

use std::hint::black_box;
use std::mem::MaybeUninit;

#[global_allocator]
static GLOBAL: alloc_core::RseqAlloc = alloc_core::RseqAlloc::new();

/// Allocates one block of a constant 64-byte layout and does nothing else with it.
#[inline(never)]
// SAFETY: no other function of this program or of its libraries has this name.
#[unsafe(no_mangle)]
pub fn box_64() -> Box<MaybeUninit<[u8; 64]>> {
    Box::new_uninit()
}

/// Frees what [`box_64`] returned.
#[inline(never)]
// SAFETY: as for `box_64`.
#[unsafe(no_mangle)]
pub fn drop_64(block: Box<MaybeUninit<[u8; 64]>>) {
    drop(block);
}

fn main() {
    // The number of arguments is known only at run time, so these sizes are too.
    let arguments = std::env::args().count();
    let mut blocks = Vec::with_capacity(arguments);
    for length in 1..=arguments * 100 {
        blocks.push(vec![length as u8; length].into_boxed_slice());
    }
    let constant: Vec<_> = (0..arguments).map(|_| box_64()).collect();
    for block in constant {
        drop_64(black_box(block));
    }
    let bytes: usize = blocks.iter().map(|block| block.len()).sum();
    println!("{} blocks, {bytes} bytes, {}", blocks.len(), alloc_core::mode());
}
