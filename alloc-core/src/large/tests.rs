//! Large blocks against a plain model, and their promises one by one.

extern crate std;

use super::*;
use crate::random::Random;
use std::vec::Vec;

const MIB: usize = 1 << 20;

/// One word per 4 KiB, which is enough to see every OS page.
fn words(ptr: NonNull<u8>, size: usize) -> impl Iterator<Item = &'static mut usize> {
    // SAFETY: memory of the block whose owner calls this.
    let words = unsafe { core::slice::from_raw_parts_mut(ptr.as_ptr().cast(), size / 8) };
    words.iter_mut().step_by(512)
}

fn fill(ptr: NonNull<u8>, size: usize, mark: usize) {
    words(ptr, size).for_each(|word| *word = mark);
}

fn holds(ptr: NonNull<u8>, size: usize, mark: usize) -> bool {
    words(ptr, size).all(|word| *word == mark)
}

#[test]
fn lengths() {
    let page = mapping::page_size();
    assert_eq!(stepped(0), Some(LEAST.max(page)));
    assert_eq!(stepped(MIB), Some(MIB));
    assert_eq!(stepped(MIB + 1), Some(MIB + MIB / 8));
    assert_eq!(stepped(4 * MIB - 1), Some(4 * MIB));
    assert_eq!(stepped(4 * MIB + 1), Some(4 * MIB + page));
    assert_eq!(with_reserve(64 * MIB + 1), Some(65 * MIB));
    for huge in [usize::MAX, usize::MAX - page, isize::MAX as usize + 1] {
        assert_eq!(stepped(huge), None);
        assert_eq!(with_reserve(huge), None);
        assert!(allocate(huge, 8).is_none());
    }
    for size in (1..6 * MIB).step_by(4321) {
        let len = stepped(size).unwrap();
        assert!(len >= size && len.is_multiple_of(page));
        assert!(len <= size + (size / 8).max(LEAST).max(page));
        assert!(with_reserve(size).unwrap() >= len);
    }
}

#[test]
fn blocks_are_found_by_their_start_only() {
    let heap = LargeHeap::new();
    let (ptr, zeroed) = heap.allocate(3 * MIB, 8).unwrap();
    assert!(zeroed && holds(ptr, 3 * MIB, 0));
    assert_eq!(usable_size(ptr.addr().get()), Some(3 * MIB));
    for offset in [1, 8, 4096, LEAST, MIB] {
        // SAFETY: inside the block.
        let inside = unsafe { ptr.add(offset) };
        assert_eq!(usable_size(inside.addr().get()), None);
        // SAFETY: no block starts there, which is what is tested.
        assert_eq!(unsafe { heap.free(inside, 0) }, Err(NotOurs));
    }
    assert_eq!(usable_size(0), None);
    // SAFETY: given up.
    assert_eq!(unsafe { heap.free(ptr, 0) }, Ok(()));
    assert_eq!(usable_size(ptr.addr().get()), None);
    // SAFETY: a double free, which is refused.
    assert_eq!(unsafe { heap.free(ptr, 0) }, Err(NotOurs));
    heap.purge();
}

#[test]
#[cfg_attr(miri, ignore = "takes gigabytes")]
fn any_alignment() {
    let heap = LargeHeap::new();
    for shift in 0..32 {
        let align = 1 << shift;
        let (ptr, zeroed) = heap.allocate(100, align).unwrap();
        assert_eq!(ptr.addr().get() % align, 0);
        assert!(zeroed || shift > 0);
        fill(ptr, 100, 1);
        // SAFETY: given up.
        assert_eq!(unsafe { heap.free(ptr, 0) }, Ok(()));
    }
    heap.purge();
    assert_eq!(heap.usage().mappings, 0);
}

#[test]
fn the_same_length_comes_back_and_is_not_zero() {
    let heap = LargeHeap::new();
    let (ptr, _) = heap.allocate(2 * MIB - 5, 8).unwrap();
    fill(ptr, MIB, 7);
    // SAFETY: given up.
    unsafe { heap.free(ptr, 0) }.unwrap();
    assert_eq!(heap.usage().cached_bytes, 2 * MIB);
    // More than twice as long, so it is not made of that one.
    let (other, _) = heap.allocate(5 * MIB, 8).unwrap();
    assert_ne!(other, ptr);
    assert_eq!(heap.allocate(2 * MIB, 8), Some((ptr, false)));
    assert_eq!(heap.usage().cached_bytes, 0);
    assert_eq!(heap.usage().live_bytes, 7 * MIB);
    assert_eq!(heap.usage().mappings, 2);
    for ptr in [ptr, other] {
        // SAFETY: given up.
        unsafe { heap.free(ptr, 0) }.unwrap();
    }
    assert_eq!(heap.purge(), 7 * MIB);
}

