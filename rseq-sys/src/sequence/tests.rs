//! Promises held here: each sequence does what its contract says on a thread that stays where it is, in assembly and
//! in the portable stand-in alike. Concurrency is tested in the crate's integration tests.

use super::*;
use crate::registration;
extern crate std;

const SHIFT: u32 = 12;
/// Ids served in these tests; more than the machine has CPUs to use at a time.
const IDS: usize = 64;

/// A table with one stack of four slots for each id, at displacement 16.
struct Fixture {
    table: Stacks<SHIFT>,
    vcpu: Option<Vcpu>,
    shards: std::vec::Vec<usize>,
    stacks: std::vec::Vec<[usize; 6]>,
}

impl Fixture {
    fn new() -> Self {
        let vcpu = registration::mode().ok().map(|mode| Vcpu::new(&mode, mode.default_index()));
        let mut shards = std::vec![0usize; IDS << SHIFT >> 3];
        let mut stacks: std::vec::Vec<[usize; 6]> = std::vec![[0, 7, 7, 7, 7, FULL]; IDS];
        for (id, stack) in stacks.iter_mut().enumerate() {
            shards[(id << SHIFT >> 3) + 2] = stack.as_mut_ptr().expose_provenance();
        }
        let table = Stacks::new();
        if let Some(vcpu) = vcpu {
            // SAFETY: the table is new, and the shards live as long as it.
            unsafe { table.open(vcpu, shards.as_mut_ptr().cast()) };
        } else {
            table.base.store(shards.as_mut_ptr().cast(), Ordering::Relaxed);
        }
        Self { table, vcpu, shards, stacks }
    }

    fn open(&self) {
        // SAFETY: all IDS headers are initialised, by this thread.
        unsafe { self.table.set_limit(IDS) };
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
    let f = Fixture::new();
    let g: *const usize = core::ptr::from_ref(&f.table).cast();
    // SAFETY: the table and its stacks live to the end of this function; displacement 16 is that of the headers.
    unsafe {
        assert!(pop(g, 16).is_null(), "closed");
        assert!(!push(g, 16, 100), "closed");
        f.open();
        assert!(pop(g, 16).is_null(), "empty");
        for p in [100, 200, 300, 400] {
            assert!(again(false, || push(g, 16, p)));
        }
        assert!(!push(g, 16, 500), "full");
        assert_eq!(again(0, || pop(g, 16).addr()), 400);
        assert!(!push(g, 16, 300), "twice in a row");
        for p in [300, 200, 100] {
            assert_eq!(again(0, || pop(g, 16).addr()), p);
        }
        assert!(pop(g, 16).is_null(), "empty");
    }
    assert!(f.stacks.iter().all(|stack| stack[0] == 0 && stack[5] == FULL), "the sentinels stand");
}

#[test]
fn stacks_in_assembly() {
    if registration::ensure_thread().is_ok() {
        stack_contract(imp::pop::<SHIFT>, imp::push::<SHIFT>);
    }
}

#[test]
fn stacks_portable() {
    stack_contract(portable::pop::<SHIFT>, portable::push::<SHIFT>);
}

#[test]
fn dummy_is_empty_and_full() {
    let mut dummy = [0, FULL];
    let mut header = dummy.as_mut_ptr().expose_provenance();
    // SAFETY: header and stack are local.
    unsafe {
        assert_eq!(portable::pop_plain(&mut header), 0);
        assert!(!portable::push_plain(&mut header, 8));
    }
    assert_eq!(header, dummy.as_ptr().addr());
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
    assert!(f.shards.len() == IDS << SHIFT >> 3);
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
