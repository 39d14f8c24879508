//! Promises held here, with a clock and a size of OS pages that the tests choose: pages inside spans go back along the
//! curve; a page that is used from time to time does not; what is used keeps its contents; a tick is bounded; locked
//! memory stays; the sums are right at any time.
//!
//! Each test has classes of its own, with real memory.

extern crate std;

use std::boxed::Box;
use std::vec::Vec;

use super::*;
use crate::central::{map, new_span};
use crate::random::Random;
use crate::size_class::{bin, class_of_bin};
use crossbeam_utils::CachePadded;

/// One class, its blocks in use, and the sweep over it.
struct Bench {
    classes: Box<Classes>,
    sweep: Sweep,
    class: usize,
    os_shift: u32,
    used: Vec<usize>,
    random: Random,
}

impl Bench {
    fn new(size: usize, os_shift: u32, interval: u64) -> Self {
        let class = class_of_bin(bin(size - 1).unwrap());
        let classes: Vec<_> = (0..CLASSES).map(|_| CachePadded::new(Locked::new(Central::new()))).collect();
        let mut bench = Self {
            classes: classes.try_into().ok().unwrap(),
            sweep: Sweep::new(),
            class,
            os_shift,
            used: Vec::new(),
            random: Random(0x2545_f491_4f6c_dd1d ^ size as u64),
        };
        bench.classes[class].lock().os_shift = os_shift;
        bench.sweep.decay.set_interval_ms(interval);
        bench
    }

    fn of(&self) -> &'static Class {
        class(self.class)
    }

    /// Takes `n` blocks and fills them with their addresses.
    fn take(&mut self, n: usize) {
        let target = self.used.len() + n;
        while self.used.len() < target {
            let (of, used) = (self.of(), &mut self.used);
            let mut central = self.classes[self.class].lock();
            if central.take(of, target - used.len(), |block| used.push(block)) == 0 {
                let span = new_span(0, self.class, of, central.os_shift()).unwrap();
                central.add(of, span);
            }
        }
        let words = self.of().size as usize / 8;
        for &block in &self.used[target - n..] {
            // SAFETY: the block is this test's.
            unsafe { core::slice::from_raw_parts_mut(with_exposed_provenance_mut::<usize>(block), words) }.fill(block);
        }
    }

    /// Frees the block at a place in `used`, whose contents must be as they were.
    fn free(&mut self, at: usize) {
        let block = self.used.swap_remove(at);
        let words = self.of().size as usize / 8;
        // SAFETY: the block is this test's.
        let contents = unsafe { core::slice::from_raw_parts(with_exposed_provenance_mut::<usize>(block), words) };
        assert!(contents.iter().all(|&word| word == block), "contents of a block in use changed");
        let (_, owner) = map::lookup(block);
        let of = self.of();
        let mut central = self.classes[self.class].lock();
        let retired = central.put(of, NonNull::new(owner.cast()).unwrap(), block).ok().unwrap();
        drop(central);
        if let Some(span) = retired {
            retire(of, self.os_shift, span);
        }
    }

    /// Frees random blocks until `rest` are left.
    fn free_down_to(&mut self, rest: usize) {
        while self.used.len() > rest {
            let at = self.random.below(self.used.len());
            self.free(at);
        }
    }

    /// OS pages that are with the OS.
    fn returned(&self) -> usize {
        self.classes[self.class].lock().returned >> self.os_shift
    }

    /// OS pages that no used block overlaps, counted block by block; and the sums compared with what is counted.
    fn count(&self) -> usize {
        let of = self.of();
        let os = 1usize << self.os_shift;
        let mut spans: Vec<usize> = self.used.iter().map(|&block| map::lookup(block).1.addr()).collect();
        spans.sort_unstable();
        spans.dedup();
        let mut pages: std::collections::BTreeSet<usize> = std::collections::BTreeSet::new();
        for &span in &spans {
            // SAFETY: the map names valid spans.
            let base = unsafe { (*with_exposed_provenance_mut::<Span>(span)).base };
            let end = base + Span::bytes(of);
            pages.extend((base.next_multiple_of(os)..end).step_by(os).filter(|page| page + os <= end));
        }
        for &block in &self.used {
            let first = block & !(os - 1);
            (first..block + of.size as usize).step_by(os).for_each(|page| {
                pages.remove(&page);
            });
        }
        let mut usage = super::super::Usage::default();
        let central = self.classes[self.class].lock();
        central.add_usage(of, &mut usage);
        assert_eq!(usage.out, self.used.len() * of.size as usize);
        assert_eq!(usage.out + usage.cached + usage.returned + usage.behind, central.count * Span::bytes(of));
        pages.len()
    }

    /// Ticks until the sweep that is due at `now` is complete.
    fn run_to(&mut self, now: u64) {
        let classes: &Classes = &self.classes;
        self.sweep.changed = [u64::MAX; CLASSES.div_ceil(64)];
        let mut due = self.sweep.tick(now, classes);
        let mut ticks = 0;
        while due == now + 1 {
            due = self.sweep.tick(now, classes);
            ticks += 1;
            assert!(ticks < 10_000, "a sweep ends");
        }
    }

    /// Runs every sweep from `from` to `to`.
    fn run(&mut self, from: u64, to: u64) {
        let period = self.sweep.period();
        let mut now = from;
        while now < to {
            self.run_to(now);
            now += period;
        }
        self.run_to(to);
    }
}

