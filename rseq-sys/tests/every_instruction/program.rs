//! The program that is stopped: this binary once more, before `main`. Its first thread does one operation after the
//! other, as the tracer orders, and judges the result; its second thread disturbs the first one when told to. Both stay
//! on one CPU, so while the second one runs the first one does not.

use crate::affinity::{allowed_cpus, ids, pin};
use crate::model::{Answer, Disturbance, Memory, OPERATIONS, SHIFT, STACK, State, Step, Which, displacement};
use rseq_sys::sequence::{Outcome, Stacks, Vcpu, aborts};
use rseq_sys::{IndexKind, Mode, ensure_thread, mode};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Says which id to index by.
pub(crate) const INDEX: &str = "RSEQ_SYS_TEST_INDEX";
/// Exit status: nothing to test here.
pub(crate) const SKIP: i32 = 77;
/// Seconds for one operation, before the program is ended: more means that it hangs.
const ALARM: u32 = 30;

/// Words through which the tracer, which can write them while the program is stopped, gives its orders.
pub(crate) static ORDER: Order = Order { operation: word(), disturbance: word(), when: word() };
/// And reads what came out.
pub(crate) static REPORT: Report = Report { verdict: word(), section: word() };

const fn word() -> AtomicUsize {
    AtomicUsize::new(0)
}

pub(crate) struct Order {
    /// Index of the operation, or `EXPLAIN`; anything else: exit.
    pub(crate) operation: AtomicUsize,
    /// Index of what disturbs it, if anything.
    pub(crate) disturbance: AtomicUsize,
    /// When that happens, as one of the following.
    pub(crate) when: AtomicUsize,
}

/// Say what was wrong with the last result.
pub(crate) const EXPLAIN: usize = usize::MAX;
pub(crate) const NEVER: usize = 0;
pub(crate) const BEFORE: usize = 1;
pub(crate) const AFTER: usize = 2;
/// Before, and the operation gives up: this is the last attempt that it makes.
pub(crate) const INSTEAD: usize = 3;

pub(crate) struct Report {
    /// One of the following.
    pub(crate) verdict: AtomicUsize,
    /// Address of the descriptor that was announced last.
    pub(crate) section: AtomicUsize,
}

/// What one after the other would have given.
pub(crate) const RIGHT: usize = 1;
pub(crate) const WRONG: usize = 2;
/// The kernel gave the thread another concurrency id: says nothing.
pub(crate) const RENUMBERED: usize = 3;
/// There is no second CPU to be moved to.
pub(crate) const IMPOSSIBLE: usize = 4;

static TABLE: Stacks<SHIFT, STACK> = Stacks::new();

mod by_name {
    use super::{SHIFT, STACK};
    pub(crate) static TABLE: rseq_sys::sequence::Stacks<SHIFT, STACK> = rseq_sys::sequence::Stacks::new();
    rseq_sys::stack_functions!(TABLE, SHIFT, STACK);
}

mod by_entry {
    use super::{SHIFT, STACK, TABLE};
    use rseq_sys::sequence::Entry;
    use std::sync::atomic::{AtomicBool, Ordering};

    pub(crate) static TAKE: Entry = Entry::new();
    pub(crate) static PUT: Entry = Entry::new();
    /// The functions compare the displacement, which is 0, with this.
    pub(crate) const LIMITS: [usize; 2] = [1, 0];
    /// Whether `put` came to its slow path.
    static REFUSED: AtomicBool = AtomicBool::new(false);

