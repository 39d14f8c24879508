//! Promise: data that belongs to vCPUs comes out exact however sequences are cut: threads are moved between CPUs in the
//! middle of sections, a timer at 10 kHz interrupts each of them, its handler runs sequences on the very same data, and
//! fences abort what is left. 10^9 increments of counters, and lists and stacks that neither lose nor double an object.
//!
//! Not shown here: that each single instruction of a section is covered. `every_instruction` does that.

#[path = "common/affinity.rs"]
mod affinity;
#[path = "attack/data.rs"]
mod data;
#[path = "common/disturb.rs"]
mod disturb;
#[path = "attack/storm.rs"]
mod storm;
#[path = "common/work.rs"]
mod work;

use affinity::{allowed_cpus, ids};
use data::{Counters, Lists, Objects, StackPool, Table};
use rseq_sys::sequence::Vcpu;
use rseq_sys::{IndexKind, mode};
use std::sync::{Mutex, PoisonError};
use storm::attack;
use work::work;

/// Increments of the counters: half by each index.
const INCREMENTS: usize = 1_000_000_000;
/// Pops and pushes of each of the other tests.
const MOVES: usize = 100_000_000;
/// Objects for each thread of an attack.
const OBJECTS: usize = 24;

/// Runs `test` with the vCPUs by `index`, one attack at a time: aborts are counted for the process.
fn one_by_one(index: IndexKind, test: impl FnOnce(Vcpu)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match mode() {
        Ok(mode) if mode.has_index(index) => test(Vcpu::new(&mode, index)),
        Ok(_) => println!("skipped: this kernel has no {index}"),
        Err(reason) => println!("skipped: {reason}"),
    }
}

fn counters(index: IndexKind) {
    one_by_one(index, |vcpu| {
        let counters = Counters::new(vcpu, ids());
        let harvest = attack(&format!("counters by {index}"), &counters, work(INCREMENTS / 2));
        // A handler's pocket says how often it counted.
        let expected = harvest.steps + harvest.pockets.iter().sum::<usize>();
        assert_eq!(counters.sum(), expected, "increments were lost or made twice");
        harvest.was_attacked();
    });
}

fn lists(index: IndexKind) {
    one_by_one(index, |vcpu| {
        let objects = Objects::new(OBJECTS * (2 * allowed_cpus().len() + 2));
        let lists = Lists::new(vcpu, ids(), &objects);
        let harvest = attack(&format!("lists by {index}"), &lists, work(MOVES));
        objects.are_held(&harvest);
        lists.drain();
        objects.all_are_here();
        harvest.was_attacked();
    });
}

fn stacks(index: IndexKind, table: Table) {
    one_by_one(index, |vcpu| {
        let objects = Objects::new(OBJECTS * (2 * allowed_cpus().len() + 2));
        let stacks = StackPool::new(table, vcpu, ids(), &objects);
        let harvest = attack(&format!("stacks by {index}"), &stacks, work(MOVES));
        objects.are_held(&harvest);
        stacks.drain();
        objects.all_are_here();
        harvest.was_attacked();
    });
}

#[test]
fn counters_by_concurrency_id() {
    counters(IndexKind::MmCid);
}

#[test]
fn counters_by_cpu() {
    counters(IndexKind::CpuId);
}

#[test]
fn lists_by_concurrency_id() {
    lists(IndexKind::MmCid);
}

#[test]
fn lists_by_cpu() {
    lists(IndexKind::CpuId);
}

/// Tables for the stacks; each can be opened once.
mod tables {
    pub(crate) mod by_concurrency_id {
        use crate::data::{SHIFT, STACK};
        use rseq_sys::sequence::Stacks;
        pub(crate) static TABLE: Stacks<SHIFT, STACK> = Stacks::new();
        rseq_sys::stack_functions!(TABLE, SHIFT, STACK);
    }
    pub(crate) mod by_cpu {
        use crate::data::{SHIFT, STACK};
        use rseq_sys::sequence::Stacks;
        pub(crate) static TABLE: Stacks<SHIFT, STACK> = Stacks::new();
        rseq_sys::stack_functions!(TABLE, SHIFT, STACK);
    }
}

#[test]
fn stacks_by_concurrency_id() {
    use tables::by_concurrency_id::{TABLE, pop, push};
    stacks(IndexKind::MmCid, Table { stacks: &TABLE, pop, push });
}

#[test]
fn stacks_by_cpu() {
    use tables::by_cpu::{TABLE, pop, push};
    stacks(IndexKind::CpuId, Table { stacks: &TABLE, pop, push });
}
