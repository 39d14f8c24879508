//! The sealed drain under a model checker. Promise: however threads on vCPUs, preemptions and a drainer interleave, no
//! magazine and no block is owned twice and none is lost; and it takes both fences, the seal and the compare of
//! `replace` to hold that, since without any one of them the checker finds a violation.
//!
//! The drain is the allocator's own: its source file is compiled here over words that
//! [shuttle](https://docs.rs/shuttle) schedules. The sections it has to cope with are restated step by step:
//!
//! ```text
//! pop       load top, load slot, commit top - 1         push      load top, store slot, commit top + 1
//! replace   seal? then leave; top changed? then leave; commit the new top
//! list      seal? then leave; load head (and its next), commit the new head
//! ```
//!
//! A replacement installs another magazine, or none where one is unloaded. A shard has two headers, as each bin of the
//! allocator has: what the second holds is *parked*. Two replacements carry a magazine from one to the other, and between
//! them it is the thread's.
//!
//! A section notices before each of its steps that it was aborted, and its commit is its last step. A fence aborts the
//! sections that are running and waits until each has noticed or ended; sections that begin later are not waited for.
//! A preemption ends a section and lets another thread of the same vCPU run. The checker explores sequentially
//! consistent executions, so what it does not see is the order of stores on weak machines; the fences give that.

#[path = "../../alloc-core/src/shard/protocol.rs"]
mod protocol;

use protocol::{Place, Taken};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Mutex, MutexGuard};
use shuttle::thread;

/// Slots of a magazine.
const CAPACITY: usize = 2;
const MAGAZINES: usize = 6;
const BLOCKS: usize = 6;
const VCPUS: usize = 2;
/// Threads per vCPU: two, so that a preempted one finds its shard changed.
const SHARING: usize = 2;
const THREADS: usize = VCPUS * SHARING;
/// What a thread does: allocations and frees.
const OPERATIONS: usize = 4;
const DRAINS: usize = 2;
/// Aborts in a row, and visits of a shard, after which an operation goes to the central layer.
const PATIENCE: usize = 3;

/// The headers of a shard: that of the loaded magazine, and that of the parked one.
const HEADERS: usize = 2;
const LOADED: usize = 0;
const PARKED: usize = 1;

/// A top is the magazine's number and its count of blocks; the dummy is both empty and full.
const DUMMY: usize = usize::MAX;
/// Lists hold a magazine's number plus one, and this at their end.
const NO_MAGAZINE: usize = 0;

const fn top(magazine: usize, count: usize) -> usize {
    magazine * 8 + count
}

const fn magazine_of(top: usize) -> usize {
    top / 8
}

const fn count_of(top: usize) -> usize {
    top % 8
}

/// What the model leaves out, to see whether the checker misses it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    NoFirstFence,
    NoSecondFence,
    SealIgnored,
    ReplaceBlind,
    NoAbort,
}

struct Magazine {
    slots: [AtomicUsize; CAPACITY],
    next: AtomicUsize,
    /// Held exclusively by a thread, the drainer or the depot: what a second claim must never find.
    owned: AtomicBool,
}

/// A word of a shard: sequences and the drain meet here.
struct Word(AtomicUsize);

impl Word {
    fn new(value: usize) -> Self {
        Self(AtomicUsize::new(value))
    }
}

impl protocol::Word for Word {
    fn load(&self) -> usize {
        self.0.load(SeqCst)
    }

    fn store(&self, value: usize) {
        self.0.store(value, SeqCst);
    }

    fn swap(&self, value: usize) -> usize {
        self.0.swap(value, SeqCst)
    }
}

struct Shard {
    headers: [Word; HEADERS],
    filled: Word,
    seal: Word,
    /// Whoever holds it is the thread that runs on this vCPU.
    vcpu: Mutex<()>,
}

impl Place for Shard {
    type Word = Word;

    fn seal(&self) -> &Word {
        &self.seal
    }

    fn headers(&self) -> impl Iterator<Item = &Word> {
        self.headers.iter()
    }

    fn lists(&self) -> impl Iterator<Item = &Word> {
        std::iter::once(&self.filled)
    }
}

struct Runner {
    /// Odd inside a section; changes at both ends.
    section: AtomicUsize,
    /// The section that a fence has aborted.
    aborted: AtomicUsize,
}

