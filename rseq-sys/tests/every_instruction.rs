//! Promise: each instruction of every sequence is covered. A thread that is stopped there, while another thread of the
//! process runs on its CPU and changes the data, or while it is moved to another CPU, starts again if the stop was
//! between the arming store and the commit, and only then; what comes out is what one operation after the other gives.
//!
//! The thread belongs to this binary, started once more and traced. For each operation it tells which descriptor it
//! announced; the instructions come from the code. At each of them the tracer
//!
//! ```text
//!   plants a breakpoint, lets the thread run into it, takes it out, puts the program counter back
//!   lets the second thread, on the same CPU, do what it should do meanwhile
//!   lets the first thread go on, and asks it what came out and whether it was aborted
//! ```
//!
//! What this does not show: that the kernel looks at *every* preemption. Each stop here is one that it sees.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

#[path = "common/affinity.rs"]
mod affinity;
#[path = "common/child.rs"]
mod child;
#[path = "every_instruction/code.rs"]
mod code;
#[path = "every_instruction/model.rs"]
mod model;
#[path = "every_instruction/program.rs"]
mod program;
#[path = "every_instruction/tracer.rs"]
mod tracer;
#[path = "common/work.rs"]
mod work;

use code::{Image, Section};
use model::{Disturbance, OPERATIONS, Step};
use program::{AFTER, BEFORE, EXPLAIN, IMPOSSIBLE, INSTEAD, NEVER, ORDER, RENUMBERED, REPORT, RIGHT, SKIP, WRONG};
use rseq_sys::sequence::{ABORTS, MAX_ABORTS};
use std::sync::atomic::AtomicUsize;
use tracer::{Stop, Traced};
use work::work;

/// Attempts at a stop that something else disturbs: a preemption by other programs, a new concurrency id.
const ATTEMPTS: usize = 50;
/// Failures after which it is enough.
const ENOUGH: usize = 10;

#[used]
// SAFETY: the loader calls the functions in this section one after the other, before main.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    if child::is_child() {
        program::run();
    }
}

#[test]
fn by_cpu_registered_by_libc() {
    stop_everywhere("cpu_id", false);
}

#[test]
fn by_cpu_registered_by_ourselves() {
    stop_everywhere("cpu_id", true);
}

#[test]
fn by_concurrency_id_registered_by_libc() {
    stop_everywhere("mm_cid", false);
}

#[test]
fn by_concurrency_id_registered_by_ourselves() {
    stop_everywhere("mm_cid", true);
}

#[test]
fn descriptors_are_well_formed() {
    let image = Image::of_this_binary();
    let faults: Vec<_> = image.descriptors().filter_map(|address| image.fault(address)).collect();
    println!("{} descriptors", image.descriptors().count());
    assert!(image.descriptors().count() >= OPERATIONS.len() / 2);
    assert!(faults.is_empty(), "{faults:#?}");
}

fn address(word: &AtomicUsize) -> usize {
    word.as_ptr().expose_provenance()
}

/// The program, and what was found out so far.
struct Harness {
    traced: Traced,
    image: Image,
    /// Whether a thread that is moved gets another id for sure: a CPU has its number, a concurrency id may move along.
    moves: bool,
    failures: Vec<String>,
}

/// A copy of a sequence: where its descriptor is, and where to stop before, so that the program comes to run this one.
struct Copy {
    descriptor: usize,
    way: Vec<usize>,
}