    extern "C" fn nothing(_displacement: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    extern "C" fn refuse(_p: usize) {
        REFUSED.store(true, Ordering::Relaxed);
    }

    /// What the functions are where there is no assembly for them.
    fn otherwise(p: usize) {
        // SAFETY: the headers are at displacement 0; p is not 0.
        if !unsafe { TABLE.push(0, p) } {
            refuse(p);
        }
    }

    rseq_sys::entry_pop! {
        /// At displacement 0; by the aside unless that is what it is given.
        extern "C" fn take(which: usize) -> *mut u8 = {
            let _ = (nothing, which);
            // SAFETY: the headers are at displacement 0.
            unsafe { TABLE.pop(0) }
        };
        entry TAKE, shift SHIFT, scale 1, slow nothing,
        fronts [
            "xor ecx, ecx\n cmp rcx, qword ptr [rip + {entry} + 16]\n jae 6f\n test rdi, rdi\n jnz 7f",
            "7:\n xor ecx, ecx";
            "xor ecx, ecx\n cmp rcx, qword ptr [rip + {entry} + 32]\n jae 6f\n test rdi, rdi\n jnz 7f",
            "7:\n xor ecx, ecx"
        ],
    }

    rseq_sys::entry_push! {
        unsafe extern "C" fn put_or_refuse(p: usize) = otherwise(p);
        entry PUT, shift SHIFT, scale 8, stack STACK, slow refuse,
        fronts [
            "xor ecx, ecx\n cmp rcx, qword ptr [rip + {entry} + 16]\n jae 6f";
            "xor ecx, ecx\n cmp rcx, qword ptr [rip + {entry} + 32]\n jae 6f"
        ],
    }

    /// Whether the stack took `p`.
    pub(crate) fn put(p: usize) -> bool {
        REFUSED.store(false, Ordering::Relaxed);
        let _ = otherwise;
        // SAFETY: as in `otherwise`.
        unsafe { put_or_refuse(p) };
        !REFUSED.load(Ordering::Relaxed)
    }
}

/// What both threads know.
struct World {
    vcpu: Vcpu,
    index: IndexKind,
    /// The data of each vCPU.
    memory: &'static [Memory],
    home: usize,
    elsewhere: Option<usize>,
    /// The first thread.
    tid: libc::pid_t,
}

static WORLD: OnceLock<World> = OnceLock::new();
/// The vCPU of the operation.
static ID: AtomicUsize = AtomicUsize::new(0);

/// The first thread.
pub(crate) fn run() -> ! {
    let by_cpu = std::env::var(INDEX).is_ok_and(|index| index == "cpu_id");
    let index = if by_cpu { IndexKind::CpuId } else { IndexKind::MmCid };
    let mode = match mode() {
        Ok(mode) if mode.has_index(index) => mode,
        Ok(_) => skip(&format!("this kernel has no {index}")),
        Err(reason) => skip(&reason.to_string()),
    };
    let cpus = allowed_cpus();
    // The two before the first are those of threads that have no id.
    let memory: &'static [Memory] = (0..ids() + 2).map(|_| Memory::new()).collect::<Vec<_>>().leak();
    let memory = &memory[2..];
    // SAFETY: a question.
    let tid = unsafe { libc::gettid() };
    let vcpu = Vcpu::new(&mode, index);
    let world = World { vcpu, index, memory, home: cpus[0], elsewhere: cpus.get(1).copied(), tid };
    let world = WORLD.get_or_init(|| world);
    for table in [&TABLE, &by_name::TABLE] {
        // SAFETY: a new table; there are headers for all ids, and they are never freed.
        assert!(unsafe { table.open(vcpu, memory.as_ptr().cast_mut().cast()) });
    }
    for entry in [&by_entry::TAKE, &by_entry::PUT] {
        // SAFETY: as above, and new.
        unsafe { entry.prepare(vcpu, memory.as_ptr().cast_mut().cast()) };
        // SAFETY: prepared.
        unsafe { entry.open(by_entry::LIMITS) };
    }
    memory.iter().for_each(|memory| memory.write(&State::initial()));
    assert!(pin(0, world.home));
    ensure_thread().expect("the first thread can be registered");
    std::thread::spawn(|| disturb_when_told(world));
    eprintln!("{index}, {mode}");
    let mut fault = String::new();
    loop {
        // SAFETY: stops this thread until the tracer lets it go on.
        unsafe { libc::raise(libc::SIGSTOP) };
        if ORDER.operation.load(Ordering::SeqCst) == EXPLAIN {
            eprintln!("{fault}");
            continue;
        }
        let Some(operation) = OPERATIONS.get(ORDER.operation.load(Ordering::SeqCst)) else { std::process::exit(0) };
        let disturbance = operation.disturbances()[ORDER.disturbance.load(Ordering::SeqCst)];
        let when = ORDER.when.load(Ordering::SeqCst);
        let verdict = world.operate(&mode, *operation, disturbance, when).unwrap_or_else(|text| {
            fault = text;
            WRONG
        });
        REPORT.verdict.store(verdict, Ordering::SeqCst);
    }
}

fn skip(reason: &str) -> ! {
    eprintln!("skipped: {reason}");
    std::process::exit(SKIP);
}

/// Ends the program with the second thread, which only ends by a panic; the first one would wait for it for ever.
struct Together;

impl Drop for Together {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The second thread: waits for a byte, disturbs, answers with a byte.
fn disturb_when_told(world: &World) {
    let _together = Together;
    ensure_thread().expect("every thread of this process can be registered");
    let mut byte = 0u8;
    // SAFETY: reads and writes one byte.
    while unsafe { libc::read(0, (&raw mut byte).cast(), 1) } == 1 {
        let operation = OPERATIONS[ORDER.operation.load(Ordering::SeqCst)];
        match operation.disturbances()[ORDER.disturbance.load(Ordering::SeqCst)] {
            Disturbance::Steps(steps) => world.disturb(steps),
            Disturbance::Move => assert!(pin(world.tid, world.elsewhere.expect("asked before"))),
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::write(1, (&raw const byte).cast(), 1) }, 1);
    }
}

impl World {
    /// Does `operation` on the initial state and judges what came out, if it was disturbed when the order says.
    ///
    /// # Errors
    /// What came out, and what should have.
    fn operate(&self, mode: &Mode, operation: Step, disturbance: Disturbance, when: usize) -> Result<usize, String> {
        if disturbance == Disturbance::Move && self.elsewhere.is_none() {
            return Ok(IMPOSSIBLE);
        }
        assert!(pin(0, self.home));
        // SAFETY: the program is killed by the signal.
        unsafe { libc::alarm(ALARM) };
        let initial = State::initial();
        self.memory.iter().for_each(|memory| memory.write(&initial));
        let id = self.vcpu.id();
        ID.store(id as usize, Ordering::SeqCst);
        // SAFETY: this thread's own area; user space may clear this field at any time.
        let announced = unsafe { &(*mode.area()).rseq_cs };
        announced.store(0, Ordering::SeqCst);
        let answer = self.step(id, operation);
        REPORT.section.store(announced.load(Ordering::SeqCst) as usize, Ordering::SeqCst);
        let now = self.vcpu.id();
        // The kernel may renumber the thread whenever it switches to it, and back again before anybody looks.
        let untouched = |(other, memory): (usize, &Memory)| {
            other == id as usize || memory.read(&initial).as_ref() == Some(&initial)
        };
        let renumbered =
            now != id || answer == Answer::Not(Outcome::Moved) || !self.memory.iter().enumerate().all(untouched);
        if self.index == IndexKind::MmCid && renumbered {
            return Ok(RENUMBERED);
        }

        let (mut state, mut expected) = (initial.clone(), Answer::Not(Outcome::Moved));
        let disturb = |state: &mut State| match disturbance {
            Disturbance::Steps(steps) => steps.iter().for_each(|step| _ = state.apply(*step)),
            Disturbance::Move => {}
        };
        let moved_before = when == BEFORE && disturbance == Disturbance::Move;
        if when == BEFORE || when == INSTEAD {
            disturb(&mut state);
        }
        if when == INSTEAD {
            expected = Answer::Not(Outcome::GaveUp);
        } else if !moved_before {
            expected = state.apply(operation);
        }
        if when == AFTER {
            disturb(&mut state);
        }
        let mut there = initial.clone();
        if moved_before && operation.takes_any_vcpu() {
            expected = there.apply(operation);
        }
        let found = self.memory[id as usize].read(&state);
        let elsewhere = (now != id).then(|| self.memory[now as usize].read(&there));
        if answer == expected && found.as_ref() == Some(&state) && elsewhere.as_ref().is_none_or(|e| *e == Some(there))
        {
            return Ok(RIGHT);
        }
        let what = format!("{answer:?} and {found:?}, elsewhere {elsewhere:?}");
        Err(format!("{operation:?} with {disturbance:?}: {what}; not {expected:?} and {state:?}"))
    }