/// Blocks below, of, and above the size of an OS page, some of which divide it; and every size of OS page.
const CASES: [(usize, u32); 9] =
    [(16, 12), (64, 12), (400, 12), (1024, 12), (5120, 12), (14336, 12), (400, 13), (1024, 14), (5120, 16)];

#[test]
#[cfg_attr(miri, ignore = "too many blocks")]
fn pages_inside_spans_follow_the_curve() {
    for (size, os_shift) in CASES {
        let mut bench = Bench::new(size, os_shift, 6400);
        // Few spans hold a whole OS page of 64 KiB.
        let blocks = if os_shift == 16 { 96 << 20 } else { 24 << 20 } / size;
        bench.take(blocks);
        // A tenth of the OS pages at least is wholly free with so many blocks in use.
        let rest = match size {
            16 => blocks / 300,
            64 => blocks / 40,
            5120 if os_shift == 16 => blocks / 8,
            _ => blocks / 20,
        };
        bench.free_down_to(rest);
        let start = 1000;
        // The first look, from which on they age.
        bench.run_to(start);
        let untouched = bench.returned();
        let all = bench.count() - untouched;
        let found = bench.sweep.known;
        assert!(found >= all && all > 30, "{size} {os_shift}: {found} {all}");
        for (quarter, expected) in [(1, 0.156), (2, 0.5), (3, 0.844), (4, 1.0)] {
            bench.run(start + (quarter - 1) * 1600 + 200, start + quarter * 1600);
            bench.count();
            let part = (bench.returned() - untouched) as f64 / found as f64;
            assert!(
                (part - expected).abs() < 0.02 + 1.0 / found as f64,
                "{size} {os_shift}: {part} at {quarter}/4, not {expected}"
            );
        }
        assert_eq!(bench.sweep.known, 0);
        // In whole spans, too: one of them is kept.
        assert!(bench.returned() >= bench.count());
        bench.take(blocks - rest);
        bench.count();
        assert!(bench.returned() << os_shift < 1 << 18, "{} bytes returned", bench.returned() << os_shift);
        bench.free_down_to(0);
    }
}

#[test]
#[cfg_attr(miri, ignore = "asks the kernel about memory")]
fn what_went_is_not_resident_and_the_rest_is() {
    for (size, os_shift) in [(256, 12), (3072, 12), (640, 14), (5120, 16)] {
        let mut bench = Bench::new(size, os_shift, 6400);
        bench.take((8 << 20) / size);
        bench.free_down_to((8 << 20) / size / 12);
        let resident = |bench: &Bench| {
            let mut spans: Vec<usize> = bench.used.iter().map(|&block| map::lookup(block).1.addr()).collect();
            spans.sort_unstable();
            spans.dedup();
            let mut bytes = 0;
            for span in spans {
                let mut seen = [0u8; 64];
                let len = Span::bytes(bench.of());
                // SAFETY: the map names valid spans, and the pages of a span are mapped.
                let asked = unsafe {
                    let base = (*with_exposed_provenance_mut::<Span>(span)).base;
                    libc::mincore(with_exposed_provenance_mut(base), len, seen.as_mut_ptr())
                };
                assert_eq!(asked, 0);
                bytes += seen.iter().filter(|&&byte| byte & 1 == 1).count() * mapping::page_size();
            }
            bytes
        };
        let before = resident(&bench);
        let in_use = bench.count();
        let went = bench.sweep.return_all(&bench.classes);
        // One wholly free span is not in the map by a block of its own.
        let rest = Span::bytes(bench.of());
        assert!(bench.returned() >= in_use && went <= (in_use << os_shift) + rest, "{went} of {in_use}");
        // The last span has pages that were never touched.
        let gone = before - resident(&bench);
        assert!(gone <= in_use << os_shift && gone + rest >= in_use << os_shift, "{gone} of {in_use}");
        assert_eq!(bench.sweep.return_all(&bench.classes), 0);
        bench.free_down_to(0);
    }
}

