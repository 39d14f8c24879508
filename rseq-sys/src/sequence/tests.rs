//! Promises held here: each sequence does what its contract says on a thread that stays where it is, in assembly and
//! in the portable stand-in alike. Concurrency is tested in the crate's integration tests.

use super::*;
use crate::{possible_ids, registration};
extern crate std;

const SHIFT: u32 = 12;
/// Bytes of a stack: a sentinel and four slots, after three words that are not used.
const STACK: usize = 64;
const SLOTS: usize = 4;
/// Headers are at this displacement.
const AT: usize = 16;

#[repr(align(64))]
struct Stack([usize; STACK / size_of::<usize>()]);

impl Stack {
    const FIRST: usize = STACK / size_of::<usize>() - SLOTS;

    fn empty() -> Self {
        let mut words = [7; STACK / size_of::<usize>()];
        words[Self::FIRST - 1] = 0;
        Self(words)
    }

    fn top(&mut self) -> usize {
        self.0[Self::FIRST..].as_mut_ptr().expose_provenance()
    }
}

/// A table with one stack of four slots for each id.
struct Fixture {
    table: Stacks<SHIFT, STACK>,
    vcpu: Option<Vcpu>,
    /// Two places before that of the id 0, and one for each id.
    shards: std::vec::Vec<[usize; 1 << SHIFT >> 3]>,
    stacks: std::vec::Vec<Stack>,
}

impl Fixture {
    fn new() -> Self {
        let vcpu = registration::mode().ok().map(|mode| Vcpu::new(&mode, mode.default_index()));
        let ids = possible_ids().unwrap();
        let shards = std::vec![[0; 1 << SHIFT >> 3]; ids + 2];
        let stacks = core::iter::repeat_with(Stack::empty).take(ids).collect();
        Self { table: Stacks::new(), vcpu, shards, stacks }
    }

    /// Opens the table, without stacks.
    fn open(&mut self) {
        let base = self.shards[2..].as_mut_ptr().cast();
        if let Some(vcpu) = self.vcpu {
            _ = crate::membarrier::register();
            // SAFETY: the table is new; the shards live as long as it, and are zero.
            assert!(unsafe { self.table.open(vcpu, base) });
        } else {
            self.table.base.store(base, Ordering::Relaxed);
        }
    }

    /// Gives every id its stack.
    fn fill(&mut self) {
        for (shard, stack) in self.shards[2..].iter_mut().zip(&mut self.stacks) {
            // The assembly reads it.
            // SAFETY: a word of the shard.
            unsafe { core::ptr::from_mut(&mut shard[AT >> 3]).write_volatile(stack.top()) };
        }
    }
}