/// Memory that is there is used before more is mapped.
#[test]
#[cfg_attr(miri, ignore = "no mremap")]
fn longer_mappings_are_cut_and_shorter_ones_lengthened() {
    let heap = LargeHeap::new();
    let (long, _) = heap.allocate(8 * MIB, 8).unwrap();
    fill(long, 8 * MIB, 7);
    // SAFETY: given up.
    unsafe { heap.free(long, 0) }.unwrap();
    let parts = [3 * MIB, 5 * MIB].map(|size| {
        let (ptr, zeroed) = heap.allocate(size, 8).unwrap();
        assert!(!zeroed && holds(ptr, size, 7));
        ptr
    });
    assert_eq!(parts[1].addr().get(), parts[0].addr().get() + 3 * MIB);
    assert_eq!((heap.usage().live_bytes, heap.usage().cached_bytes), (8 * MIB, 0));
    for ptr in parts {
        // SAFETY: given up.
        unsafe { heap.free(ptr, 0) }.unwrap();
    }
    // One again, and then longer than it ever was.
    assert_eq!((heap.usage().mappings, heap.usage().cached_bytes), (1, 8 * MIB));
    let (longer, zeroed) = heap.allocate(14 * MIB, 8).unwrap();
    assert!(!zeroed && holds(longer, 8 * MIB, 7));
    // SAFETY: inside the block, of which half was there before.
    let rest = unsafe { longer.add(8 * MIB) };
    assert!(holds(rest, 6 * MIB, 0));
    assert_eq!(heap.usage().cached_bytes, 0);
    // SAFETY: given up.
    unsafe { heap.free(longer, 0) }.unwrap();
    heap.purge();
    assert_eq!(heap.usage().mappings, 0);
}

#[test]
fn kept_mappings_decay() {
    let heap = LargeHeap::new();
    let mut blocks: Vec<_> = (0..12).map(|_| heap.allocate(8 * MIB, 8).unwrap().0).collect();
    // None of those that are freed touches another.
    blocks.sort_unstable();
    let (blocks, between): (Vec<_>, Vec<_>) = blocks.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    for (index, &ptr) in blocks.iter().enumerate() {
        // SAFETY: given up.
        unsafe { heap.free(ptr, 1000 + 100 * index as u64) }.unwrap();
    }
    let cached = || heap.usage().cached_bytes / (8 * MIB);
    heap.tick(1000 + DEFAULT_DECAY_MS - 1);
    assert_eq!(cached(), 6);
    heap.tick(1000 + DEFAULT_DECAY_MS);
    assert_eq!(cached(), 5);
    // A tick is bounded, so the rest takes several.
    for left in [3, 1, 0] {
        heap.tick(1_000_000);
        assert_eq!(cached(), left);
    }
    assert_eq!(heap.due.load(Ordering::Relaxed), 0);

    heap.set_decay_ms(NEVER);
    let (ptr, _) = heap.allocate(8 * MIB, 8).unwrap();
    // SAFETY: given up.
    unsafe { heap.free(ptr, 0) }.unwrap();
    heap.tick(u64::MAX);
    assert_eq!(cached(), 1);
    heap.set_decay_ms(5);
    heap.tick(5);
    assert_eq!(cached(), 0);
    heap.set_decay_ms(0);
    for ptr in between {
        // SAFETY: given up.
        unsafe { heap.free(ptr, 0) }.unwrap();
    }
    assert_eq!(heap.usage().mappings, 0);
}

#[test]
#[cfg_attr(miri, ignore = "no mremap")]
fn resizing_keeps_contents_and_alignment() {
    let heap = LargeHeap::new();
    for align in [8, 4096, 1 << 16, 1 << 22] {
        let (mut ptr, _) = heap.allocate(2 * MIB, align).unwrap();
        fill(ptr, 2 * MIB, 3);
        let mut size = 2 * MIB;
        for new_size in [3 * MIB, 40 * MIB, 40 * MIB + 9, 5 * MIB, MIB, 9 * MIB] {
            // SAFETY: the block is ours.
            match unsafe { heap.resize(ptr, new_size, align) } {
                Some(moved) => ptr = moved,
                None => {
                    assert!(align > mapping::page_size() && new_size > size);
                    break;
                }
            }
            assert_eq!(ptr.addr().get() % align, 0);
            assert!(holds(ptr, size.min(new_size), 3));
            assert!(usable_size(ptr.addr().get()).unwrap() >= new_size);
            assert_eq!(heap.usage().live_bytes, usable_size(ptr.addr().get()).unwrap());
            fill(ptr, new_size, 3);
            size = new_size;
        }
        // SAFETY: given up.
        unsafe { heap.free(ptr, 0) }.unwrap();
    }
    heap.purge();
    assert_eq!(heap.usage().live_bytes, 0);
}

