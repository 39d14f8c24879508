//! Timer signals, and the rseq sequences that run in their handler and between the operations of the threads.
//!
//! Three data structures per vCPU, all changed through [`Vcpu`] only, from handlers and from ordinary code that these
//! interrupt: a counter by `add`, a counter by `compare_store`, and a list by `compare_store` and `load_store`. At the
//! end the counters must add up to the number of commits and the lists must hold every node exactly once.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use integration::die;
use integration::disturb::{self, Timer};
use rseq_sys::sequence::{Outcome, Vcpu};

use crate::MAX_THREADS;

/// More ids than any machine of ours has.
const MAX_IDS: usize = 1024;

/// A node of the per-vCPU lists.
#[repr(C, align(64))]
struct Node {
    next: UnsafeCell<usize>,
    taken: AtomicBool,
}

/// What belongs to one vCPU id, on cache lines of its own.
#[repr(C, align(128))]
struct PerId {
    added: UnsafeCell<usize>,
    compared: UnsafeCell<usize>,
    list: UnsafeCell<usize>,
}

/// Counts of one thread, written by it and by its handler.
#[repr(align(64))]
struct PerThread {
    handled: AtomicU64,
    added: AtomicU64,
    compared: AtomicU64,
    abandoned: AtomicU64,
}

struct Tables {
    per_id: [PerId; MAX_IDS],
    per_thread: [PerThread; MAX_THREADS],
}

// SAFETY: the cells are changed by commit sequences of the vCPU they belong to, and read when all threads have ended.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables {
    per_id: [const { PerId { added: UnsafeCell::new(0), compared: UnsafeCell::new(0), list: UnsafeCell::new(0) } };
        MAX_IDS],
    per_thread: [const {
        PerThread {
            handled: AtomicU64::new(0),
            added: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
        }
    }; MAX_THREADS],
};

/// The run's sequences, for the handler; null when there are none (arenas).
static CURRENT: AtomicPtr<Sequences> = AtomicPtr::new(std::ptr::null_mut());

/// The sequences of one run.
pub(crate) struct Sequences {
    vcpu: Option<Vcpu>,
    nodes: Box<[Node]>,
    inline: AtomicUsize,
}

// SAFETY: nodes are changed by their current holder only, which `taken` proves.
unsafe impl Sync for Sequences {}

impl Sequences {
    /// Installs the signal handler and prepares the data structures for the allocator's own index.
    pub(crate) fn prepare(mode: &alloc_core::Mode, threads: usize) -> Box<Self> {
        let vcpu = mode.index().map(|index| {
            let process = rseq_sys::mode().unwrap_or_else(|reason| panic!("the allocator uses rseq, but: {reason}"));
            Vcpu::new(&process, index)
        });
        let node = || Node { next: UnsafeCell::new(0), taken: AtomicBool::new(false) };
        let sequences =
            Box::new(Self { vcpu, nodes: (0..2 * threads).map(|_| node()).collect(), inline: AtomicUsize::new(0) });
        // All nodes start in the list of id 0; before the threads run nobody else is there.
        for node in &sequences.nodes {
            let head = TABLES.per_id[0].list.get();
            // SAFETY: no other thread and no handler uses the tables yet.
            unsafe { node.next.get().write(head.read()) };
            // SAFETY: as above.
            unsafe { head.write(std::ptr::from_ref(node) as usize) };
        }
        CURRENT.store(std::ptr::from_ref(&*sequences).cast_mut(), Ordering::Release);
        disturb::install(handler);
        sequences
    }