/// Keeps the calling thread on one CPU, so that the id does not change during a test.
fn stay() {
    // SAFETY: plain system calls on a local set.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

type Pop = unsafe fn(*const usize, usize) -> *mut u8;
type Push = unsafe fn(*const usize, usize, usize) -> bool;

fn again<T: PartialEq>(nothing: T, mut attempt: impl FnMut() -> T) -> T {
    (0..100).map(|_| attempt()).find(|result| *result != nothing).unwrap_or(nothing)
}

fn stack_contract(pop: Pop, push: Push) {
    stay();
    let mut f = Fixture::new();
    let g: *const usize = core::ptr::from_ref(&f.table).cast();
    // SAFETY: the table and its stacks live to the end of this function; AT is the displacement of the headers.
    unsafe {
        assert!(pop(g, AT).is_null() && !push(g, AT, 100), "closed");
        f.open();
        assert!(pop(g, AT).is_null() && !push(g, AT, 100), "no stack");
        f.fill();
        assert!(pop(g, AT).is_null(), "empty");
        for p in [100, 200, 300, 400] {
            assert!(again(false, || push(g, AT, p)));
        }
        assert!(!push(g, AT, 500), "full");
        assert_eq!(again(0, || pop(g, AT).addr()), 400);
        assert!(!push(g, AT, 300), "twice in a row");
        for p in [300, 200, 100] {
            assert_eq!(again(0, || pop(g, AT).addr()), p);
        }
        assert!(pop(g, AT).is_null(), "empty");
    }
    let untouched = |stack: &Stack| stack.0[..Stack::FIRST - 1].iter().all(|&word| word == 7);
    assert!(f.stacks.iter().all(|stack| stack.0[Stack::FIRST - 1] == 0 && untouched(stack)), "the sentinels stand");
}

#[test]
fn a_closed_table_sends_all_away() {
    stay();
    let mut f = Fixture::new();
    let libc = registration::mode().is_ok_and(|mode| mode.registrar == crate::Registrar::Libc);
    if !libc || registration::ensure_thread().is_err() {
        return;
    }
    f.open();
    f.fill();
    // SAFETY: as in `stack_contract`.
    unsafe {
        assert!(again(false, || f.table.push(AT, 100)));
        f.table.close();
        assert!(f.table.pop(AT).is_null() && !f.table.push(AT, 200));
    }
}

#[test]
fn stacks_in_assembly() {
    if registration::ensure_thread().is_ok() {
        stack_contract(imp::pop::<SHIFT>, imp::push::<SHIFT, STACK>);
    }
}

#[test]
fn stacks_portable() {
    stack_contract(portable::pop::<SHIFT>, portable::push::<SHIFT, STACK>);
}

/// What a chain consists of: a header and its stacks, of which the first `used` are in it.
struct Chain {
    stacks: std::vec::Vec<Stack>,
    used: usize,
}

/// The sequences of a chain, in one of their forms, on the header of the calling thread.
trait Chained {
    fn header(&self) -> *mut usize;
    fn pop(&self) -> Option<usize>;
    fn push(&self, p: usize) -> bool;
    /// [`Vcpu::extend`] or [`Vcpu::exchange`].
    fn replace(&self, expect: usize, new: usize, extend: bool) -> bool;
}

/// Any operations on a chain that grows to four stacks agree with a vector.
fn chain_contract(on: &impl Chained) {
    let mut random = 1u32;
    let mut below = |n: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % n
    };
    let mut chain = Chain { stacks: core::iter::repeat_with(Stack::empty).take(5).collect(), used: 1 };
    for stack in &mut chain.stacks {
        stack.0[..3].copy_from_slice(&[7, 0, 0]);
    }
    // SAFETY: headers and stacks live to the end, and only this thread uses them.
    unsafe {
        assert!(on.pop().is_none() && !on.push(100), "no chain");
        on.header().write_volatile(chain.stacks[0].top());
        let mut model = std::vec::Vec::new();
        // Long runs in either direction, so that every stack is filled and emptied again and again.
        for step in 0..2000 {
            let (pushes, length) = (below(2) == 0, below(12));
            for p in (0..length).map(|i| 1000 * (step + 1) + i as usize) {
                if !pushes {
                    assert_eq!(on.pop(), model.pop());
                } else if on.push(p) {
                    model.push(p);
                } else if chain.used < 4 {
                    assert_eq!(model.len(), chain.used * SLOTS);
                    // Full: the next one in front.
                    let (top, new) = (on.header().read_volatile(), chain.stacks[chain.used].top());
                    assert!(!on.replace(top + 8, new, true), "another top");
                    assert!(on.replace(top, new, true));
                    chain.used += 1;
                    assert!(on.push(p));
                    model.push(p);
                } else {
                    assert_eq!(model.len(), chain.used * SLOTS);
                }
            }
            if let Some(&p) = model.last()
                && model.len() % SLOTS != 0
            {
                assert!(!on.push(p), "twice in a row");
            }
        }
        while let Some(p) = model.pop() {
            assert_eq!(on.pop(), Some(p));
        }
        assert!(on.pop().is_none(), "all are empty");
        // Another one in the place of the last, with a pointer in it; the three above stay.
        let fresh = chain.stacks[4].top();
        core::ptr::with_exposed_provenance_mut::<usize>(fresh).write_volatile(5);
        let top = on.header().read_volatile();
        assert!(on.replace(top, fresh + 8, false));
        assert_eq!((on.pop(), on.pop()), (Some(5), None));
        for p in 0..4 * SLOTS {
            assert!(on.push(p + 1));
        }
        assert!(!on.push(1000), "all are full");
        for p in (0..4 * SLOTS).rev() {
            assert_eq!(on.pop(), Some(p + 1));
        }
    }
    for stack in &chain.stacks {
        assert_eq!((stack.0[0], stack.0[Stack::FIRST - 1]), (7, 0), "the owner's word and the sentinel stand");
    }
}

struct InAssembly {
    fixture: Fixture,
    vcpu: Vcpu,
    id: u32,
}

impl Chained for InAssembly {
    fn header(&self) -> *mut usize {
        core::ptr::from_ref(&self.fixture.shards[2 + self.id as usize][AT >> 3]).cast_mut()
    }
    fn pop(&self) -> Option<usize> {
        // SAFETY: as in `chain_contract`.
        unsafe { self.fixture.table.pop_chained(AT) }.ok().map(|p| p.addr())
    }
    fn push(&self, p: usize) -> bool {
        // SAFETY: as in `chain_contract`.
        unsafe { self.fixture.table.push_chained(AT, p) }.committed()
    }
    fn replace(&self, expect: usize, new: usize, extend: bool) -> bool {
        let (id, header) = (self.id, self.header());
        // SAFETY: as in `chain_contract`.
        unsafe {
            let other = if extend { Vcpu::extend::<STACK> } else { Vcpu::exchange::<STACK> };
            assert_eq!(other(self.vcpu, id, header, expect, &1, new), Outcome::Differs, "sealed");
            assert_eq!(other(self.vcpu, id + 1_000_000, header, expect, &0, new), Outcome::Moved);
            other(self.vcpu, id, header, expect, &0, new).committed()
        }
    }
}