struct Model {
    fault: Fault,
    magazines: Vec<Magazine>,
    shards: Vec<Shard>,
    runners: Vec<Runner>,
    /// Tops of magazines in the depot, full, partly filled and empty ones.
    depot: Mutex<Vec<usize>>,
    central: Mutex<Vec<usize>>,
    /// In the hands of the program.
    in_use: Vec<AtomicBool>,
}

/// A section did not reach its commit.
struct Aborted;

/// Why a visit that committed nothing ended.
#[derive(PartialEq, Eq)]
enum Refused {
    Sealed,
    Differs,
}

/// A thread that runs on its vCPU, or waits for it.
struct Running<'a> {
    model: &'a Model,
    shard: &'a Shard,
    runner: &'a Runner,
    vcpu: Option<MutexGuard<'a, ()>>,
    generation: usize,
}

impl<'a> Running<'a> {
    fn new(model: &'a Model, thread: usize) -> Self {
        let shard = &model.shards[thread % VCPUS];
        let vcpu = Some(shard.vcpu.lock().expect("no thread panicked"));
        Self { model, shard, runner: &model.runners[thread], vcpu, generation: 0 }
    }

    fn begin(&mut self) {
        self.generation += 2;
        self.runner.section.store(self.generation + 1, SeqCst);
    }

    fn end(&mut self) {
        self.runner.section.store(self.generation + 2, SeqCst);
    }

    /// Before every step of a section: was it aborted, is the thread preempted now?
    fn step(&mut self) -> Result<(), Aborted> {
        if self.model.fault == Fault::NoAbort {
            if thread_rng().gen_bool(0.2) {
                self.vcpu = None;
                thread::yield_now();
                self.vcpu = Some(self.shard.vcpu.lock().expect("no thread panicked"));
            }
            return Ok(());
        }
        if thread_rng().gen_bool(0.1) {
            // The kernel aborts the section when the thread resumes; nothing of it runs any more.
            self.end();
            self.vcpu = None;
            thread::yield_now();
            self.vcpu = Some(self.shard.vcpu.lock().expect("no thread panicked"));
            return Err(Aborted);
        }
        if self.runner.aborted.load(SeqCst) == self.generation + 1 {
            self.end();
            return Err(Aborted);
        }
        Ok(())
    }

    /// The compare of the seal, which every slow commit has inside its section.
    fn sealed(&self) -> bool {
        self.shard.seal.0.load(SeqCst) != 0 && self.model.fault != Fault::SealIgnored
    }

    /// The commit: the last step, after which the section has ended.
    fn commit(&mut self, word: &Word, value: usize) -> Result<(), Aborted> {
        self.step()?;
        word.0.store(value, SeqCst);
        self.end();
        Ok(())
    }

    /// A block, or the top that had none.
    fn pop(&mut self, header: usize) -> Result<Result<usize, usize>, Aborted> {
        self.begin();
        self.step()?;
        let old = self.shard.headers[header].0.load(SeqCst);
        if old == DUMMY || count_of(old) == 0 {
            self.end();
            return Ok(Err(old));
        }
        self.step()?;
        let block = self.model.magazines[magazine_of(old)].slots[count_of(old) - 1].load(SeqCst);
        self.commit(&self.shard.headers[header], old - 1)?;
        Ok(Ok(block))
    }

    /// Success, or the top that had no room.
    fn push(&mut self, header: usize, block: usize) -> Result<Result<(), usize>, Aborted> {
        self.begin();
        self.step()?;
        let old = self.shard.headers[header].0.load(SeqCst);
        if old == DUMMY || count_of(old) == CAPACITY {
            self.end();
            return Ok(Err(old));
        }
        self.step()?;
        self.model.magazines[magazine_of(old)].slots[count_of(old)].store(block, SeqCst);
        self.commit(&self.shard.headers[header], old + 1)?;
        Ok(Ok(()))
    }

    /// Installs `new` where `seen` was. What `seen` named is exclusively the caller's then.
    fn replace(&mut self, header: usize, seen: usize, new: usize) -> Result<Result<(), Refused>, Aborted> {
        self.begin();
        self.step()?;
        if self.sealed() {
            self.end();
            return Ok(Err(Refused::Sealed));
        }
        self.step()?;
        if self.shard.headers[header].0.load(SeqCst) != seen && self.model.fault != Fault::ReplaceBlind {
            self.end();
            return Ok(Err(Refused::Differs));
        }
        self.commit(&self.shard.headers[header], new)?;
        Ok(Ok(()))
    }