fn stop_everywhere(index: &str, own: bool) {
    let mut command = child::command("", own);
    command.env(program::INDEX, index);
    let traced = match Traced::start(command) {
        Ok(traced) => traced,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return println!("skipped: tracing is forbidden here: {error}");
        }
        Err(error) => panic!("{error}"),
    };
    let (image, moves) = (Image::of_this_binary(), index == "cpu_id");
    let mut harness = Harness { traced, image, moves, failures: Vec::new() };
    match harness.traced.go_on() {
        Stop::Signal(libc::SIGSTOP) => {}
        Stop::Exited(SKIP) => return println!("skipped: see the line of the program"),
        stop => panic!("the program did not start: {stop:?}"),
    }
    // Nearer to the program: a stop then needs no other CPU to wake up.
    assert!(affinity::pin(0, affinity::allowed_cpus()[0]));
    println!("{index}, {}:", if own { "registered by ourselves" } else { "as libc does it" });
    for (number, operation) in OPERATIONS.iter().enumerate() {
        let report = harness.operation(number, *operation);
        println!("  {operation:?}: {report}");
        if harness.failures.len() >= ENOUGH {
            break;
        }
    }
    assert!(harness.failures.is_empty(), "{:#?}", harness.failures);
    harness.traced.write(address(&ORDER.operation), OPERATIONS.len() as u64);
    assert_eq!(harness.traced.go_on(), Stop::Exited(0));
}

impl Harness {
    /// Stops `operation`, which is that `number`, everywhere.
    fn operation(&mut self, number: usize, operation: Step) -> String {
        let first = Copy { descriptor: self.announced_by(number, operation), way: Vec::new() };
        // The compiler may have made copies for the second attempt and later ones. The way there is long, so where
        // there is little time not all of them are looked at.
        let (mut copies, mut count) = (vec![first], Count::default());
        while count.copies < copies.len().min(work(MAX_ABORTS as usize)) {
            let copy = &copies[count.copies];
            let section = self.image.section(copy.descriptor);
            let mut next = None;
            for (place, stop_at) in section.instructions.iter().enumerate() {
                let way = [&copy.way[..], &[*stop_at]].concat();
                let all = operation.disturbances().len();
                // It takes long to come to a late copy, so each stop there sees one disturbance.
                let some = if copy.way.is_empty() { work(all).min(all) } else { 1 };
                for disturbance in (place..place + some).map(|number| number % all) {
                    if operation.disturbances()[disturbance] == Disturbance::Move && !self.moves {
                        continue;
                    }
                    match self.stop(number, disturbance, &section, &way) {
                        Ok(done) => next = count.add(&done).then(|| (done.last, way.clone())).or(next),
                        Err(fault) => {
                            let at = stop_at.wrapping_sub(section.armed) as isize;
                            let what = operation.disturbances()[disturbance];
                            self.failures.push(format!("{operation:?}, stopped at byte {at:+}, {what:?}: {fault}"));
                        }
                    }
                    if self.failures.len() >= ENOUGH {
                        return "enough failures".into();
                    }
                }
                count.places += 1;
            }
            count.copies += 1;
            if let Some((descriptor, way)) = next
                && descriptor != 0
                && copies.iter().all(|copy| copy.descriptor != descriptor)
            {
                copies.push(Copy { descriptor, way });
            }
        }
        assert!(count.inside > 0 && count.outside > 0, "{operation:?} was never stopped");
        count.to_string()
    }

    /// Lets an operation run undisturbed and returns the descriptor that it announced.
    fn announced_by(&mut self, number: usize, operation: Step) -> usize {
        for _ in 0..ATTEMPTS {
            self.order(number, 0, NEVER);
            assert_eq!(self.traced.go_on(), Stop::Signal(libc::SIGSTOP), "{operation:?}, undisturbed");
            let (verdict, section) = self.report();
            assert_ne!(verdict, WRONG, "{operation:?}, undisturbed");
            if section != 0 {
                return section;
            }
        }
        panic!("{operation:?} announces no section");
    }

    /// Has the program print what was wrong.
    fn explain(&mut self) {
        self.traced.write(address(&ORDER.operation), EXPLAIN as u64);
        assert_eq!(self.traced.go_on(), Stop::Signal(libc::SIGSTOP));
    }

    fn order(&self, operation: usize, disturbance: usize, when: usize) {
        self.traced.write(address(&ORDER.operation), operation as u64);
        self.traced.write(address(&ORDER.disturbance), disturbance as u64);
        self.traced.write(address(&ORDER.when), when as u64);
    }