    /// Does `steps` to the vCPU of the operation, whose thread is stopped: by sequences where this thread is sure to
    /// have the same id, else by plain stores.
    fn disturb(&self, steps: &[Step]) {
        let id = ID.load(Ordering::SeqCst);
        let memory = &self.memory[id];
        let mut state = memory.read(&State::initial()).expect("a section leaves data that makes sense, wherever it is");
        let by_sequences = self.index == IndexKind::CpuId && self.vcpu.id() as usize == id;
        for step in steps {
            let expected = state.apply(*step);
            if by_sequences {
                assert_eq!(self.step(id as u32, *step), expected, "{step:?} by the second thread");
            }
        }
        if !by_sequences {
            memory.write(&state);
        }
    }

    fn step(&self, id: u32, step: Step) -> Answer {
        let m = &self.memory[id as usize];
        match step {
            Step::Pop => pop(),
            Step::Push(p) => push(p),
            Step::StaticPop => static_pop(),
            Step::StaticPush(p) => static_push(p),
            Step::EntryPop => unless_aborted(|| took(by_entry::take(0))),
            Step::EntryPopAside => unless_aborted(|| took(by_entry::take(1))),
            Step::EntryPush(p) => unless_aborted(|| by_entry::put(p).then_some(Answer::Did)),
            Step::Replace => replace(self.vcpu, id, m),
            Step::CompareStore(expect, new) => compare_store(self.vcpu, id, m, expect, new),
            Step::CompareCompareStore(expect, expect2, new) => {
                compare_compare_store(self.vcpu, id, m, expect, expect2, new)
            }
            Step::Add(n) => add(self.vcpu, id, m, n),
            Step::LoadStore => load_store(self.vcpu, id, m),
            Step::CompareLoadStore(expect2) => compare_load_store(self.vcpu, id, m, expect2),
            Step::PopChained(which) => pop_chained(which),
            Step::PushChained(which, p) => push_chained(which, p),
            Step::Exchange => exchange(self.vcpu, id, m),
            Step::Extend => extend(self.vcpu, id, m),
            Step::Link(node) => link(self.vcpu, id, m, node),
            Step::Seal(n) => {
                m.seal.store(n, Ordering::SeqCst);
                Answer::Did
            }
        }
    }
}

// Each operation in a function of its own, so that it has sections of its own. All of them work on memory that is never
// freed; the data of an id is changed by sequences for that id, or while the thread that runs one is stopped.

/// Again while the attempt was aborted. The second thread is waiting, so these are the caller's aborts.
#[inline(always)]
fn unless_aborted(mut attempt: impl FnMut() -> Option<Answer>) -> Answer {
    loop {
        let before = aborts();
        if let Some(answer) = attempt() {
            return answer;
        }
        if aborts() == before {
            return Answer::Not(Outcome::Differs);
        }
    }
}

#[inline(always)]
fn took(p: *mut u8) -> Option<Answer> {
    (!p.is_null()).then(|| Answer::Took(p.addr()))
}

#[inline(never)]
fn pop() -> Answer {
    // SAFETY: the headers are at displacement 0.
    unless_aborted(|| took(unsafe { TABLE.pop(0) }))
}

#[inline(never)]
fn push(p: usize) -> Answer {
    // SAFETY: as above; p is not 0.
    unless_aborted(|| unsafe { TABLE.push(0, p) }.then_some(Answer::Did))
}

#[inline(never)]
fn static_pop() -> Answer {
    // SAFETY: as in `pop`.
    unless_aborted(|| took(unsafe { by_name::pop(0) }))
}

#[inline(never)]
fn static_push(p: usize) -> Answer {
    // SAFETY: as in `push`.
    unless_aborted(|| unsafe { by_name::push(0, p) }.then_some(Answer::Did))
}

fn did(outcome: Outcome) -> Answer {
    if outcome.committed() { Answer::Did } else { Answer::Not(outcome) }
}

#[inline(never)]
fn replace(vcpu: Vcpu, id: u32, m: &Memory) -> Answer {
    let (expect, new) = m.tops();
    // SAFETY: the header of this id; the new stack is used by nobody else.
    did(unsafe { vcpu.replace(id, m.header.as_ptr(), expect, m.seal.as_ptr(), new) })
}

#[inline(never)]
fn compare_store(vcpu: Vcpu, id: u32, m: &Memory, expect: usize, new: usize) -> Answer {
    // SAFETY: the word of this id.
    did(unsafe { vcpu.compare_store(id, m.word.as_ptr(), expect, new) })
}

#[inline(never)]
fn compare_compare_store(vcpu: Vcpu, id: u32, m: &Memory, expect: usize, expect2: usize, new: usize) -> Answer {
    // SAFETY: two words of this id.
    did(unsafe { vcpu.compare_compare_store(id, m.word.as_ptr(), expect, m.seal.as_ptr(), expect2, new) })
}

#[inline(never)]
fn add(vcpu: Vcpu, id: u32, m: &Memory, n: usize) -> Answer {
    // SAFETY: the word of this id.
    did(unsafe { vcpu.add(id, m.word.as_ptr(), n) })
}

fn took_node(m: &Memory, result: Result<usize, Outcome>) -> Answer {
    result.map_or_else(Answer::Not, |node| Answer::Took(m.index(node)))
}

#[inline(never)]
fn load_store(vcpu: Vcpu, id: u32, m: &Memory) -> Answer {
    // SAFETY: the head of this id's list; a node's link is its first word.
    took_node(m, unsafe { vcpu.load_store(id, m.head.as_ptr(), 0, 0) })
}

#[inline(never)]
fn compare_load_store(vcpu: Vcpu, id: u32, m: &Memory, expect2: usize) -> Answer {
    // SAFETY: as above, and a word of this id.
    took_node(m, unsafe { vcpu.compare_load_store(id, m.head.as_ptr(), 0, 0, m.seal.as_ptr(), expect2) })
}

#[inline(never)]
fn pop_chained(which: Which) -> Answer {
    // SAFETY: the headers of chains are there.
    unsafe { TABLE.pop_chained(displacement(which)) }.map_or_else(Answer::Not, |p| Answer::Took(p.addr()))
}

#[inline(never)]
fn push_chained(which: Which, p: usize) -> Answer {
    // SAFETY: as above; p is not 0.
    did(unsafe { TABLE.push_chained(displacement(which), p) })
}

#[inline(never)]
fn exchange(vcpu: Vcpu, id: u32, m: &Memory) -> Answer {
    let (expect, new) = m.tops_of_chain(Which::ToPop);
    let header = m.chains[Which::ToPop as usize].as_ptr();
    // SAFETY: the header of this id; the new stack is used by nobody else.
    did(unsafe { vcpu.exchange::<STACK>(id, header, expect, m.seal.as_ptr(), new) })
}

#[inline(never)]
fn extend(vcpu: Vcpu, id: u32, m: &Memory) -> Answer {
    let (expect, new) = m.tops_of_chain(Which::ToPush);
    let header = m.chains[Which::ToPush as usize].as_ptr();
    // SAFETY: as in `exchange`; a stack with this top is full.
    did(unsafe { vcpu.extend::<STACK>(id, header, expect, m.seal.as_ptr(), new) })
}

#[inline(never)]
fn link(vcpu: Vcpu, id: u32, m: &Memory, node: usize) -> Answer {
    let first = m.head.load(Ordering::SeqCst);
    m.nodes[node].store(first, Ordering::SeqCst);
    // SAFETY: the head of this id's list.
    did(unsafe { vcpu.compare_store(id, m.head.as_ptr(), first, m.node(node)) })
}