#[test]
fn a_page_that_is_used_now_and_then_stays() {
    let mut bench = Bench::new(1024, 12, 6400);
    bench.take(64);
    // The second OS page is freed and taken again between any two sweeps, for longer than the interval; the third stays
    // free.
    let base = bench.used.iter().copied().min().unwrap();
    let page = |block: usize| (block - base) >> 12;
    let free = |bench: &mut Bench, number: usize| {
        while let Some(at) = bench.used.iter().position(|&block| page(block) == number) {
            bench.free(at);
        }
    };
    free(&mut bench, 2);
    free(&mut bench, 1);
    let mut now = 1000;
    for _ in 0..40 {
        bench.run_to(now);
        // In the order of addresses, so page 1.
        bench.take(4);
        assert!(bench.used.iter().filter(|&&block| page(block) == 1).count() == 4);
        free(&mut bench, 1);
        now += 200;
    }
    assert_eq!(bench.returned(), 1);
    // From now on it is left alone.
    bench.run(now, now + 6400 + 400);
    assert_eq!(bench.returned(), 2);
    bench.count();
    bench.free_down_to(0);
}

#[test]
#[cfg_attr(miri, ignore = "too many blocks")]
fn one_tick_is_bounded() {
    let mut bench = Bench::new(1024, 12, 0);
    bench.take(64 << 10);
    // Every second OS page, a system call each.
    let pages: Vec<bool> = bench.used.iter().map(|block| block >> 12 & 1 == 1).collect();
    for at in (0..pages.len()).rev() {
        if pages[at] {
            bench.free(at);
        }
    }
    let mut ticks = 0;
    let mut before = 0;
    bench.sweep.changed = [u64::MAX; CLASSES.div_ceil(64)];
    while bench.sweep.tick(1000, &bench.classes) != 0 {
        let after = bench.returned();
        assert!(after - before <= TICK_CALLS + 64, "{} pages at once", after - before);
        before = after;
        ticks += 1;
        assert!(ticks < 1000);
    }
    assert_eq!(bench.returned(), 8 << 10);
    assert!((8 << 10) / (TICK_CALLS + 64) <= ticks, "{ticks}");
    bench.count();
    bench.free_down_to(0);
}

#[test]
#[cfg_attr(miri, ignore = "asks the kernel about memory")]
fn locked_memory_stays_and_is_tried_again() {
    let mut bench = Bench::new(2048, 12, 0);
    bench.take(32);
    let base = bench.used.iter().copied().min().unwrap();
    let lock = |call: unsafe extern "C" fn(*const libc::c_void, usize) -> i32| {
        // SAFETY: locking or unlocking pages of the span changes nothing of its contents.
        assert_eq!(unsafe { call(with_exposed_provenance_mut::<libc::c_void>(base), 64 << 10) }, 0);
    };
    lock(libc::mlock);
    for offset in [0, 2048, 8192, 8192 + 2048] {
        let at = bench.used.iter().position(|&block| block == base + offset).unwrap();
        bench.free(at);
    }
    bench.run_to(1000);
    assert_eq!((bench.returned(), bench.sweep.return_all(&bench.classes)), (0, 0));
    bench.count();
    // All of it can be taken.
    bench.take(4);
    assert_eq!(bench.used.iter().copied().max().unwrap() - base, 31 * 2048);
    for offset in [0, 2048, 8192, 8192 + 2048] {
        let at = bench.used.iter().position(|&block| block == base + offset).unwrap();
        bench.free(at);
    }
    lock(libc::munlock);
    bench.run_to(2000);
    assert_eq!(bench.returned(), 2);
    bench.free_down_to(0);
}

