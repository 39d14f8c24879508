//! Promises held here: blocks handed out are disjoint, on the grid, aligned as their class promises, and counted; what
//! is returned can be handed out again; single blocks resize in place without touching their neighbours.
//!
//! The layer is one for the process, so each test uses classes of its own.

use super::*;
use crate::size_class::{CLASS, PAGE, bin, class_of_bin};
use proptest::prelude::*;
extern crate std;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Blocks out of a class, as the layer counts them.
fn out(class_index: usize) -> usize {
    CENTRAL[0][class_index].lock().out
}

#[derive(Clone, Debug)]
enum Step {
    Fill(usize),
    Flush(usize),
    One,
    FreeOne(usize),
    Purge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1usize..=CAPACITY).prop_map(Step::Fill),
        3 => any::<usize>().prop_map(Step::Flush),
        2 => Just(Step::One),
        2 => any::<usize>().prop_map(Step::FreeOne),
        1 => Just(Step::Purge),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The model: every block that is out, by address, with its size.
#[derive(Default)]
struct Model(BTreeMap<usize, usize>);

impl Model {
    fn add(&mut self, block: usize, size: usize) {
        let before = self.0.range(..=block).next_back();
        assert!(before.is_none_or(|(start, len)| start + len <= block), "overlaps the block below");
        assert!(
            self.0.range(block..).next().is_none_or(|(start, _)| block + size <= *start),
            "overlaps the block above"
        );
        self.0.insert(block, size);
    }
}

fn run(class_index: usize, steps: &[Step]) {
    let of = class(class_index);
    let size = of.size as usize;
    let lowest_bit = size & size.wrapping_neg();
    let mut model = Model::default();
    let (mut magazines, mut ones) = (Vec::new(), Vec::new());
    for step in steps {
        match *step {
            Step::Fill(n) => {
                let mut magazine = Owned::new().unwrap();
                magazine.prepare(class_index, n);
                let filled = fill(&mut magazine, n);
                assert!(filled > 0 && filled <= n && filled == magazine.count());
                let mut blocks = Vec::new();
                while let Some(block) = magazine.pop() {
                    model.add(block, size);
                    assert_eq!(block % lowest_bit.min(of.align_pages as usize * PAGE), 0);
                    assert_eq!(usize::from(map::lookup(block + size - 1).0), class_index);
                    blocks.push(block);
                }
                blocks.iter().rev().for_each(|&block| assert!(magazine.push(block)));
                magazines.push(magazine);
            }
            Step::Flush(i) if !magazines.is_empty() => {
                let mut magazine = magazines.swap_remove(i % magazines.len());
                let mut blocks = Vec::new();
                while let Some(block) = magazine.pop() {
                    assert!(model.0.remove(&block).is_some());
                    blocks.push(block);
                }
                blocks.iter().for_each(|&block| assert!(magazine.push(block)));
                flush(&mut magazine);
                magazine.discard();
            }
            Step::One => {
                let block = allocate_one(class_index).unwrap().as_ptr().addr();
                model.add(block, size);
                ones.push(block);
            }
            Step::FreeOne(i) if !ones.is_empty() => {
                let block = ones.swap_remove(i % ones.len());
                model.0.remove(&block);
                free_one(class_index, block);
            }
            Step::Purge => purge(),
            _ => {}
        }
        assert_eq!(out(class_index), model.0.len(), "the layer counts what is out");
    }
    for mut magazine in magazines {
        flush(&mut magazine);
        magazine.discard();
    }
    ones.into_iter().for_each(|block| free_one(class_index, block));
    assert_eq!(out(class_index), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }))]

    #[test]
    fn small_blocks(steps in steps()) {
        run(class_of_bin(bin(8 - 1).unwrap()), &steps);
    }

    #[test]
    fn blocks_with_a_remainder(steps in steps()) {
        run(class_of_bin(bin(976 - 1).unwrap()), &steps);
    }

    #[test]
    fn blocks_of_several_pages(steps in steps()) {
        run(class_of_bin(bin(40 * 1024 - 1).unwrap()), &steps);
    }
}

#[test]
fn single_blocks_resize_in_place() {
    // Classes that no other test of this module uses.
    let [small, medium, big] = [192, 256, 512].map(|kib| class_of_bin(bin(kib * 1024 - 1).unwrap()));
    let (block, zeroed) = allocate_single(small).unwrap();
    if zeroed {
        // SAFETY: the block is ours and 192 KiB long.
        assert!(unsafe { core::slice::from_raw_parts(block.as_ptr(), 192 * 1024) }.iter().all(|&byte| byte == 0));
    }
    // SAFETY: as above.
    unsafe { block.write_bytes(0x5a, 192 * 1024) };
    let aligned = block.as_ptr().addr() % (256 * 1024) == 0;
    // SAFETY: the block is ours, and both are classes of single blocks.
    let grown = unsafe { resize_single(block, small, medium) };
    assert!(aligned || !grown, "a class promises its alignment to whoever gets the block next");
    if grown {
        // SAFETY: as above.
        unsafe {
            assert_eq!(block.add(256 * 1024 - 1).read(), block.add(256 * 1024 - 1).read());
            assert_eq!(block.read(), 0x5a);
            assert!(resize_single(block, medium, small));
        }
        assert_eq!(out(medium), 0);
    }
    assert_eq!(out(small), 1);
    free_one(small, block.as_ptr().addr());
    assert_eq!(out(small), 0);

    let (block, _) = allocate_single(big).unwrap();
    // SAFETY: as above; a shorter class always has a weaker alignment here.
    assert!(unsafe { resize_single(block, big, medium) });
    assert_eq!(usize::from(map::lookup(block.as_ptr().addr()).0), medium);
    assert_eq!(map::lookup(block.as_ptr().addr() + 256 * 1024).0, map::NONE, "the tail went back");
    free_one(medium, block.as_ptr().addr());
    assert_eq!((out(big), out(medium)), (0, 0));
}

#[test]
fn span_geometry() {
    for of in CLASS.iter().skip(1) {
        assert!(usize::from(of.blocks) * of.size as usize <= usize::from(of.pages) * PAGE);
        assert_eq!(of.blocks == 1, of.size as usize >= crate::size_class::SINGLE_BLOCK);
    }
}
