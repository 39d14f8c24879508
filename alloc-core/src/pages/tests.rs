//! The page heap against a plain model, and its promises one by one. Each test has a heap of its own.

extern crate std;

use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::bits::PAGES;
use super::decay::NEVER;
use super::{HUGE, Kind, PAGE, PageHeap, Run};
use crate::os::tests::{expect_success, fork};
use crate::random::Random;

/// A heap with regions of `region` huge pages and `os_pages` pages per OS page (0: the system's).
fn heap(region: usize, os_pages: usize) -> &'static PageHeap {
    let heap = Box::leak(Box::new(PageHeap::new()));
    heap.state().configure(region * HUGE, os_pages);
    heap
}

fn words(run: NonNull<u8>, pages: usize) -> &'static mut [u64] {
    // SAFETY: a run is memory of its owner, who calls this, and aligned to its page.
    unsafe { core::slice::from_raw_parts_mut(run.as_ptr().cast(), pages * PAGE / 8) }
}

/// Runs that are handed out: address to pages and mark. Checks everything that can be seen from outside.
struct Model {
    heap: &'static PageHeap,
    runs: BTreeMap<usize, (NonNull<u8>, usize, u64)>,
    mark: u64,
    zeroed: usize,
    kind: Kind,
}

impl Model {
    fn new(heap: &'static PageHeap) -> Self {
        Self { heap, runs: BTreeMap::new(), mark: 1, zeroed: 0, kind: Kind::Dense }
    }

    fn allocate(&mut self, pages: usize, align: usize) -> NonNull<u8> {
        let Run { addr, zeroed, .. } = self.heap.allocate(pages, align, self.kind).unwrap();
        let start = addr.addr().get();
        assert_eq!(start % (align * PAGE), 0);
        assert_eq!(start / HUGE, (start + pages * PAGE - 1) / HUGE);
        self.check_disjoint(start, pages);
        if zeroed {
            self.zeroed += 1;
            assert!(words(addr, pages).iter().all(|&word| word == 0));
        }
        self.mark += 1;
        words(addr, pages).fill(self.mark);
        self.runs.insert(start, (addr, pages, self.mark));
        addr
    }

    fn check_disjoint(&self, start: usize, pages: usize) {
        let end = start + pages * PAGE;
        if let Some((&other, &(_, len, _))) = self.runs.range(..end).next_back() {
            assert!(other + len * PAGE <= start, "overlap");
        }
    }

    fn check_contents(&self, start: usize) {
        let (addr, pages, mark) = self.runs[&start];
        assert!(words(addr, pages).iter().all(|&word| word == mark));
    }

    fn free(&mut self, start: usize) {
        self.check_contents(start);
        let (addr, pages, _) = self.runs.remove(&start).unwrap();
        // SAFETY: allocated here, and forgotten now.
        unsafe { self.heap.free(addr, pages, 0) };
    }

    fn free_tail(&mut self, start: usize, keep: usize) {
        self.check_contents(start);
        let (addr, pages, mark) = self.runs[&start];
        // SAFETY: the tail of a run that was allocated here.
        unsafe { self.heap.free(addr.add(keep * PAGE), pages - keep, 0) };
        self.runs.insert(start, (addr, keep, mark));
    }

    /// Frees a part of a run, whose contents are not checked any more.
    fn free_part(&mut self, start: usize, from: usize, pages: usize) {
        let (addr, _, _) = self.runs[&start];
        // SAFETY: a part of a run that was allocated here, and freed once.
        unsafe { self.heap.free(addr.add(from * PAGE), pages, 0) };
    }

    fn extend(&mut self, start: usize, new_pages: usize) -> bool {
        let (addr, pages, mark) = self.runs.remove(&start).unwrap();
        // SAFETY: allocated here.
        let extended = unsafe { self.heap.extend(addr, pages, new_pages) };
        let pages = if extended { new_pages } else { pages };
        self.check_disjoint(start, pages);
        words(addr, pages)[(pages - 1) * PAGE / 8..].fill(mark);
        words(addr, pages).fill(mark);
        self.runs.insert(start, (addr, pages, mark));
        extended
    }