    /// Takes a full magazine off the shard's list.
    fn list_pop(&mut self) -> Result<Result<usize, Refused>, Aborted> {
        self.begin();
        self.step()?;
        if self.sealed() {
            self.end();
            return Ok(Err(Refused::Sealed));
        }
        self.step()?;
        let head = self.shard.filled.0.load(SeqCst);
        if head == NO_MAGAZINE {
            self.end();
            return Ok(Err(Refused::Differs));
        }
        self.step()?;
        let next = self.model.magazines[head - 1].next.load(SeqCst);
        self.commit(&self.shard.filled, next)?;
        Ok(Ok(head - 1))
    }

    /// Puts a full magazine on the shard's list.
    fn list_push(&mut self, magazine: usize) -> Result<Result<(), Refused>, Aborted> {
        self.begin();
        self.step()?;
        if self.sealed() {
            self.end();
            return Ok(Err(Refused::Sealed));
        }
        self.step()?;
        let head = self.shard.filled.0.load(SeqCst);
        // The magazine is exclusively ours, so a repeated store is harmless.
        self.model.magazines[magazine].next.store(head, SeqCst);
        self.commit(&self.shard.filled, magazine + 1)?;
        Ok(Ok(()))
    }

    /// Takes the magazine of a header out, whatever it holds, and leaves none.
    fn take_out(&mut self, header: usize) -> Option<usize> {
        let seen = self.shard.headers[header].0.load(SeqCst);
        if seen == DUMMY {
            return None;
        }
        let taken = matches!(self.replace(header, seen, DUMMY), Ok(Ok(())));
        if taken {
            self.model.claim(magazine_of(seen));
        }
        taken.then_some(seen)
    }

    /// Takes the loaded magazine out.
    fn unload(&mut self) {
        if let Some(top) = self.take_out(LOADED) {
            self.model.to_depot(top);
        }
    }

    /// Moves a magazine from one header to the other, which has none; else to the depot.
    fn carry(&mut self, from: usize, to: usize) {
        let Some(top) = self.take_out(from) else { return };
        self.model.disclaim(magazine_of(top));
        if !matches!(self.replace(to, DUMMY, top), Ok(Ok(()))) {
            self.model.claim(magazine_of(top));
            self.model.to_depot(top);
        }
    }

    fn alloc(&mut self) -> usize {
        for _ in 0..PATIENCE {
            match self.pop(LOADED) {
                Err(Aborted) => {}
                Ok(Ok(block)) => return self.model.hand_out(block),
                Ok(Err(seen)) => {
                    match self.pop(PARKED) {
                        Ok(Ok(block)) => return self.model.hand_out(block),
                        // What is parked goes back, and the next round takes it from there.
                        Ok(Err(top)) if top != DUMMY => {
                            self.carry(PARKED, LOADED);
                            continue;
                        }
                        Ok(Err(_)) | Err(Aborted) => {}
                    }
                    let found = match self.list_pop() {
                        Ok(Ok(magazine)) => {
                            self.model.claim(magazine);
                            Some(top(magazine, CAPACITY))
                        }
                        Ok(Err(Refused::Sealed)) => break,
                        Ok(Err(Refused::Differs)) | Err(Aborted) => self.model.take_from_depot(|top| count_of(top) > 0),
                    };
                    let Some(new) = found else { break };
                    self.install(seen, new);
                }
            }
        }
        let block = self.model.central.lock().expect("no thread panicked").pop();
        self.model.hand_out(block.expect("the central layer holds a block for everybody"))
    }

    fn free(&mut self, block: usize) {
        self.model.take_back(block);
        for _ in 0..PATIENCE {
            match self.push(LOADED, block) {
                Err(Aborted) => {}
                Ok(Ok(())) => return,
                Ok(Err(seen)) => {
                    if let Ok(Ok(())) = self.push(PARKED, block) {
                        return;
                    }
                    let Some(new) = self.model.take_from_depot(|top| count_of(top) < CAPACITY) else { break };
                    self.install(seen, new);
                }
            }
        }
        self.model.central.lock().expect("no thread panicked").push(block);
    }

