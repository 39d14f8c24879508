//! Many threads: collections, blocks freed elsewhere, threads that come and go, destructors of thread-locals.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::pattern;
use crate::random::Random;

/// Twice the CPUs, at least four: more threads than vCPUs, so that shards are shared.
fn thread_count() -> usize {
    (2 * std::thread::available_parallelism().map_or(2, usize::from)).max(4)
}

/// Fills, changes and checks the usual collections for a number of rounds; also run in forked children.
pub fn churn_collections(seed: u64, rounds: usize) {
    let mut random = Random::from_environment(seed);
    let mut map: HashMap<String, Vec<u64>> = HashMap::new();
    let mut tree: BTreeMap<u64, Box<[u8]>> = BTreeMap::new();
    for round in 0..rounds {
        let key = random.below(300);
        let entry = map.entry(format!("key {seed} {key}")).or_default();
        entry.push((seed << 32) | key as u64);
        let number = key as u64;
        tree.insert(number, vec![(number % 251) as u8; random.size(4000)].into_boxed_slice());
        if round % 3 == 0 {
            let gone = random.below(300);
            if let Some(list) = map.remove(&format!("key {seed} {gone}")) {
                assert!(list.iter().all(|value| *value == (seed << 32) | gone as u64), "a vector holds foreign values");
            }
            if let Some(bytes) = tree.remove(&(gone as u64)) {
                assert!(bytes.iter().all(|byte| *byte == (gone as u64 % 251) as u8), "a box holds foreign bytes");
            }
        }
        let mut text = String::new();
        for word in 0..random.below(20) {
            text.push_str("word ");
            text.push_str(&word.to_string());
        }
        assert!(text.is_empty() || text.starts_with("word 0"), "a string changed");
    }
    for (key, list) in map {
        let number: u64 = key.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("the key is intact");
        assert!(list.iter().all(|value| *value == (seed << 32) | number), "a vector holds foreign values");
    }
    for (number, bytes) in tree {
        assert!(bytes.iter().all(|byte| u64::from(*byte) == number % 251), "a box holds foreign bytes");
    }
}

/// Allocates, verifies and frees blocks with patterns; also run in forked children and on unregistered threads.
pub fn churn_patterned(seed: u64, rounds: usize) {
    let mut random = Random::from_environment(seed);
    let mut live: Vec<(usize, Layout, u64)> = Vec::with_capacity(256);
    let free = |(at, layout, tag): (usize, Layout, u64)| {
        let at = at as *mut u8;
        // SAFETY: a live block that was filled with this tag.
        if let Err(mismatch) = unsafe { pattern::verify(at, layout.size(), tag) } {
            panic!("block {at:p} of {layout:?} changed: {mismatch}");
        }
        // SAFETY: given up here.
        unsafe { dealloc(at, layout) };
    };
    for round in 0..rounds as u64 {
        if live.len() == 256 {
            let victim = random.below(live.len());
            free(live.swap_remove(victim));
        }
        let layout = Layout::from_size_align(random.size(16 << 10), 8).expect("a valid layout");
        // SAFETY: the size is not zero.
        let at = black_box(unsafe { if round % 4 == 0 { alloc_zeroed(layout) } else { alloc(layout) } });
        assert!(!at.is_null(), "{layout:?} is refused");
        if round % 4 == 0 {
            // SAFETY: a live block.
            assert_eq!(unsafe { pattern::first_nonzero(at, layout.size()) }, None, "{at:p} is not zero");
        }
        let tag = (seed << 40) | round;
        // SAFETY: a live block.
        unsafe { pattern::fill(at, layout.size(), tag) };
        live.push((at as usize, layout, tag));
    }
    live.into_iter().for_each(free);
}

/// Promise: collections on more threads than CPUs keep their contents.
pub(super) fn collections_survive_churn() {
    std::thread::scope(|scope| {
        for thread in 0..thread_count() as u64 {
            scope.spawn(move || churn_collections(thread, 20_000));
            scope.spawn(move || churn_patterned(100 + thread, 100_000));
        }
    });
}