    fn any(&self, random: &mut Random) -> Option<usize> {
        let index = random.below(self.runs.len().max(1));
        self.runs.keys().copied().nth(index)
    }

    fn check_totals(&self) {
        let usage = self.heap.usage();
        let used: usize = self.runs.values().map(|run| run.1 * PAGE).sum();
        assert_eq!(usage.used_bytes, used);
        assert_eq!(usage.used_bytes + usage.free_resident_bytes + usage.returned_bytes, usage.committed);
        assert!(usage.committed <= usage.reserved);
        assert!(usage.huge_pages * HUGE <= usage.committed);
    }
}

fn run_model(os_pages: usize, interval: u64, seed: u64) {
    let heap = heap(8, os_pages);
    heap.set_decay_ms(interval);
    let mut model = Model::new(heap);
    let mut random = Random(seed);
    let mut now = 1000;
    for step in 0..6000 {
        // Grow and shrink in waves, so that huge pages become full and wholly free.
        let growing = (step / 600) % 2 == 0;
        match random.below(20) {
            0..=11 if growing == (random.below(4) > 0) => {
                let pages = match random.below(8) {
                    0 => 1 + random.below(PAGES),
                    1..=3 => 1 + random.below(32),
                    _ => 1 + random.below(8),
                };
                let align = 1 << random.below(if step % 10 == 0 { 9 } else { 3 });
                model.kind = if pages > 8 { Kind::Sparse } else { Kind::Dense };
                if model.runs.len() < 400 {
                    model.allocate(pages, align);
                }
            }
            0..=13 => {
                if let Some(start) = model.any(&mut random) {
                    model.free(start);
                }
            }
            14 => {
                if let Some(start) = model.any(&mut random) {
                    let pages = model.runs[&start].1;
                    model.extend(start, pages + random.below(9));
                }
            }
            15 => {
                if let Some(start) = model.any(&mut random) {
                    let pages = model.runs[&start].1;
                    if pages > 1 {
                        model.free_tail(start, 1 + random.below(pages - 1));
                    }
                }
            }
            16 if step % 100 == 0 => {
                let before = heap.usage();
                let bytes = heap.purge();
                let after = heap.usage();
                assert_eq!(before.free_resident_bytes - after.free_resident_bytes, bytes);
            }
            _ => {
                now += random.below(300) as u64;
                heap.tick(now);
            }
        }
        if step % 16 == 0 {
            model.check_totals();
        }
    }
    for start in model.runs.keys().copied().collect::<Vec<_>>() {
        model.free(start);
    }
    model.check_totals();
    heap.purge();
    let usage = heap.usage();
    assert_eq!((usage.used_bytes, usage.free_resident_bytes), (0, 0), "all is with the OS after a purge");
    assert!(model.zeroed > 50, "{} zeroed runs were checked", model.zeroed);
}