    /// Exchanges the magazine that was seen for one of ours; puts away whichever of the two is ours afterwards.
    fn install(&mut self, seen: usize, new: usize) {
        self.model.disclaim(magazine_of(new));
        if let Ok(Ok(())) = self.replace(LOADED, seen, new) {
            if seen == DUMMY {
                return;
            }
            let old = magazine_of(seen);
            self.model.claim(old);
            if count_of(seen) == CAPACITY {
                self.model.disclaim(old);
                if let Ok(Ok(())) = self.list_push(old) {
                    return;
                }
                self.model.claim(old);
            }
            self.model.to_depot(seen);
        } else {
            self.model.claim(magazine_of(new));
            self.model.to_depot(new);
        }
    }
}

impl Model {
    fn new(fault: Fault) -> Self {
        let magazines: Vec<Magazine> = (0..MAGAZINES)
            .map(|_| Magazine {
                slots: [AtomicUsize::new(0), AtomicUsize::new(0)],
                next: AtomicUsize::new(NO_MAGAZINE),
                owned: AtomicBool::new(false),
            })
            .collect();
        // Shard 0 starts with a full magazine loaded and another in its list; shard 1 with the dummy. The rest is in
        // the depot, empty, and the other blocks in the central layer, with one more per thread for its last resort.
        for (slot, block) in [(0, 0), (1, 1)] {
            magazines[0].slots[slot].store(block, SeqCst);
            magazines[1].slots[slot].store(block + 2, SeqCst);
        }
        for magazine in &magazines[2..] {
            magazine.owned.store(true, SeqCst);
        }
        let shard = |header, filled| Shard {
            headers: [Word::new(header), Word::new(DUMMY)],
            filled: Word::new(filled),
            seal: Word::new(0),
            vcpu: Mutex::new(()),
        };
        Self {
            fault,
            magazines,
            shards: vec![shard(top(0, CAPACITY), 1 + 1), shard(DUMMY, NO_MAGAZINE)],
            runners: (0..THREADS)
                .map(|_| Runner { section: AtomicUsize::new(0), aborted: AtomicUsize::new(0) })
                .collect(),
            depot: Mutex::new((2..MAGAZINES).map(|magazine| top(magazine, 0)).collect()),
            central: Mutex::new((4..BLOCKS + THREADS * OPERATIONS).collect()),
            in_use: (0..BLOCKS + THREADS * OPERATIONS).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn claim(&self, magazine: usize) {
        assert!(!self.magazines[magazine].owned.swap(true, SeqCst), "magazine {magazine} is owned twice");
    }

    fn disclaim(&self, magazine: usize) {
        assert!(self.magazines[magazine].owned.swap(false, SeqCst), "magazine {magazine} was taken from its owner");
    }

    fn hand_out(&self, block: usize) -> usize {
        assert!(!self.in_use[block].swap(true, SeqCst), "block {block} is handed out twice");
        block
    }

    fn take_back(&self, block: usize) {
        assert!(self.in_use[block].swap(false, SeqCst), "block {block} was free already");
    }

    fn take_from_depot(&self, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let mut depot = self.depot.lock().expect("no thread panicked");
        let index = depot.iter().position(|top| wanted(*top))?;
        Some(depot.swap_remove(index))
    }

    fn to_depot(&self, top: usize) {
        self.depot.lock().expect("no thread panicked").push(top);
    }

    /// Aborts every section that is running and waits until each has noticed or ended.
    fn fence(&self) {
        let running: Vec<usize> = self.runners.iter().map(|runner| runner.section.load(SeqCst)).collect();
        for (runner, section) in self.runners.iter().zip(&running).filter(|(_, section)| *section % 2 == 1) {
            runner.aborted.store(*section, SeqCst);
        }
        for (runner, section) in self.runners.iter().zip(&running).filter(|(_, section)| *section % 2 == 1) {
            while runner.section.load(SeqCst) == *section {
                thread::yield_now();
            }
        }
    }

    /// The allocator's own protocol; a fault leaves one of its two fences out.
    fn drain(&self) {
        let places: Vec<&Shard> = self.shards.iter().collect();
        let mut old = [[0; HEADERS]; VCPUS];
        let mut fences = 0;
        let fence = || {
            fences += 1;
            let left_out = match self.fault {
                Fault::NoFirstFence => 1,
                Fault::NoSecondFence => 2,
                _ => 0,
            };
            if fences != left_out {
                self.fence();
            }
            true
        };
        let fenced = protocol::drain(&places, &mut old, DUMMY, fence, |_, taken| match taken {
            Taken::List(mut head) => {
                while head != NO_MAGAZINE {
                    let next = self.magazines[head - 1].next.load(SeqCst);
                    self.claim(head - 1);
                    self.to_depot(top(head - 1, CAPACITY));
                    head = next;
                }
            }
            Taken::Top(old) => {
                self.claim(magazine_of(old));
                self.to_depot(old);
            }
        });
        assert!(fenced && fences == 2, "a drain takes two fences");
    }

    /// After all threads have ended: every magazine and every block is in exactly one place.
    fn settle(&self) {
        let mut tops = self.depot.lock().expect("no thread panicked").clone();
        for shard in &self.shards {
            tops.extend(shard.headers.iter().map(|header| header.0.load(SeqCst)).filter(|&top| top != DUMMY));
            let mut head = shard.filled.0.load(SeqCst);
            while head != NO_MAGAZINE {
                tops.push(top(head - 1, CAPACITY));
                assert!(tops.len() <= MAGAZINES, "a list of magazines is a circle");
                head = self.magazines[head - 1].next.load(SeqCst);
            }
        }
        let mut magazines: Vec<usize> = tops.iter().map(|top| magazine_of(*top)).collect();
        magazines.sort_unstable();
        assert_eq!(magazines, (0..MAGAZINES).collect::<Vec<_>>(), "a magazine is lost or in two places");
        let mut blocks = self.central.lock().expect("no thread panicked").clone();
        for top in tops {
            let slots = &self.magazines[magazine_of(top)].slots;
            blocks.extend(slots.iter().take(count_of(top)).map(|slot| slot.load(SeqCst)));
        }
        blocks.sort_unstable();
        assert_eq!(blocks, (0..self.in_use.len()).collect::<Vec<_>>(), "a block is lost or in two places");
    }
}

/// One execution: threads on vCPUs allocate and free, a drainer drains.
fn execution(fault: Fault) {
    let model = Arc::new(Model::new(fault));
    let mut threads: Vec<_> = (0..THREADS)
        .map(|index| {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                let mut held = Vec::new();
                for _ in 0..OPERATIONS {
                    let mut running = Running::new(&model, index);
                    if thread_rng().gen_bool(0.15) {
                        running.unload();
                    }
                    if thread_rng().gen_bool(0.15) {
                        running.carry(LOADED, PARKED);
                    }
                    // Runs of allocations and runs of frees, so that tops reach both ends.
                    if held.is_empty() || thread_rng().gen_bool(0.6) {
                        held.push(running.alloc());
                    } else if let Some(block) = held.pop() {
                        running.free(block);
                    }
                }
                for block in held {
                    Running::new(&model, index).free(block);
                }
            })
        })
        .collect();
    let drainer = Arc::clone(&model);
    threads.push(thread::spawn(move || (0..DRAINS).for_each(|_| drainer.drain())));
    for thread in threads {
        thread.join().expect("no thread panicked");
    }
    model.settle();
}