/// Threads that take, fill, check and free while sweeps go on: no block changes, none is handed out twice.
#[test]
fn blocks_keep_their_contents_beside_sweeps() {
    const WORKERS: u64 = 3;
    let rounds = if cfg!(miri) { 3 } else { 400 };
    for (size, os_shift) in [(64, 12), (1536, 12), (1024, 14)] {
        let bench = Bench::new(size, os_shift, 0);
        let (class, of) = (bench.class, bench.of());
        let classes = &*Box::leak(bench.classes);
        let put = |block: usize| {
            // SAFETY: the block is the thread's.
            let contents = unsafe {
                core::slice::from_raw_parts(with_exposed_provenance_mut::<usize>(block), of.size as usize / 8)
            };
            assert!(contents.iter().all(|&word| word == block));
            let mut central = classes[class].lock();
            let put = central.put(of, NonNull::new(map::lookup(block).1.cast()).unwrap(), block);
            drop(central);
            if let Some(span) = put.ok().expect("in use") {
                retire(of, os_shift, span);
            }
        };
        let running = core::sync::atomic::AtomicBool::new(true);
        let gone = core::sync::atomic::AtomicUsize::new(0);
        let (running, gone) = (&running, &gone);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut random = Random(thread * 7919 + 1);
                        let mut used: Vec<usize> = Vec::new();
                        // Until something was returned, however late the sweeper comes.
                        for round in 0..rounds * 100 {
                            if round >= rounds && (cfg!(miri) || gone.load(Ordering::Relaxed) > 0) {
                                break;
                            }
                            let n = 1 + random.below(200);
                            let from = used.len();
                            while used.len() < from + n {
                                let mut central = classes[class].lock();
                                let wanted = from + n - used.len();
                                if central.take(of, wanted, |block| used.push(block)) == 0 {
                                    drop(central);
                                    let span = new_span(0, class, of, os_shift).unwrap();
                                    classes[class].lock().add(of, span);
                                }
                            }
                            for &block in &used[from..] {
                                let start = with_exposed_provenance_mut::<usize>(block);
                                // SAFETY: the block is this thread's.
                                unsafe { core::slice::from_raw_parts_mut(start, of.size as usize / 8) }.fill(block);
                            }
                            let keep = random.below(3000);
                            while used.len() > keep {
                                put(used.swap_remove(random.below(used.len())));
                            }
                        }
                        used.into_iter().for_each(put);
                    })
                })
                .collect();
            let mut sweep = bench.sweep;
            let sweeper = scope.spawn(move || {
                let mut now = 1000;
                while running.load(Ordering::Relaxed) {
                    gone.fetch_add(sweep.return_all(classes), Ordering::Relaxed);
                    sweep.changed = [u64::MAX; CLASSES.div_ceil(64)];
                    sweep.tick(now, classes);
                    now += 1;
                    gone.fetch_add(sweep.bytes, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            running.store(false, Ordering::Relaxed);
            sweeper.join().unwrap();
        });
        assert!(cfg!(miri) || gone.load(Ordering::Relaxed) > 0, "nothing was returned meanwhile");
        let central = classes[class].lock();
        assert_eq!(central.out, 0);
        // Workers that found nothing at the same time have each added a span, and blocks that others freed meanwhile may
        // have served them all.
        let spans = (central.count, central.idle);
        assert!(spans.0 <= WORKERS as usize && spans.1 == spans.0, "{spans:?}");
    }
}

#[test]
fn a_span_without_blocks_hands_its_returned_pages_over() {
    let mut bench = Bench::new(1024, 12, 6400);
    bench.take(128);
    // Two spans, of the first of which all but the first page goes; then it becomes free, after the second.
    let first = bench.used.iter().copied().min().unwrap();
    let mut at = 0;
    while at < bench.used.len() {
        if bench.used[at] == first { at += 1 } else { bench.free(at) }
    }
    assert_eq!(bench.classes[bench.class].lock().count, 2, "one wholly free span is kept");
    bench.sweep.return_all(&bench.classes);
    assert_eq!(bench.returned(), 15 + 16);
    let span = map::lookup(first).1.cast::<Span>();
    // SAFETY: the map names valid spans.
    let (whole, partly) = unsafe { (*span).returned_pages(bench.of(), 12) };
    assert_eq!((whole, partly), (0b1111_1110, 1), "of the first page the second half");
    bench.free(0);
    let central = bench.classes[bench.class].lock();
    assert_eq!((central.count, central.returned >> 12, central.idle), (1, 16, 1), "its sums went with it");
}
