//! What the kernel is told about the heap's regions: names, and whether they should be huge pages.

use super::{ALLOC, Blocks, MIB, layout};
use integration::scenes;
use std::alloc::GlobalAlloc;

/// Promise: where the kernel names memory, every region of the heap can be found in `/proc/self/maps`; where it does not,
/// nothing is said about it.
pub(super) fn regions_have_names() {
    let finished = scenes::run("names", "");
    assert_eq!(finished.stderr, "");
}

/// Whether this kernel has names (`CONFIG_ANON_VMA_NAME`).
fn names_exist() -> bool {
    const PR_SET_VMA: i32 = 0x5356_4d41;
    // SAFETY: a mapping of our own that nothing is done with.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0);
        libc::prctl(PR_SET_VMA, 0_usize, start, 4096_usize, c"test".as_ptr()) == 0
    }
}

pub(super) fn play_names() {
    // More than the static memory that the first metadata has.
    let _blocks = Blocks::of(64, 128 * MIB);
    let mut large = Blocks::of(3 * MIB, 6 * MIB);
    // A block that moves keeps its name.
    let (block, old) = large.0.pop().expect("a block");
    // SAFETY: allocated by `add` with this layout.
    let grown = unsafe { ALLOC.realloc(std::ptr::with_exposed_provenance_mut(block), old, 40 * MIB) };
    assert!(!grown.is_null());
    large.0.push((grown.expose_provenance(), layout(40 * MIB)));
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    if !names_exist() {
        assert!(!maps.contains("rseq-alloc:"), "{maps}");
        return println!("skipped: this kernel has no names");
    }
    let mut kinds = vec!["pages", "metadata", "large"];
    if alloc_core::mode().index().is_some() {
        kinds.push("shards");
    }
    for kind in kinds {
        assert!(maps.contains(&format!("[anon:rseq-alloc: {kind}]")), "no {kind} in\n{maps}");
    }
    let at = format!("{:x}-", grown.addr());
    let line = maps.lines().find(|line| line.starts_with(&at)).expect("the block that grew");
    assert!(line.ends_with("[anon:rseq-alloc: large]"), "{line}");
}

/// Promise: the regions of small blocks and new large mappings are asked to be huge pages, or not to be, or neither, as
/// the option says.
pub(super) fn advice_is_what_was_chosen() {
    if !std::fs::exists("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or(false) {
        return println!("skipped: this kernel has no transparent huge pages");
    }
    for (options, expected) in
        [("", "- - hg"), ("thp=system", "- - hg"), ("thp=on", "hg hg hg"), ("thp=off", "nh nh nh")]
    {
        assert_eq!(scenes::run("advice", options).stdout.trim(), expected, "with {options:?}");
    }
}

/// What smaps says about the mapping around an address.
fn flag(address: usize) -> &'static str {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("procfs");
    let mut inside = false;
    for line in smaps.lines() {
        if let Some((range, _)) = line.split_once(' ')
            && let Some((low, high)) = range.split_once('-')
            && let (Ok(low), Ok(high)) = (usize::from_str_radix(low, 16), usize::from_str_radix(high, 16))
        {
            inside = (low..high).contains(&address);
        } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
            return if has("hg") {
                "hg"
            } else if has("nh") {
                "nh"
            } else {
                "-"
            };
        }
    }
    panic!("nothing is mapped at {address:x}");
}

pub(super) fn play_advice() {
    // More than the static memory that the first blocks have.
    let small = Blocks::of(1000, MIB);
    let large = Blocks::of(5 * MIB, 5 * MIB);
    // SAFETY: the size is not zero, and the growth is of that block.
    let grown = unsafe { ALLOC.realloc(ALLOC.alloc(layout(2 * MIB)), layout(2 * MIB), 20 * MIB) };
    println!("{} {} {}", flag(small.0[1000].0), flag(large.0[0].0), flag(grown.addr()));
    // SAFETY: the block is ours.
    unsafe { ALLOC.dealloc(grown, layout(20 * MIB)) };
}