/// Promise: a block may be freed by any thread, also after its allocating thread has ended.
pub(super) fn blocks_are_freed_by_other_threads() {
    let threads = thread_count();
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..threads {
        let (sender, receiver) = mpsc::sync_channel::<Vec<(u64, Box<[u64]>)>>(64);
        senders.push(sender);
        receivers.push(receiver);
    }
    let received = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(thread + 1) % threads].clone();
            let received = &received;
            scope.spawn(move || {
                let mut random = Random::from_environment(thread as u64);
                for round in 0..300_u64 {
                    let batch = (0..50)
                        .map(|_| (round, vec![round * 3 + 1; 1 + random.below(200)].into_boxed_slice()))
                        .collect::<Vec<_>>();
                    let _ = next.try_send(batch);
                    for (round, block) in receiver.try_iter().flatten() {
                        assert!(block.iter().all(|word| *word == round * 3 + 1), "a block changed on its way");
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(received.load(Ordering::Relaxed) > 0, "no block went to another thread");
}

/// Promise: threads may come and go by the thousand; what they leave behind is freed elsewhere and nothing is lost.
pub(super) fn short_lived_threads_leave_blocks_behind() {
    const BATCHES: u64 = 100;
    let mut baseline = 0;
    for batch in 0..BATCHES {
        let handles: Vec<_> = (0..20_u64)
            .map(|thread| {
                std::thread::Builder::new()
                    .stack_size(64 << 10)
                    .spawn(move || {
                        let mut random = Random::from_environment(batch * 20 + thread);
                        let mut blocks: Vec<Vec<u64>> =
                            (0..60).map(|_| vec![batch ^ thread; 1 + random.below(300)]).collect();
                        blocks.truncate(30);
                        blocks
                    })
                    .expect("a thread")
            })
            .collect();
        for (thread, handle) in handles.into_iter().enumerate() {
            let blocks = handle.join().expect("the thread did not panic");
            let value = batch ^ thread as u64;
            assert!(blocks.iter().flatten().all(|word| *word == value), "a block of an ended thread changed");
        }
        let allocated = alloc_core::stats().allocated;
        if batch == 10 {
            baseline = allocated;
        }
        // Nothing stays allocated but what the C library and std keep; 2000 threads must not add up.
        assert!(
            batch <= 10 || allocated <= baseline + (256 << 10),
            "allocated grew from {baseline} to {allocated} bytes over {batch} batches of threads"
        );
    }
}

static DESTROYED: AtomicUsize = AtomicUsize::new(0);
static KEY_ROUNDS: AtomicUsize = AtomicUsize::new(0);

/// Allocates while it is dropped with its thread.
struct Restless(Vec<Box<[u8]>>);

impl Drop for Restless {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.0);
        churn_patterned(7, 500);
        assert!(before.iter().flatten().all(|byte| *byte == 0x5c), "a block changed before its thread's end");
        let text: String = (0..100).map(|number| number.to_string()).collect();
        black_box(text);
        drop(before);
        DESTROYED.fetch_add(1, Ordering::Relaxed);
    }
}

thread_local! {
    static RESTLESS: RefCell<Option<Restless>> = const { RefCell::new(None) };
}

static mut KEY: libc::pthread_key_t = 0;

/// A destructor that sets its key again, so that the C library calls it once more, after the destructors of
/// everybody else ([pthread_key_create(3)](https://man7.org/linux/man-pages/man3/pthread_key_create.3p.html)): by
/// then an allocator that keeps thread state has lost it.
unsafe extern "C" fn key_destructor(value: *mut libc::c_void) {
    // SAFETY: the value is a box of ours.
    let round = *unsafe { Box::from_raw(value.cast::<usize>()) };
    churn_patterned(8, 500);
    KEY_ROUNDS.fetch_add(1, Ordering::Relaxed);
    if round < 3 {
        let next = Box::into_raw(Box::new(round + 1));
        // SAFETY: the key was created before any thread that has this destructor.
        unsafe { libc::pthread_setspecific(KEY, next.cast()) };
    }
}

/// Promise: destructors of thread-locals allocate and free, in every round that the C library grants them.
pub(super) fn tls_destructors_allocate() {
    const THREADS: usize = 40;
    // SAFETY: the key is written before any thread reads it.
    let created = unsafe { libc::pthread_key_create(&raw mut KEY, Some(key_destructor)) };
    assert_eq!(created, 0, "a key");
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let blocks = (1..50).map(|size| vec![0x5c; size * 13].into_boxed_slice()).collect();
                RESTLESS.with_borrow_mut(|slot| *slot = Some(Restless(blocks)));
                let first = Box::into_raw(Box::new(0_usize));
                // SAFETY: the key exists.
                unsafe { libc::pthread_setspecific(KEY, first.cast()) };
            });
        }
    });
    // A scope waits for the closures only, not for the destructors after them.
    for _ in 0..2000 {
        if DESTROYED.load(Ordering::Relaxed) == THREADS && KEY_ROUNDS.load(Ordering::Relaxed) == 4 * THREADS {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!(
        "of {THREADS} threads {} destructors and {} of {} key rounds ran",
        DESTROYED.load(Ordering::Relaxed),
        KEY_ROUNDS.load(Ordering::Relaxed),
        4 * THREADS
    );
}