#[test]
fn chains_in_assembly() {
    let Ok(mode) = registration::mode() else { return };
    if registration::ensure_thread().is_err() {
        return;
    }
    stay();
    // By CPU, whose number stays while the thread is kept there.
    let vcpu = Vcpu::new(&mode, crate::IndexKind::CpuId);
    let mut fixture = Fixture { vcpu: Some(vcpu), ..Fixture::new() };
    fixture.open();
    let id = vcpu.id();
    chain_contract(&InAssembly { fixture, vcpu, id });
}

struct Plain(core::cell::Cell<usize>);

impl Chained for Plain {
    fn header(&self) -> *mut usize {
        self.0.as_ptr()
    }
    fn pop(&self) -> Option<usize> {
        // SAFETY: as in `chain_contract`.
        Some(unsafe { portable::pop_chained_plain::<STACK>(self.0.as_ptr()) }).filter(|&p| p != 0)
    }
    fn push(&self, p: usize) -> bool {
        // SAFETY: as in `chain_contract`.
        unsafe { portable::push_chained_plain::<STACK>(self.0.as_ptr(), p) }
    }
    fn replace(&self, expect: usize, new: usize, extend: bool) -> bool {
        // SAFETY: as in `chain_contract`.
        unsafe { portable::replace_chained_plain::<STACK>(self.0.as_ptr(), expect, new, extend) }
    }
}

#[test]
fn chains_portable() {
    chain_contract(&Plain(core::cell::Cell::new(0)));
}

#[test]
fn no_stack_is_empty_and_full() {
    let mut header = 0;
    // SAFETY: the header is local.
    unsafe {
        assert_eq!(portable::pop_plain(&mut header), 0);
        assert!(!portable::push_plain::<STACK>(&mut header, 8));
    }
    assert_eq!(header, 0);
}

/// Repeats while the scheduler moves the thread between reading the id and running the sequence.
fn settled(vcpu: Vcpu, mut sequence: impl FnMut(u32) -> Outcome) -> Outcome {
    loop {
        match sequence(vcpu.id()) {
            Outcome::Moved => {}
            outcome => return outcome,
        }
    }
}

#[test]
fn words() {
    stay();
    let f = Fixture::new();
    let Some(vcpu) = f.vcpu else { return };
    if registration::ensure_thread().is_err() {
        return;
    }
    let (mut v, mut v2) = (1usize, 5usize);
    let (v, v2) = (core::ptr::from_mut(&mut v), core::ptr::from_mut(&mut v2));
    // SAFETY: the words are local and used by this thread only.
    unsafe {
        assert_eq!(settled(vcpu, |id| vcpu.compare_store(id, v, 2, 3)), Outcome::Differs);
        assert_eq!(settled(vcpu, |id| vcpu.compare_store(id, v, 1, 3)), Outcome::Committed);
        assert_eq!(settled(vcpu, |id| vcpu.compare_compare_store(id, v, 3, v2, 4, 9)), Outcome::Differs);
        assert_eq!(settled(vcpu, |id| vcpu.compare_compare_store(id, v, 3, v2, 5, 9)), Outcome::Committed);
        assert_eq!(settled(vcpu, |id| vcpu.add(id, v, 0usize.wrapping_sub(4))), Outcome::Committed);
        assert_eq!(*v, 5);
        let elsewhere = vcpu.id() + 1_000_000;
        assert_eq!(vcpu.add(elsewhere, v, 1), Outcome::Moved);
        assert_eq!(vcpu.compare_store(elsewhere, v, 5, 6), Outcome::Moved);
        assert_eq!(*v, 5);
    }
}

#[test]
fn list() {
    stay();
    let f = Fixture::new();
    let Some(vcpu) = f.vcpu else { return };
    if registration::ensure_thread().is_err() {
        return;
    }
    let last = [11usize, 0];
    let first = [22usize, last.as_ptr().expose_provenance()];
    let mut head = first.as_ptr().expose_provenance();
    let head_word = core::ptr::from_mut(&mut head);
    let seal = 1usize;
    let pop = |seal: usize| loop {
        // SAFETY: the nodes are local and live; their second word is the link.
        match unsafe { vcpu.compare_load_store(vcpu.id(), head_word, 0, 8, &seal, 0) } {
            Err(Outcome::Moved) => {}
            result => return result,
        }
    };
    assert_eq!(pop(seal), Err(Outcome::Differs));
    assert_eq!(pop(0), Ok(first.as_ptr().addr()));
    assert_eq!(pop(0), Ok(last.as_ptr().addr()));
    assert_eq!(pop(0), Err(Outcome::Differs));
}

#[test]
fn gives_up_after_sixteen_aborts() {
    let mut attempts = 0;
    let outcome = bounded(|| {
        attempts += 1;
        Attempt::Aborted
    });
    assert_eq!(outcome, Outcome::GaveUp);
    assert_eq!(attempts, MAX_ABORTS);
}