    /// A commit from ordinary code, for the handlers to interrupt.
    pub(crate) fn count_inline(&self) {
        if let Some(vcpu) = self.vcpu {
            loop {
                let id = vcpu.id();
                let cell = &TABLES.per_id[bounded(id)];
                // SAFETY: the word belongs to this id and is changed by sequences only.
                match unsafe { vcpu.add(id, cell.added.get(), 1) } {
                    Outcome::Committed => break,
                    Outcome::Moved | Outcome::GaveUp => {}
                    Outcome::Differs => die!("stress: add compares nothing and cannot answer Differs"),
                }
            }
            self.inline.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Checks all totals after the threads have ended; the number of signals handled.
    pub(crate) fn settle(&self) -> u64 {
        CURRENT.store(std::ptr::null_mut(), Ordering::Release);
        let sum = |field: fn(&PerThread) -> &AtomicU64| -> u64 {
            TABLES.per_thread.iter().map(|thread| field(thread).load(Ordering::Relaxed)).sum()
        };
        let handled = sum(|thread| &thread.handled);
        if self.vcpu.is_none() {
            return handled;
        }
        // SAFETY: no thread is left that changes the words.
        let added: usize = TABLES.per_id.iter().map(|id| unsafe { id.added.get().read() }).sum();
        // SAFETY: as above.
        let compared: usize = TABLES.per_id.iter().map(|id| unsafe { id.compared.get().read() }).sum();
        let expected = sum(|thread| &thread.added) + self.inline.load(Ordering::Relaxed) as u64;
        assert_eq!(added as u64, expected, "the per-vCPU counters by add do not hold as much as was committed");
        assert_eq!(
            compared as u64,
            sum(|thread| &thread.compared),
            "the per-vCPU counters by compare_store do not hold as much as was committed"
        );
        let mut found = 0;
        for id in &TABLES.per_id {
            // SAFETY: as above.
            let mut node = unsafe { id.list.get().read() } as *const Node;
            while !node.is_null() {
                // SAFETY: the lists hold nodes of this run only.
                let here = unsafe { &*node };
                assert!(!here.taken.swap(true, Ordering::Relaxed), "a node is in the per-vCPU lists twice");
                found += 1;
                // SAFETY: as above.
                node = unsafe { here.next.get().read() } as *const Node;
            }
        }
        assert_eq!(found, self.nodes.len(), "nodes of the per-vCPU lists were lost");
        println!("stress: handlers and threads committed {expected} additions, {compared} compares, exact");
        handled
    }

    /// What the handler does on thread `index`.
    fn handle(&self, vcpu: Vcpu, index: usize) {
        let counts = &TABLES.per_thread[index];
        loop {
            let id = vcpu.id();
            // SAFETY: the word belongs to this id and is changed by sequences only.
            match unsafe { vcpu.add(id, TABLES.per_id[bounded(id)].added.get(), 1) } {
                Outcome::Committed => break,
                Outcome::Moved => {}
                Outcome::GaveUp => {
                    counts.abandoned.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Outcome::Differs => die!("stress: add compares nothing and cannot answer Differs"),
            }
        }
        counts.added.fetch_add(1, Ordering::Relaxed);
        for _ in 0..64 {
            let id = vcpu.id();
            let word = TABLES.per_id[bounded(id)].compared.get();
            // SAFETY: the word is valid; it may change under this read, which the comparison then sees.
            let old = unsafe { word.read_volatile() };
            // SAFETY: the word belongs to this id and is changed by sequences only.
            if unsafe { vcpu.compare_store(id, word, old, old + 1) } == Outcome::Committed {
                counts.compared.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        if let Some(node) = pop(vcpu) {
            if node.taken.swap(true, Ordering::Relaxed) {
                die!("stress: a node of the per-vCPU lists was taken twice: {:p}", node);
            }
            node.taken.store(false, Ordering::Relaxed);
            push(vcpu, node);
        }
    }
}

/// Takes a node off the list of the present vCPU; `None` if it is empty or the thread is moved too often.
fn pop(vcpu: Vcpu) -> Option<&'static Node> {
    for _ in 0..64 {
        let id = vcpu.id();
        let list = TABLES.per_id[bounded(id)].list.get();
        // SAFETY: the list belongs to this id; its nodes stay mapped for the run, and `next` is their first word.
        match unsafe { vcpu.load_store(id, list, 0, std::mem::offset_of!(Node, next)) } {
            // SAFETY: the lists hold nodes of this run only.
            Ok(node) => return Some(unsafe { &*(node as *const Node) }),
            Err(Outcome::Differs) => return None,
            Err(_) => {}
        }
    }
    None
}

/// Puts a node on the list of the present vCPU, however often the thread is moved meanwhile.
fn push(vcpu: Vcpu, node: &'static Node) {
    loop {
        let id = vcpu.id();
        let list = TABLES.per_id[bounded(id)].list.get();
        // SAFETY: the word is valid; the comparison sees a change.
        let head = unsafe { list.read_volatile() };
        // SAFETY: the node was popped by this handler and is in no list.
        unsafe { node.next.get().write(head) };
        // SAFETY: the list belongs to this id and is changed by sequences only.
        if unsafe { vcpu.compare_store(id, list, head, std::ptr::from_ref(node) as usize) } == Outcome::Committed {
            return;
        }
    }
}

fn bounded(id: u32) -> usize {
    if id as usize >= MAX_IDS {
        die!("stress: the id {id} is beyond any CPU");
    }
    id as usize
}

extern "C" fn handler(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo with the value given to timer_create.
    let index = unsafe { (*info).si_value() }.sival_ptr as usize;
    TABLES.per_thread[index].handled.fetch_add(1, Ordering::Relaxed);
    // SAFETY: null or the sequences of the run, which outlive its timers.
    if let Some(sequences) = unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
        && let Some(vcpu) = sequences.vcpu
    {
        sequences.handle(vcpu, index);
    }
}

/// The timer of thread `index`, which must be able to run sequences.
pub(crate) fn timer(index: usize, period: Duration) -> Timer {
    // A thread that nobody has registered yet registers now, not inside its first handler. In arenas there is nothing to
    // register and nothing to run.
    let _ = rseq_sys::ensure_thread();
    Timer::start(index, period)
}