#[test]
fn random_operations_agree_with_the_model() {
    run_model(0, 500, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn random_operations_with_16_kib_os_pages() {
    run_model(2, 500, 0x853c_49e6_748f_ea9b);
}

#[test]
fn random_operations_with_64_kib_os_pages() {
    run_model(8, 500, 0x2545_f491_4f6c_dd1d);
}

#[test]
fn random_operations_that_return_at_once() {
    run_model(2, 0, 0xda3e_39cb_94b9_5bdb);
}

#[test]
fn impossible_runs_are_refused() {
    let heap = heap(2, 0);
    for (pages, align) in [(0, 1), (PAGES + 1, 1), (1, 3), (1, 512), (usize::MAX, 1)] {
        assert!(heap.allocate(pages, align, Kind::Dense).is_none());
    }
    assert_eq!(heap.usage().reserved, 0);
}

#[test]
fn a_run_grows_into_what_follows() {
    let mut model = Model::new(heap(4, 0));
    let first = model.allocate(4, 1).addr().get();
    let second = model.allocate(4, 1).addr().get();
    assert_eq!(second, first + 4 * PAGE);
    assert!(!model.extend(first, 5));
    assert!(model.extend(second, 9));
    assert!(model.extend(second, 9), "growing by nothing changes nothing");
    model.free(second);
    assert!(model.extend(first, PAGES));
    assert!(!model.extend(first, PAGES + 1));
    model.check_totals();
}

#[test]
fn full_huge_pages_are_filled_before_others() {
    let heap = heap(16, 0);
    let mut model = Model::new(heap);
    // Two huge pages of 32 runs of 8 pages each; then a sparse one and a nearly full one.
    let runs: Vec<usize> = (0..64).map(|_| model.allocate(8, 1).addr().get()).collect();
    for (index, &run) in runs.iter().enumerate() {
        if index < 31 || index == 40 || index == 50 {
            model.free(run);
        }
    }
    assert_eq!(heap.usage().huge_pages, 2);
    for _ in 0..2 {
        let run = model.allocate(8, 1).addr().get();
        assert!(run == runs[40] || run == runs[50], "the nearly full one first");
    }
    assert_eq!(model.allocate(8, 1).addr().get(), runs[0]);
    assert_eq!(heap.usage().huge_pages, 2);
}

#[test]
fn kinds_are_kept_apart_in_a_heap_that_is_not_small() {
    let heap = heap(16, 0);
    let mut model = Model::new(heap);
    let runs: Vec<usize> = (0..2).map(|_| model.allocate(PAGES / 2, 1).addr().get()).collect();
    model.free(runs[0]);
    model.kind = Kind::Sparse;
    assert_eq!(model.allocate(8, 1).addr().get(), runs[0], "a small heap shares");
    model.kind = Kind::Dense;
    let runs: Vec<usize> = (0..15).map(|_| model.allocate(PAGES / 2, 1).addr().get()).collect();
    assert_eq!(heap.usage().huge_pages, 9);
    model.free(runs[4]);
    model.kind = Kind::Sparse;
    let sparse = model.allocate(8, 1).addr().get();
    assert_eq!(heap.usage().huge_pages, 10);
    assert_eq!(model.allocate(8, 1).addr().get(), sparse + 8 * PAGE);
    model.kind = Kind::Dense;
    assert_ne!(model.allocate(8, 1).addr().get() / HUGE, sparse / HUGE);
    assert_eq!(heap.usage().huge_pages, 10);
    // A huge page that became wholly free serves either kind.
    model.free(sparse);
    model.free(sparse + 8 * PAGE);
    assert_eq!(model.allocate(PAGES, 1).addr().get() / HUGE, sparse / HUGE);
}

#[test]
fn free_huge_pages_are_reused_before_fresh_ones() {
    let heap = heap(16, 0);
    let mut model = Model::new(heap);
    let runs: Vec<usize> = (0..4).map(|_| model.allocate(PAGES, 1).addr().get()).collect();
    model.free(runs[1]);
    heap.purge();
    model.free(runs[2]);
    assert_eq!(model.allocate(1, 1).addr().get(), runs[2], "resident before returned");
    assert_eq!(model.allocate(PAGES, 1).addr().get(), runs[1]);
    assert_eq!(heap.usage().huge_pages, 4);
}

/// Ticks until what is due at `at` is done: a late tick catches up over several calls.
fn tick(heap: &PageHeap, at: u64) {
    for call in 0..20 {
        heap.tick(at + call);
    }
}

/// Frees `count` huge pages at once and follows the curve of wholly free ones, for an interval of 6400 ms.
#[test]
fn decay_follows_the_clock() {
    let heap = heap(64, 0);
    heap.set_decay_ms(6400);
    let mut model = Model::new(heap);
    let count = 40;
    let runs: Vec<usize> = (0..count).map(|_| model.allocate(PAGES, 1).addr().get()).collect();
    for &run in &runs {
        model.free(run);
    }
    let resident = |at: u64| {
        tick(heap, at);
        model.check_totals();
        heap.usage().free_resident_bytes / HUGE
    };
    let start = 50_000;
    assert_eq!(resident(start), count);
    // Whole huge pages go, so it can be one below the curve.
    for (time, expected) in [(800, 33), (1600, 20), (2400, 6), (3200, 0)] {
        let resident = resident(start + time);
        assert!((expected - 1..=expected).contains(&(resident as i64)), "{resident} huge pages after {time} ms");
    }
    assert_eq!(heap.due.load(core::sync::atomic::Ordering::Relaxed), 0, "nothing is pending");
    let locks = heap.usage().locks_taken;
    heap.tick(start + 100_000);
    assert_eq!(heap.usage().locks_taken, locks + 1, "a tick without work takes no lock");
}

/// Free runs in huge pages that stay in use have all of the interval.
#[test]
fn free_runs_follow_the_clock() {
    let heap = heap(64, 0);
    heap.set_decay_ms(6400);
    let mut model = Model::new(heap);
    let runs: Vec<usize> = (0..80).map(|_| model.allocate(PAGES / 2, 1).addr().get()).collect();
    runs.iter().step_by(2).for_each(|&run| model.free(run));
    let start = 50_000;
    for (time, expected) in [(0, 5120), (1600, 4320), (3200, 2560), (4800, 800), (6400, 0)] {
        tick(heap, start + time);
        model.check_totals();
        assert_eq!(heap.usage().free_resident_bytes / PAGE, expected, "after {time} ms");
    }
    runs.iter().skip(1).step_by(2).for_each(|&run| model.check_contents(run));
}

/// A huge page that becomes wholly free late goes by its own curve from then on.
#[test]
fn whole_huge_pages_and_free_runs_have_curves_of_their_own() {
    let heap = heap(64, 0);
    heap.set_decay_ms(6400);
    let mut model = Model::new(heap);
    let whole: Vec<usize> = (0..20).map(|_| model.allocate(PAGES, 1).addr().get()).collect();
    let parts: Vec<usize> = (0..40).map(|_| model.allocate(PAGES / 2, 1).addr().get()).collect();
    whole.iter().for_each(|&run| model.free(run));
    parts.iter().step_by(2).for_each(|&run| model.free(run));
    let start = 50_000;
    let resident = |time: u64| {
        tick(heap, start + time);
        heap.usage().free_resident_bytes / PAGE
    };
    let (all, part) = (20 * PAGES + 20 * PAGES / 2, 20 * PAGES / 2);
    assert_eq!(resident(0), all);
    // Half of the whole ones.
    let after_quarter = resident(1600);
    assert!((all - 10 * PAGES - PAGES..=all - 10 * PAGES).contains(&after_quarter), "{after_quarter}");
    assert_eq!(resident(3200), part, "the others only begin");
    let after_three = resident(4800);
    assert!(after_three <= part && after_three > 0, "{after_three}");
    assert_eq!(resident(6400), 0);
}

#[test]
fn one_tick_is_bounded() {
    let heap = heap(64, 0);
    let mut model = Model::new(heap);
    let runs: Vec<usize> = (0..40).map(|_| model.allocate(PAGES, 1).addr().get()).collect();
    runs.iter().for_each(|&run| model.free(run));
    heap.tick(1000);
    let mut before = heap.usage().free_resident_bytes;
    assert_eq!(before, 40 * HUGE);
    let mut ticks = 0;
    while before > 0 {
        heap.tick(1_000_000 + ticks);
        let after = heap.usage().free_resident_bytes;
        assert!(before > after && before - after <= 8 * HUGE);
        before = after;
        ticks += 1;
    }
    assert_eq!(ticks, 5);
}

#[test]
#[cfg_attr(miri, ignore = "asks the kernel about memory")]
fn whole_huge_pages_go_before_parts_and_sparse_ones_before_dense() {
    let heap = heap(64, 0);
    heap.set_decay_ms(6400);
    let mut model = Model::new(heap);
    // Three huge pages, one with a few used pages, one half full, one wholly free.
    let sparse: Vec<usize> = (0..32).map(|_| model.allocate(8, 1).addr().get()).collect();
    let dense: Vec<usize> = (0..32).map(|_| model.allocate(8, 1).addr().get()).collect();
    let whole = model.allocate(PAGES, 1).addr().get();
    for index in 1..32 {
        model.free(sparse[index]);
        if index > 16 {
            model.free(dense[index]);
        }
    }
    model.free(whole);
    heap.tick(1000);
    let parts = (31 + 15) * 8 * PAGE;
    assert_eq!(heap.usage().free_resident_bytes, HUGE + parts);
    let resident = |addr: usize| {
        let page = crate::os::mapping::page_size();
        let mut seen = 0u8;
        // SAFETY: asks about one mapped OS page.
        let asked = unsafe { libc::mincore(core::ptr::without_provenance_mut(addr), page, &raw mut seen) };
        asked == 0 && seen & 1 == 1
    };
    // An eighth of the time: a little goes, from the wholly free huge page, and all of that.
    heap.tick(1000 + 800);
    assert!(!resident(whole) && resident(sparse[5]) && resident(dense[20]));
    assert_eq!(heap.usage().free_resident_bytes, parts);
    // Some more: from the sparse one.
    heap.tick(1000 + 4400);
    assert!(resident(dense[20]) && !resident(sparse[5]));
    heap.tick(1000 + 6400);
    heap.tick(1000 + 6401);
    assert!(!resident(dense[20]) && resident(dense[3]) && resident(sparse[0]));
    model.check_totals();
}

#[test]
fn zero_and_never_intervals() {
    let heap = heap(8, 0);
    let mut model = Model::new(heap);
    heap.set_decay_ms(0);
    let run = model.allocate(100, 1).addr().get();
    model.free(run);
    assert_eq!(heap.usage().free_resident_bytes, 0, "at once");
    heap.set_decay_ms(NEVER);
    let run = model.allocate(100, 1).addr().get();
    assert_eq!(model.zeroed, 2);
    model.free(run);
    heap.tick(u64::MAX);
    assert_eq!(heap.usage().free_resident_bytes, 100 * PAGE);
    // Switched on again, what is free ages from now.
    heap.set_decay_ms(6400);
    heap.tick(1000);
    heap.tick(1000 + 6400);
    assert_eq!(heap.usage().free_resident_bytes, 0);
}

#[test]
fn purge_returns_all_that_is_free() {
    let heap = heap(8, 0);
    let mut model = Model::new(heap);
    let runs: Vec<usize> = (0..60).map(|_| model.allocate(10, 1).addr().get()).collect();
    runs.iter().step_by(2).for_each(|&run| model.free(run));
    assert_eq!(heap.purge(), 300 * PAGE);
    assert_eq!(heap.purge(), 0);
    runs.iter().skip(1).step_by(2).for_each(|&run| model.check_contents(run));
    model.allocate(10, 1);
    assert_eq!(model.zeroed, 61, "fresh runs and the returned one were zero");
}

/// What goes back is OS pages (of 8 KiB and less, 16 and 64 KiB) that are free as a whole, by decay and by
/// a purge, and they come back whole.
#[test]
fn what_goes_back_is_whole_os_pages() {
    for os_pages in [1, 2, 8] {
        let heap = heap(8, os_pages);
        heap.set_decay_ms(6400);
        let mut model = Model::new(heap);
        let run = model.allocate(PAGES, 1).addr().get();
        // Free ranges of 1 to 20 pages, with one page in use between two of them, and what they hold of whole OS pages.
        let (mut at, mut free, mut whole) = (0, 0, 0);
        for len in 1..=20 {
            model.free_part(run, at, len);
            let (from, to) = (at.next_multiple_of(os_pages), (at + len) / os_pages * os_pages);
            (free, whole) = (free + len, whole + to.saturating_sub(from));
            at += len + 1;
        }
        assert!(whole > 60 && (os_pages == 1) == (whole == free), "{whole} of {free}");
        tick(heap, 1000);
        assert_eq!(heap.usage().free_resident_bytes, free * PAGE);
        tick(heap, 1000 + 3200);
        let half = heap.usage().free_resident_bytes / PAGE;
        assert!(half < free && (free - half).is_multiple_of(os_pages), "{half} of {free}");
        tick(heap, 1000 + 6400);
        assert_eq!(heap.usage().free_resident_bytes, (free - whole) * PAGE);
        // One page brings in its OS page.
        let before = heap.usage().returned_bytes;
        let one = heap.allocate(1, 1, Kind::Dense).unwrap();
        let gone = before - heap.usage().returned_bytes;
        assert!(gone == 0 || gone == os_pages * PAGE, "{gone}");
        // SAFETY: allocated above.
        unsafe { heap.free(one.addr, 1, 0) };
        heap.purge();
        assert_eq!(heap.usage().free_resident_bytes, (free - whole) * PAGE);
    }
}

#[test]
#[cfg_attr(miri, ignore = "asks the kernel about memory")]
fn locked_memory_stays_and_is_tried_again_later() {
    let heap = heap(8, 0);
    let mut model = Model::new(heap);
    let run = model.allocate(4, 1);
    let lock = |call: unsafe extern "C" fn(*const libc::c_void, usize) -> i32| {
        // SAFETY: locking or unlocking four pages of the run changes nothing of its contents.
        assert_eq!(unsafe { call(run.as_ptr().cast(), 4 * PAGE) }, 0);
    };
    lock(libc::mlock);
    model.free(run.addr().get());
    assert_eq!(heap.purge(), 0);
    assert_eq!(heap.usage().free_resident_bytes, 4 * PAGE);
    heap.tick(1000);
    heap.tick(1_000_000);
    assert_eq!(heap.usage().free_resident_bytes, 4 * PAGE);
    lock(libc::munlock);
    heap.tick(2_000_000);
    assert_eq!(heap.usage().free_resident_bytes, 0);
    model.check_totals();
}

#[test]
fn threads_share_the_heap() {
    let heap = heap(32, 0);
    heap.set_decay_ms(200);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            scope.spawn(move || {
                let mut random = Random(thread * 77 + 1);
                let mut runs: Vec<(NonNull<u8>, usize, u64)> = Vec::new();
                for step in 0..8000u64 {
                    if runs.len() < 40 && random.below(2) == 0 {
                        let pages = 1 + random.below(40);
                        let run = heap.allocate(pages, 1, Kind::Dense).unwrap();
                        let words = words(run.addr, pages);
                        assert!(!run.zeroed || words.iter().step_by(64).all(|&word| word == 0));
                        let mark = thread << 32 | step;
                        words.iter_mut().step_by(64).for_each(|word| *word = mark);
                        runs.push((run.addr, pages, mark));
                    } else if !runs.is_empty() {
                        let (addr, pages, mark) = runs.swap_remove(random.below(runs.len()));
                        assert!(words(addr, pages).iter().step_by(64).all(|&word| word == mark));
                        words(addr, pages).fill(u64::MAX);
                        // SAFETY: this thread's run.
                        unsafe { heap.free(addr, pages, 0) };
                    }
                    match step % 64 {
                        0 => heap.tick(1000 + step),
                        1 if step % 512 == 1 => drop(heap.purge() == 0),
                        _ => {}
                    }
                }
                for (addr, pages, _) in runs {
                    // SAFETY: this thread's run.
                    unsafe { heap.free(addr, pages, 0) };
                }
            });
        }
    });
    heap.purge();
    let usage = heap.usage();
    assert_eq!((usage.used_bytes, usage.free_resident_bytes), (0, 0));
    assert_eq!(usage.returned_bytes, usage.committed);
}