#[test]
#[cfg_attr(miri, ignore = "no mremap")]
fn growing_in_small_steps_makes_few_changes() {
    let heap = LargeHeap::new();
    let (mut ptr, _) = heap.allocate(MIB, 8).unwrap();
    let mut lengths = 0;
    let mut size = MIB;
    while size < 32 * MIB {
        let before = usable_size(ptr.addr().get());
        size += 1024;
        // SAFETY: the block is ours.
        ptr = unsafe { heap.resize(ptr, size, 8) }.unwrap();
        lengths += usize::from(usable_size(ptr.addr().get()) != before);
    }
    assert!(lengths < 60, "{lengths} changes");
    // SAFETY: given up.
    unsafe { heap.free(ptr, 0) }.unwrap();
    heap.purge();
}

#[test]
#[cfg_attr(miri, ignore = "no mremap")]
fn a_failed_resize_changes_nothing() {
    let heap = LargeHeap::new();
    let (ptr, _) = heap.allocate(2 * MIB, 8).unwrap();
    fill(ptr, 2 * MIB, 4);
    for size in [1 << 50, isize::MAX as usize, usize::MAX] {
        // SAFETY: the block is ours.
        assert_eq!(unsafe { heap.resize(ptr, size, 8) }, None);
        assert_eq!(usable_size(ptr.addr().get()), Some(2 * MIB));
    }
    assert!(holds(ptr, 2 * MIB, 4));
    // A range of several mappings cannot be moved as one.
    let page = mapping::page_size();
    let protect = |prot| {
        // SAFETY: a page in the middle of the block.
        let asked = unsafe { libc::mprotect(ptr.as_ptr().add(MIB).cast(), page, prot) };
        assert_eq!(asked, 0);
    };
    protect(libc::PROT_READ);
    // SAFETY: the block is ours.
    let resized = unsafe { heap.resize(ptr, 64 * MIB, 8) };
    assert!(resized.is_none() && usable_size(ptr.addr().get()) == Some(2 * MIB));
    protect(libc::PROT_READ | libc::PROT_WRITE);
    assert!(holds(ptr, 2 * MIB, 4));
    // SAFETY: given up.
    unsafe { heap.free(ptr, 0) }.unwrap();
    // SAFETY: not a block any more.
    assert_eq!(unsafe { heap.resize(ptr, 1, 8) }, None);
    heap.purge();
}

/// Threads allocate, grow, shrink and free, and addresses wander from one to the other by way of moves and
/// unmappings. Every block keeps its mark and is found under its address all the time.
#[test]
#[cfg_attr(miri, ignore = "no mremap")]
fn threads_never_see_a_stale_owner() {
    static SHARED: LargeHeap = LargeHeap::new();
    SHARED.set_decay_ms(3);
    std::thread::scope(|scope| {
        for thread in 0..6usize {
            scope.spawn(move || {
                let mut random = Random(thread as u64 * 99 + 5);
                let mut blocks: Vec<(NonNull<u8>, usize, usize)> = Vec::new();
                // Without optimisation looking at every word takes most of the time.
                for step in 0..if cfg!(debug_assertions) { 400 } else { 1500 } {
                    let mark = thread << 32 | step | 1 << 60;
                    match random.below(8) {
                        0..=2 if blocks.len() < 10 => {
                            let size = 64 * 1024 + random.below(3 * MIB);
                            let (ptr, zeroed) = SHARED.allocate(size, 8).unwrap();
                            assert!(!zeroed || holds(ptr, size, 0));
                            fill(ptr, size, mark);
                            blocks.push((ptr, size, mark));
                        }
                        3..=5 if !blocks.is_empty() => {
                            let index = random.below(blocks.len());
                            let (ptr, size, mark) = blocks[index];
                            let new_size = 64 * 1024 + random.below(4 * MIB);
                            // SAFETY: this thread's block.
                            match unsafe { SHARED.resize(ptr, new_size, 8) } {
                                Some(moved) => {
                                    assert!(holds(moved, size.min(new_size), mark));
                                    fill(moved, new_size, mark);
                                    blocks[index] = (moved, new_size, mark);
                                }
                                // The kernel may know a mapping that was made of several as several.
                                None => assert!(new_size > size && holds(ptr, size, mark)),
                            }
                        }
                        6 if !blocks.is_empty() => {
                            let index = random.below(blocks.len());
                            let (ptr, size, mark) = blocks.swap_remove(index);
                            assert!(holds(ptr, size, mark));
                            // SAFETY: this thread's block.
                            unsafe { SHARED.free(ptr, step as u64) }.unwrap();
                        }
                        _ => SHARED.tick(step as u64),
                    }
                    for &(ptr, size, _) in &blocks {
                        assert!(usable_size(ptr.addr().get()).unwrap() >= size);
                    }
                }
                for (ptr, size, mark) in blocks {
                    assert!(holds(ptr, size, mark));
                    // SAFETY: this thread's block.
                    unsafe { SHARED.free(ptr, 0) }.unwrap();
                }
            });
        }
    });
    SHARED.purge();
    let usage = SHARED.usage();
    assert_eq!((usage.live_bytes, usage.served_bytes, usage.mappings), (0, 0, 0));
}

