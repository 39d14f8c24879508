//! Promise: a linked list that belongs to a vCPU neither loses nor doubles a node, whichever threads push and pop,
//! while they are moved between CPUs. This is the free list of a pool, the use that sequences are made for.

#[path = "common/affinity.rs"]
mod affinity;
#[path = "common/disturb.rs"]
mod disturb;
#[path = "common/work.rs"]
mod work;

use affinity::{allowed_cpus, ids};
use disturb::{Hopper, fence_until};
use rseq_sys::sequence::{Outcome, Vcpu, aborts};
use rseq_sys::{IndexKind, ensure_thread, mode};
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use work::work;

const NODES: usize = 256;
/// Pops and pushes in all.
const ROUNDS: usize = 8_000_000;
const ROUNDS_PER_HOP: usize = 1000;

/// A node of a list. It stays valid for as long as any thread may read `next`: nodes are never given back.
struct Node {
    owned: AtomicBool,
    next: AtomicUsize,
}

#[repr(align(128))]
struct Head(AtomicUsize);

/// Lists of nodes, one for each vCPU, and a plain one for whoever cannot use them.
struct Pool<'a> {
    vcpu: Vcpu,
    heads: Vec<Head>,
    shared: Mutex<Vec<&'a Node>>,
}

impl<'a> Pool<'a> {
    fn new(index: IndexKind, nodes: &'a [Node]) -> Self {
        let mode = mode().expect("asked before");
        let heads = (0..ids()).map(|_| Head(AtomicUsize::new(0))).collect();
        Pool { vcpu: Vcpu::new(&mode, index), heads, shared: Mutex::new(nodes.iter().collect()) }
    }

    fn pop(&self) -> Option<&'a Node> {
        loop {
            let id = self.vcpu.id();
            let head = self.heads[id as usize].0.as_ptr();
            // SAFETY: the head is changed by sequences for this id only; it holds 0 or the address of a node, and nodes
            // outlive the pool.
            match unsafe { self.vcpu.load_store(id, head, 0, offset_of!(Node, next)) } {
                // SAFETY: an address that push stored.
                Ok(node) => return Some(unsafe { &*std::ptr::with_exposed_provenance::<Node>(node) }),
                Err(Outcome::Moved) => {}
                Err(_) => return self.shared.lock().expect("nobody panics with it").pop(),
            }
        }
    }

    fn push(&self, node: &'a Node) {
        let address = std::ptr::from_ref(node).expose_provenance();
        loop {
            let id = self.vcpu.id();
            let head = &self.heads[id as usize].0;
            // Whatever happens to the list in between, if its first node is this one at the commit, the link is right.
            let first = head.load(Ordering::Relaxed);
            node.next.store(first, Ordering::Relaxed);
            // SAFETY: the head is changed by sequences for this id only.
            match unsafe { self.vcpu.compare_store(id, head.as_ptr(), first, address) } {
                Outcome::Committed => return,
                Outcome::Moved | Outcome::Differs => {}
                Outcome::GaveUp => return self.shared.lock().expect("nobody panics with it").push(node),
            }
        }
    }

    /// How many nodes there are, with each seen once. Nobody else may use the pool.
    fn count(&self) -> usize {
        let shared = self.shared.lock().expect("nobody panics with it");
        let mut count = 0;
        let mut see = |node: &Node| {
            assert!(!node.owned.swap(true, Ordering::Relaxed), "a node is on two lists, or twice on one");
            count += 1;
        };
        shared.iter().for_each(|node| see(node));
        for head in &self.heads {
            let mut next = head.0.load(Ordering::Relaxed);
            while next != 0 {
                // SAFETY: an address that push stored.
                let node = unsafe { &*std::ptr::with_exposed_provenance::<Node>(next) };
                see(node);
                next = node.next.load(Ordering::Relaxed);
            }
        }
        count
    }
}

fn run(index: IndexKind) {
    match mode() {
        Ok(mode) if mode.has_index(index) => {}
        Ok(_) => return println!("skipped: this kernel has no {index}"),
        Err(reason) => return println!("skipped: {reason}"),
    }
    let nodes: Vec<Node> =
        (0..NODES).map(|_| Node { owned: AtomicBool::new(false), next: AtomicUsize::new(0) }).collect();
    let pool = Pool::new(index, &nodes);
    let threads = 4 * allowed_cpus().len();
    let rounds = work(ROUNDS).div_ceil(threads);
    let pops = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| fence_until(&stop));
        let worker = |thread| {
            let (pool, pops) = (&pool, &pops);
            scope.spawn(move || {
                ensure_thread().expect("every thread of this process can be registered");
                let mut hopper = Hopper::new(thread);
                let mut held = Vec::new();
                for round in 0..rounds {
                    if round.is_multiple_of(ROUNDS_PER_HOP) {
                        hopper.hop(0);
                    }
                    // Bursts of different lengths, so that lists grow and run empty.
                    if round / 7 % 2 == 0 {
                        if let Some(node) = pool.pop() {
                            assert!(!node.owned.swap(true, Ordering::Relaxed), "a node was handed out twice");
                            held.push(node);
                            pops.fetch_add(1, Ordering::Relaxed);
                        }
                    } else if let Some(node) = held.pop() {
                        node.owned.store(false, Ordering::Relaxed);
                        pool.push(node);
                    }
                }
                for node in held {
                    node.owned.store(false, Ordering::Relaxed);
                    pool.push(node);
                }
            })
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        let all_fine = workers.into_iter().map(|worker| worker.join()).all(|answer| answer.is_ok());
        stop.store(true, Ordering::Relaxed);
        assert!(all_fine);
    });
    assert_eq!(pool.count(), NODES, "nodes were lost");
    println!("{index}: {} pops in {threads} threads, {} aborts so far", pops.load(Ordering::Relaxed), aborts());
}

#[test]
fn lists_by_concurrency_id() {
    run(IndexKind::MmCid);
}

#[test]
fn lists_by_cpu() {
    run(IndexKind::CpuId);
}