/// Runs `body` in a child of fork, as a process of its own whose limits can be changed.
fn in_child(heap: &'static PageHeap, body: impl FnOnce() -> bool) {
    heap.lock_for_fork();
    crate::meta::lock_for_fork();
    let with_locks = || {
        // SAFETY: locked above, and this is the child.
        unsafe {
            crate::meta::reset_after_fork();
            heap.reset_after_fork();
        }
        body()
    };
    // SAFETY: the child calls nothing but this crate and system calls, with the locks in order.
    let child = unsafe { fork(with_locks) };
    // SAFETY: locked above, and this is the parent.
    unsafe {
        crate::meta::unlock_after_fork();
        heap.unlock_after_fork();
    }
    expect_success(child);
}

#[derive(Clone, Copy)]
enum Limit {
    AddressSpace,
    Data,
}

impl Limit {
    /// What this process has of it, in bytes: address space is the first figure of `/proc/self/statm`, data the sixth.
    /// Nothing of std's, which would allocate in a child of fork.
    fn used(self) -> u64 {
        let field = if matches!(self, Limit::AddressSpace) { 0 } else { 5 };
        let mut pages = None;
        crate::os::file::for_each_line(c"/proc/self/statm", |line| {
            let figure = core::str::from_utf8(line).ok().and_then(|line| line.split_ascii_whitespace().nth(field));
            pages = figure.and_then(|figure| figure.parse::<u64>().ok());
        });
        pages.unwrap_or(0) * crate::os::mapping::page_size() as u64
    }