/// A heap in which a mapping of 8 MiB is kept that starts at a huge page, since the time 1, and that mapping.
fn with_room() -> (LargeHeap, NonNull<u8>) {
    let heap = LargeHeap::new();
    let room = heap.allocate(8 * MIB, 2 * MIB).unwrap().0;
    fill(room, 8 * MIB, 9);
    // SAFETY: ours, and not used again.
    unsafe { heap.free(room, 1) }.unwrap();
    (heap, room)
}

#[test]
fn what_grows_takes_what_is_kept_behind_it() {
    let (heap, room) = with_room();
    let grown = heap.allocate_to_grow(MIB + 5, 8).unwrap();
    assert_eq!(grown, room);
    fill(grown, MIB, 4);
    let mut size = MIB + 5;
    while size < 7 * MIB {
        size += 64 << 10;
        // SAFETY: ours.
        assert_eq!(unsafe { heap.resize(grown, size, 8) }, Some(room), "{size}");
        let len = usable_size(room.addr().get()).unwrap();
        assert!(len >= size && len <= size + MIB);
        let usage = heap.usage();
        assert_eq!((usage.live_bytes, usage.live_bytes + usage.cached_bytes), (len, 8 * MIB));
    }
    assert!(holds(grown, MIB, 4));
    // SAFETY: ours, and not used again.
    unsafe { heap.free(grown, 2) }.unwrap();
    assert_eq!((heap.usage().mappings, heap.usage().cached_bytes), (1, 8 * MIB));
    heap.purge();
}

/// Room behind a live block is given up like everything else that is kept, and the block keeps what it asked for.
#[test]
#[cfg_attr(miri, ignore = "no mremap")]
fn room_that_is_not_used_decays() {
    let (heap, room) = with_room();
    heap.one_became_large();
    let block = heap.allocate_early(128 << 10).unwrap();
    assert_eq!(block, room);
    fill(block, 128 << 10, 5);
    heap.tick(1 + DEFAULT_DECAY_MS - 1);
    assert_eq!(heap.usage().cached_bytes, 8 * MIB - (128 << 10));
    heap.tick(1 + DEFAULT_DECAY_MS);
    assert_eq!((heap.usage().cached_bytes, heap.usage().live_bytes), (0, 128 << 10));
    assert!(holds(block, 128 << 10, 5));
    // It still grows, then at the expense of system calls.
    // SAFETY: ours.
    let moved = unsafe { heap.resize(block, 3 * MIB, 8) }.unwrap();
    assert!(holds(moved, 128 << 10, 5));
    // SAFETY: ours, and not used again.
    unsafe { heap.free(moved, 2) }.unwrap();
    heap.purge();
    assert_eq!(heap.usage().mappings, 0);
}

#[test]
fn blocks_come_early_only_while_that_pays() {
    let (heap, room) = with_room();
    let early = |count: usize| -> Vec<_> { (0..count).map_while(|_| heap.allocate_early(64 << 10)).collect() };
    assert!(early(1).is_empty(), "none has become large");
    heap.one_became_large();
    let blocks = early(9);
    assert_eq!(blocks.len(), EARLY_EACH as usize);
    for (index, block) in blocks.iter().enumerate() {
        // Each where it has the most room, and aligned for any class.
        assert_eq!(block.addr().get(), room.addr().get() + index * MIB);
        assert_eq!(class_of(block.addr().get()), bin((64 << 10) - 1).map(class_of_bin));
    }
    for _ in 0..EARLY_MOST {
        heap.one_became_large();
    }
    let mut more = early(5);
    assert_eq!(more.len(), 5);
    assert_eq!(heap.allocate_early(512 << 10), None, "there is hardly more room than it needs");
    more.extend(early(usize::MAX));
    assert_eq!(more.len(), 6, "as many as there are aligned places");
    for block in blocks.into_iter().chain(more) {
        // SAFETY: ours, and not used again.
        unsafe { heap.free(block, 2) }.unwrap();
    }
    assert_eq!((heap.usage().mappings, heap.usage().cached_bytes), (1, 8 * MIB));
    heap.purge();
}