    /// The verdict, and the descriptor that was announced last, at our address; 0 for none.
    fn report(&self) -> (usize, usize) {
        let section = self.traced.read(address(&REPORT.section)) as usize;
        let ours = if section == 0 { 0 } else { section.wrapping_sub(self.traced.shift) };
        (self.traced.read(address(&REPORT.verdict)) as usize, ours)
    }

    fn aborts(&self) -> u64 {
        self.traced.read(ABORTS.as_ptr().expose_provenance())
    }

    /// Stops an operation at the last address of `way`, having passed the others, and disturbs it there.
    fn stop(&mut self, number: usize, disturbance: usize, section: &Section, way: &[usize]) -> Result<Done, String> {
        let at = *way.last().expect("a place to stop");
        let covered = (section.armed..section.post_commit).contains(&at);
        let bounded = !OPERATIONS[number].is_one_attempt();
        let when = match covered {
            true if bounded && way.len() == MAX_ABORTS as usize => INSTEAD,
            _ if at == section.post_commit => AFTER,
            _ => BEFORE,
        };
        for _ in 0..ATTEMPTS {
            self.order(number, disturbance, when);
            let (at_first, mut stopped) = (self.aborts(), Ok(()));
            for place in way {
                stopped = stopped.and_then(|()| self.traced.run_to(*place));
            }
            match stopped {
                Ok(()) => {}
                Err(Stop::Signal(libc::SIGSTOP)) => match self.report() {
                    (IMPOSSIBLE, _) => return Ok(Done { verdict: IMPOSSIBLE, aborted: false, last: 0 }),
                    // A new id, or one abort more than intended: another way than is to be tested.
                    _ => continue,
                },
                Err(stop) => panic!("the program ended on its way here: {stop:?}"),
            }
            // Each place on the way is in a section, which is then aborted. A preemption may have aborted one more, whose
            // handler can lead here without a commit: another way again.
            let as_intended = self.aborts() - at_first == way.len() as u64 - 1;
            assert!(self.traced.disturb(), "the program did not survive what its second thread did");
            let before = self.aborts();
            let stop = self.traced.go_on();
            assert_eq!(stop, Stop::Signal(libc::SIGSTOP), "the program did not survive a stop");
            if !as_intended {
                continue;
            }
            let aborted = self.aborts() != before;
            match self.report() {
                (RENUMBERED, _) => {}
                (RIGHT, last) if aborted == covered => return Ok(Done { verdict: RIGHT, aborted, last }),
                // Aborted by a preemption after the stop.
                (RIGHT, _) if aborted => {}
                (RIGHT, _) => return Err("was not aborted".into()),
                (_, _) => {
                    self.explain();
                    return Err(format!("wrong result, {} aborted", if aborted { "was" } else { "was not" }));
                }
            }
        }
        Err("never came here, or was renumbered or aborted every time".into())
    }
}

/// What was done to one operation.
#[derive(Default)]
struct Count {
    copies: usize,
    places: usize,
    inside: usize,
    outside: usize,
    impossible: usize,
}

impl Count {
    /// Whether the operation was aborted.
    fn add(&mut self, done: &Done) -> bool {
        match done {
            Done { verdict: IMPOSSIBLE, .. } => self.impossible += 1,
            Done { aborted: true, .. } => self.inside += 1,
            Done { aborted: false, .. } => self.outside += 1,
        }
        done.aborted
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Count { copies, places, inside, outside, impossible } = self;
        write!(f, "{} stops at {places} instructions, {inside} restarts, sections: {copies}", inside + outside)?;
        if *impossible == 0 { Ok(()) } else { write!(f, " (skipped: {impossible} moves, there is no other CPU)") }
    }
}

/// How a stop went.
struct Done {
    verdict: usize,
    aborted: bool,
    /// The descriptor that was announced last.
    last: usize,
}