    /// Sets the limit of this process, a child made for it.
    fn set(self, bytes: u64) -> bool {
        let resource = match self {
            Limit::AddressSpace => libc::RLIMIT_AS,
            Limit::Data => libc::RLIMIT_DATA,
        };
        let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limits` is a valid place for the answer.
        if unsafe { libc::getrlimit(resource, &raw mut limits) } != 0 {
            return false;
        }
        limits.rlim_cur = bytes.min(limits.rlim_max);
        // SAFETY: the child does nothing that depends on the limit but ask for memory.
        unsafe { libc::setrlimit(resource, &raw const limits) == 0 }
    }
}

#[test]
#[cfg_attr(miri, ignore = "no fork")]
fn a_child_of_fork_goes_on() {
    let heap = heap(8, 0);
    let run = heap.allocate(10, 1, Kind::Dense).unwrap();
    words(run.addr, 10).fill(5);
    in_child(heap, || {
        let other = heap.allocate(10, 1, Kind::Dense);
        // SAFETY: the child has its own copy of everything.
        unsafe { heap.free(run.addr, 10, 0) };
        heap.purge();
        heap.allocate(10, 1, Kind::Dense).is_some_and(|run| run.zeroed) && other.is_some()
    });
    assert!(words(run.addr, 10).iter().all(|&word| word == 5));
}

/// Uses up what a limit leaves, `room` above what is used, then sees `None` and recovers after a free and after the limit
/// is lifted. What is used is looked up here, in the child: in the parent other tests map and unmap meanwhile.
fn exhaust(heap: &'static PageHeap, limit: Limit, room: u64) -> bool {
    if !limit.set(limit.used() + room) {
        return false;
    }
    let mut last = None;
    let mut count = 0;
    while let Some(run) = heap.allocate(PAGES, 1, Kind::Dense) {
        words(run.addr, PAGES)[0] = 1;
        last = Some(run.addr);
        count += 1;
        if count > 1000 {
            return false;
        }
    }
    let (Some(last), true) = (last, heap.allocate(1, 1, Kind::Dense).is_none()) else {
        return false;
    };
    // SAFETY: allocated above.
    unsafe { heap.free(last, PAGES, 0) };
    if heap.allocate(PAGES, 1, Kind::Dense).is_none() || heap.allocate(1, 1, Kind::Dense).is_some() {
        return false;
    }
    let usage = heap.usage();
    let sum = usage.used_bytes + usage.free_resident_bytes + usage.returned_bytes;
    sum == usage.committed
        && count * HUGE >= 100 << 20
        && limit.set(u64::MAX)
        && heap.allocate(PAGES, 1, Kind::Dense).is_some()
}

#[test]
#[cfg_attr(miri, ignore = "no fork")]
fn a_data_limit_gives_none_and_recovers() {
    let heap = heap(512, 0);
    in_child(heap, || exhaust(heap, Limit::Data, 300 << 20));
}

/// Other tests of this process hold much address space, so a sixteenth of the limit may be more than what is left, and
/// halving has to find a size that fits.
#[test]
#[cfg_attr(miri, ignore = "no fork")]
fn a_small_address_space_shrinks_the_reservation() {
    let heap = heap(0, 0);
    in_child(heap, || exhaust(heap, Limit::AddressSpace, 300 << 20));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 6 }))]

    /// As the random operations above, for any seed, size of an OS page and interval.
    #[test]
    fn any_operations_agree_with_the_model(
        seed in 1..u64::MAX,
        os_pages in proptest::sample::select(&[0usize, 1, 2, 8]),
        interval in proptest::sample::select(&[0u64, 50, 500, 5000]),
    ) {
        run_model(os_pages, interval, seed);
    }
}

#[test]
fn returned_pages_of_a_run_stay_returned() {
    for os_pages in [1, 2] {
        let heap = heap(8, os_pages);
        let mut model = Model::new(heap);
        let run = model.allocate(16, 1).addr().get();
        let (addr, pages, _) = model.runs.remove(&run).unwrap();
        words(addr, 16).fill(0);
        // SAFETY: allocated above; pages 4 to 11 are zero, and count as if they were not resident.
        unsafe { heap.free(addr, pages, 0xff0) };
        assert_eq!(heap.usage().free_resident_bytes, 8 * PAGE);
        let again = heap.allocate(16, 1, Kind::Dense).unwrap();
        assert_eq!((again.addr, again.untouched, again.zeroed), (addr, 0xff0, false));
        assert_eq!(heap.usage().free_resident_bytes, 0);
        // SAFETY: the run was handed out above.
        unsafe { heap.free(addr, 16, 0) };
        let fresh = heap.allocate(100, 1, Kind::Dense).unwrap();
        assert_eq!(fresh.untouched, !0xffff, "the first 64 pages are told of");
    }
}

/// Spans of many blocks, most of which last, and runs of 8 to 224 aligned pages, most of which do not, under a load that
/// swings by a factor of 5.
#[test]
#[cfg_attr(miri, ignore = "too many runs")]
fn a_trace_leaves_few_huge_pages_partly_used() {
    let heap = heap(512, 0);
    heap.set_decay_ms(NEVER);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // By the time at which they end.
    let mut runs: BTreeMap<(u64, usize), (NonNull<u8>, usize)> = BTreeMap::new();
    let (mut used, mut sum, mut samples) = (0, 0.0, 0);
    for now in 0..300_000u64 {
        while let Some(entry) = runs.first_entry().filter(|entry| entry.key().0 <= now) {
            let (addr, pages) = entry.remove();
            used -= pages;
            // SAFETY: allocated below, and forgotten now.
            unsafe { heap.free(addr, pages, 0) };
        }
        let dense = random.below(8) < 4;
        let (pages, mean, kind): (usize, f64, Kind) = if dense {
            let pages = [1, 2, 4, 8, 8, 8, 8, 9, 11, 13, 15][random.below(11)];
            (pages, if random.below(4) == 0 { 20_000.0 } else { 2500.0 }, Kind::Dense)
        } else {
            let pages = [4, 5, 6, 7][random.below(4)] << (1 + random.below(5));
            (pages, if random.below(20) == 0 { 5000.0 } else { 300.0 }, Kind::Sparse)
        };
        let wave = (1.0 + 0.7 * (now as f64 / 20_000.0 * core::f64::consts::TAU).sin()) / 1.7;
        if (random.below(1000) as f64) < wave * 1000.0 {
            let align = if dense { 1 } else { pages & pages.wrapping_neg() };
            let run = heap.allocate(pages, align, kind).unwrap();
            let life = -((random.below(1 << 30) + 1) as f64 / (1u64 << 30) as f64).ln() * mean;
            used += pages;
            runs.insert((now + life as u64 + 1, run.addr.addr().get()), (run.addr, pages));
        }
        if now > 20_000 && now % 500 == 0 {
            let open = heap.usage().huge_pages * PAGES - heap.state().whole();
            sum += open as f64 / used as f64;
            samples += 1;
        }
    }
    let mean = sum / f64::from(samples);
    std::println!("{mean:.3}, {} MiB", heap.usage().huge_pages * 2);
    assert!(mean < 1.5, "{mean}");
    for (addr, pages) in runs.into_values() {
        // SAFETY: allocated above.
        unsafe { heap.free(addr, pages, 0) };
    }
}