/// What a classed block is promised to be must hold until it is larger than every class.
#[test]
fn classed_blocks_stay_where_they_are_aligned() {
    let (heap, room) = with_room();
    heap.one_became_large();
    let block = heap.allocate_early(128 << 10).unwrap();
    fill(block, 128 << 10, 6);
    // Somebody else takes what is behind it.
    let other = heap.allocate(8 * MIB - (128 << 10), 8).unwrap().0;
    assert_eq!(other.addr().get(), room.addr().get() + (128 << 10));
    // SAFETY: ours.
    assert_eq!(unsafe { heap.resize(block, 512 << 10, 8) }, None);
    assert_eq!(class_of(block.addr().get()), bin((128 << 10) - 1).map(class_of_bin));
    assert!(holds(block, 128 << 10, 6));
    // SAFETY: ours, and not used again.
    unsafe { heap.free(other, 2) }.unwrap();
    // SAFETY: ours.
    assert_eq!(unsafe { heap.resize(block, 512 << 10, 8) }, Some(block));
    assert_eq!(class_of(block.addr().get()), bin((512 << 10) - 1).map(class_of_bin));
    // SAFETY: ours.
    assert_eq!(unsafe { heap.resize(block, MIB + 1, 8) }, Some(block));
    assert_eq!(class_of(block.addr().get()), None);
    // SAFETY: ours, and not used again.
    unsafe { heap.free(block, 2) }.unwrap();
    heap.purge();
}

#[test]
fn fork_hooks_leave_the_locks_free() {
    lock_for_fork();
    // SAFETY: locked above.
    unsafe { unlock_after_fork() };
    let (ptr, _) = allocate(2 * MIB, 8).unwrap();
    // SAFETY: given up.
    unsafe { free(ptr) }.unwrap();
    assert!(usage().cached_bytes >= 2 * MIB);
    tick(0);
    purge();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 24 }))]

    /// Any sequence of allocations, resizes and frees agrees with a list of what is live: contents survive, blocks do
    /// not overlap, the sums are right.
    #[test]
    fn any_sequence_agrees_with_the_model(steps in proptest::collection::vec((0..4u8, 0..usize::MAX, 1..6 * MIB), 1..40)) {
        let heap = LargeHeap::new();
        let mut live: Vec<(NonNull<u8>, usize, usize)> = Vec::new();
        for (mark, (step, which, size)) in steps.into_iter().enumerate() {
            match (step, live.len()) {
                (0, _) | (_, 0) => {
                    let (ptr, zeroed) = heap.allocate(size, 8).unwrap();
                    assert!(!zeroed || holds(ptr, size, 0));
                    fill(ptr, size, mark);
                    live.push((ptr, size, mark));
                }
                (1, len) => {
                    let (ptr, size, mark) = live.swap_remove(which % len);
                    assert!(holds(ptr, size, mark));
                    // SAFETY: given up.
                    unsafe { heap.free(ptr, 0) }.unwrap();
                }
                (_, len) => {
                    let (ptr, old, mark) = &mut live[which % len];
                    // SAFETY: live, and the old address is not used again.
                    if let Some(new) = unsafe { heap.resize(*ptr, size, 8) } {
                        assert!(holds(new, size.min(*old), *mark));
                        fill(new, size, *mark);
                        (*ptr, *old) = (new, size);
                    } else {
                        assert!(holds(*ptr, *old, *mark), "a refused resize changes nothing");
                    }
                }
            }
            let mut starts: Vec<_> = live.iter().map(|(ptr, size, _)| (ptr.addr().get(), *size)).collect();
            starts.sort_unstable();
            assert!(starts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            assert!(heap.usage().live_bytes >= live.iter().map(|(_, size, _)| size).sum());
        }
        for (ptr, size, mark) in live {
            assert!(holds(ptr, size, mark));
            // SAFETY: given up.
            unsafe { heap.free(ptr, 0) }.unwrap();
        }
        assert_eq!((heap.usage().live_bytes, heap.usage().served_bytes), (0, 0));
        heap.purge();
        assert_eq!(heap.usage().mappings, 0);
    }
}