/// Schedules to try: random ones, and those of probabilistic concurrency testing, which favour few switches at
/// adverse places (Burckhardt et al., "A randomized scheduler with probabilistic guarantees of finding bugs", 2010).
fn explore(fault: Fault, schedules: usize) {
    shuttle::check_random(move || execution(fault), schedules);
    shuttle::check_pct(move || execution(fault), schedules, 4);
}

/// Whether the checker finds that the protocol fails without this part.
fn found(fault: Fault) -> bool {
    // The checker reports by panicking; its report is expected and would only confuse the log.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = std::panic::catch_unwind(|| explore(fault, 60_000));
    std::panic::set_hook(hook);
    outcome.is_err()
}

/// The protocol as it is holds in every schedule tried.
#[test]
fn sealed_drain_loses_and_doubles_nothing() {
    explore(Fault::None, 20_000);
}

/// Each part is needed: left out, it is missed. One test, since the panic hook belongs to the process.
#[test]
fn no_part_of_the_protocol_can_be_left_out() {
    for (fault, name) in [
        (Fault::NoFirstFence, "the fence after sealing"),
        (Fault::NoSecondFence, "the fence after the exchange"),
        (Fault::SealIgnored, "the seal"),
        (Fault::ReplaceBlind, "the compare of replace"),
        (Fault::NoAbort, "the abort of sections"),
    ] {
        assert!(found(fault), "the checker did not miss {name}");
        println!("without {name}: violation found");
    }
}
