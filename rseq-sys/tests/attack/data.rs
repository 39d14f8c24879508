//! Per-vCPU data to be attacked: counters, linked lists and pointer stacks, and the objects that those move about.

use crate::storm::{Data, Harvest};
use rseq_sys::membarrier;
use rseq_sys::sequence::{Outcome, Stacks, Vcpu};
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A word on cache lines of its own.
#[repr(align(128))]
struct Word(AtomicUsize);

impl Word {
    fn zeroed(n: usize) -> Vec<Word> {
        (0..n).map(|_| Word(AtomicUsize::new(0))).collect()
    }
}

/// A counter for each vCPU.
pub(crate) struct Counters {
    vcpu: Vcpu,
    counters: Vec<Word>,
    /// For operations that gave up.
    shared: AtomicUsize,
    gave_up: AtomicUsize,
}

impl Counters {
    pub(crate) fn new(vcpu: Vcpu, ids: usize) -> Self {
        Counters { vcpu, counters: Word::zeroed(ids), shared: AtomicUsize::new(0), gave_up: AtomicUsize::new(0) }
    }

    pub(crate) fn sum(&self) -> usize {
        let counted: usize = self.counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        counted + self.shared.load(Ordering::Relaxed)
    }

    /// Adds 1: seven times in eight in one step, else as one would do a maximum.
    #[inline]
    fn count(&self, round: usize) {
        loop {
            let id = self.vcpu.id();
            let counter = &self.counters[id as usize].0;
            let outcome = if round.is_multiple_of(8) {
                let old = counter.load(Ordering::Relaxed);
                // SAFETY: a valid word that only sequences for this id change.
                unsafe { self.vcpu.compare_store(id, counter.as_ptr(), old, old + 1) }
            } else {
                // SAFETY: as above.
                unsafe { self.vcpu.add(id, counter.as_ptr(), 1) }
            };
            match outcome {
                Outcome::Committed => return,
                Outcome::Moved | Outcome::Differs => {}
                Outcome::GaveUp => break,
            }
        }
        self.gave_up.fetch_add(1, Ordering::Relaxed);
        self.shared.fetch_add(1, Ordering::Relaxed);
    }
}

impl Data for Counters {
    fn step(&self, round: usize, _: &mut Vec<usize>) {
        self.count(round);
    }

    fn interrupt(&self, pocket: &AtomicUsize) {
        self.count(pocket.fetch_add(1, Ordering::Relaxed));
    }

    fn gave_up(&self) -> usize {
        self.gave_up.load(Ordering::Relaxed)
    }
}

/// Something that is at one place at a time: in a list or a stack, or owned by a thread.
pub(crate) struct Object {
    owned: AtomicBool,
    next: AtomicUsize,
}

/// All objects of an attack. They stay valid throughout, since a section may read the link of one that is long gone.
pub(crate) struct Objects(Vec<Object>);

impl Objects {
    /// So many, all owned.
    pub(crate) fn new(n: usize) -> Self {
        Objects((0..n).map(|_| Object { owned: AtomicBool::new(true), next: AtomicUsize::new(0) }).collect())
    }

    fn addresses(&self) -> Vec<usize> {
        self.0.iter().map(|object| std::ptr::from_ref(object).expose_provenance()).collect()
    }

    fn at(&self, address: usize) -> &Object {
        let index = address.wrapping_sub(self.0.as_ptr().addr()) / size_of::<Object>();
        let object = self.0.get(index).expect("this address is not that of an object");
        assert_eq!(std::ptr::from_ref(object).addr(), address, "this address is not that of an object");
        object
    }

    /// Notes that `address` came out of a list or stack, and returns it.
    fn take(&self, address: usize) -> usize {
        assert!(!self.at(address).owned.swap(true, Ordering::Relaxed), "an object was handed out twice");
        address
    }

    /// Notes that `address` is about to go into one.
    fn give(&self, address: usize) {
        assert!(self.at(address).owned.swap(false, Ordering::Relaxed), "an object is given back twice");
    }

    /// Fails if something is in hands that is not owned.
    pub(crate) fn are_held(&self, harvest: &Harvest) {
        for object in harvest.held.iter().flatten().chain(&harvest.pockets).filter(|object| **object != 0) {
            assert!(self.at(*object).owned.load(Ordering::Relaxed), "an object is in hands and at another place");
        }
    }

    /// Fails if one is missing, after everything was taken out of lists and stacks.
    pub(crate) fn all_are_here(&self) {
        let missing = self.0.iter().filter(|object| !object.owned.load(Ordering::Relaxed)).count();
        assert_eq!(missing, 0, "objects were lost");
    }
}

/// What lists and stacks have in common: objects go in and come out.
pub(crate) trait Pool: Sync {
    /// An object, or None if the current vCPU has none.
    fn pop(&self) -> Option<usize>;

    /// Takes an object in; false if the current vCPU has no room for it.
    fn push(&self, object: usize) -> bool;

    /// A handler takes an object one time and puts it back the next, so that what it interrupts finds another top.
    /// Every fourth time it puts it back at once: the same top, with another history.
    fn take_or_put_back(&self, pocket: &AtomicUsize) {
        let held = pocket.load(Ordering::Relaxed);
        if held != 0 {
            if self.push(held) {
                pocket.store(0, Ordering::Relaxed);
            }
        } else if let Some(object) = self.pop() {
            let back = (object / size_of::<Object>()).is_multiple_of(4) && self.push(object);
            pocket.store(if back { 0 } else { object }, Ordering::Relaxed);
        }
    }
}

/// Linked lists, one for each vCPU.
pub(crate) struct Lists<'a> {
    vcpu: Vcpu,
    heads: Vec<Word>,
    objects: &'a Objects,
    /// Some sequences demand that this is 0, which it always is.
    seal: AtomicUsize,
    gave_up: AtomicUsize,
}

impl<'a> Lists<'a> {
    /// With all objects on one list.
    pub(crate) fn new(vcpu: Vcpu, ids: usize, objects: &'a Objects) -> Self {
        let zero = || AtomicUsize::new(0);
        let lists = Lists { vcpu, heads: Word::zeroed(ids), objects, seal: zero(), gave_up: zero() };
        for address in objects.addresses() {
            objects.give(address);
            objects.at(address).next.store(lists.heads[0].0.swap(address, Ordering::Relaxed), Ordering::Relaxed);
        }
        lists
    }

    /// Takes everything out; nobody else uses the lists any longer.
    pub(crate) fn drain(&self) {
        for head in &self.heads {
            while head.0.load(Ordering::Relaxed) != 0 {
                let object = self.objects.take(head.0.load(Ordering::Relaxed));
                head.0.store(self.objects.at(object).next.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }
}

impl Pool for Lists<'_> {
    fn pop(&self) -> Option<usize> {
        let next = offset_of!(Object, next);
        loop {
            let id = self.vcpu.id();
            let head = self.heads[id as usize].0.as_ptr();
            // SAFETY: the head is changed by sequences for this id only; it holds 0 or the address of an object, and
            // objects outlive the lists.
            let popped = unsafe {
                if id.is_multiple_of(2) {
                    self.vcpu.load_store(id, head, 0, next)
                } else {
                    self.vcpu.compare_load_store(id, head, 0, next, self.seal.as_ptr(), 0)
                }
            };
            match popped {
                Ok(object) => return Some(self.objects.take(object)),
                Err(Outcome::Differs) => return None,
                Err(Outcome::GaveUp) => _ = self.gave_up.fetch_add(1, Ordering::Relaxed),
                Err(_) => {}
            }
        }
    }

    fn push(&self, object: usize) -> bool {
        self.objects.give(object);
        loop {
            let id = self.vcpu.id();
            let head = &self.heads[id as usize].0;
            // Whatever happens to the list in between, if its first object is this one at the commit, the link is
            // right.
            let first = head.load(Ordering::Relaxed);
            self.objects.at(object).next.store(first, Ordering::Relaxed);
            // SAFETY: the head is changed by sequences for this id only.
            match unsafe { self.vcpu.compare_store(id, head.as_ptr(), first, object) } {
                Outcome::Committed => return true,
                Outcome::Moved | Outcome::Differs => {}
                Outcome::GaveUp => _ = self.gave_up.fetch_add(1, Ordering::Relaxed),
            }
        }
    }
}

impl Data for Lists<'_> {
    fn step(&self, round: usize, held: &mut Vec<usize>) {
        // Bursts, so that lists grow and run empty.
        if (round / 7).is_multiple_of(2) {
            held.extend(self.pop());
        } else if let Some(object) = held.pop() {
            self.push(object);
        }
    }

    fn interrupt(&self, pocket: &AtomicUsize) {
        self.take_or_put_back(pocket);
    }

    fn gave_up(&self) -> usize {
        self.gave_up.load(Ordering::Relaxed)
    }
}

/// 128 bytes for each id, of which the first word is the header.
pub(crate) const SHIFT: u32 = 7;
/// Bytes of a stack, of which the first word is the sentinel.
pub(crate) const STACK: usize = 256;
/// Places in a stack.
const SLOTS: usize = STACK / size_of::<usize>() - 1;

/// A table and the functions that `stack_functions` made for it.
pub(crate) struct Table {
    pub(crate) stacks: &'static Stacks<SHIFT, STACK>,
    pub(crate) pop: unsafe fn(usize) -> *mut u8,
    pub(crate) push: unsafe fn(usize, usize) -> bool,
}

/// Pointer stacks, one for each vCPU. Never freed, as the table asks.
pub(crate) struct StackPool<'a> {
    table: Table,
    vcpu: Vcpu,
    headers: &'static [Word],
    objects: &'a Objects,
    /// For those that found no room.
    overflow: Mutex<Vec<usize>>,
    /// Empty stacks for whoever takes a whole one.
    spares: Mutex<Vec<usize>>,
    seal: AtomicUsize,
    gave_up: AtomicUsize,
}

#[repr(align(256))]
struct Stack([AtomicUsize; SLOTS + 1]);
const _: () = assert!(size_of::<Stack>() == STACK && align_of::<Stack>() == STACK);

/// The top of an empty stack.
fn empty_stack() -> usize {
    let stack = Box::leak(Box::new(Stack([const { AtomicUsize::new(0) }; SLOTS + 1])));
    stack.0[1..].as_ptr().expose_provenance()
}

/// What is below `top`, which is that of a stack; 0 if that is empty.
fn topmost(top: usize) -> usize {
    // SAFETY: the callers walk stacks that are never freed; below every top is a slot or the sentinel.
    unsafe { &*std::ptr::with_exposed_provenance::<AtomicUsize>(top - size_of::<usize>()) }.load(Ordering::Relaxed)
}

impl<'a> StackPool<'a> {
    pub(crate) fn new(table: Table, vcpu: Vcpu, ids: usize, objects: &'a Objects) -> Self {
        // The two before the first are those of threads that have no id.
        let headers = &mut Word::zeroed(ids + 2).leak()[2..];
        let base = headers.as_mut_ptr().cast();
        _ = membarrier::register();
        // SAFETY: every test opens a table of its own, once; there are headers for all ids, and they are never freed.
        assert!(unsafe { table.stacks.open(vcpu, base) });
        headers.iter().for_each(|header| header.0.store(empty_stack(), Ordering::Relaxed));
        let overflow = objects.addresses();
        let zero = || AtomicUsize::new(0);
        let (overflow, spares) = (Mutex::new(overflow), Mutex::new((0..4).map(|_| empty_stack()).collect()));
        StackPool { table, vcpu, headers, objects, overflow, spares, seal: zero(), gave_up: zero() }
    }

    /// Exchanges the current vCPU's stack for an empty one and takes all objects out of it.
    fn take_all(&self, held: &mut Vec<usize>) {
        let Some(spare) = self.spares.lock().expect("nobody panics with it").pop() else { return };
        let id = self.vcpu.id();
        let header = &self.headers[id as usize].0;
        let mut top = header.load(Ordering::Relaxed);
        // SAFETY: the header belongs to this id; the spare stack belongs to this thread.
        let outcome = unsafe { self.vcpu.replace(id, header.as_ptr(), top, self.seal.as_ptr(), spare) };
        let empty = match outcome {
            Outcome::Committed => {
                while topmost(top) != 0 {
                    held.push(self.objects.take(topmost(top)));
                    top -= size_of::<usize>();
                }
                top
            }
            _ => spare,
        };
        self.spares.lock().expect("nobody panics with it").push(empty);
    }

    /// Takes everything out; nobody else uses the stacks any longer.
    pub(crate) fn drain(&self) {
        for header in self.headers {
            let mut top = header.0.load(Ordering::Relaxed);
            while topmost(top) != 0 {
                self.objects.take(topmost(top));
                top -= size_of::<usize>();
            }
        }
    }
}

impl Pool for StackPool<'_> {
    fn pop(&self) -> Option<usize> {
        // SAFETY: the headers are at displacement 0; stacks are never freed.
        let mut taken = unsafe { (self.table.pop)(0) };
        while taken.is_null() {
            // SAFETY: as above.
            match unsafe { self.table.stacks.retry_pop(0) } {
                Ok(object) => taken = object,
                Err(Outcome::GaveUp) => _ = self.gave_up.fetch_add(1, Ordering::Relaxed),
                Err(_) => return None,
            }
        }
        Some(self.objects.take(taken.addr()))
    }

    fn push(&self, object: usize) -> bool {
        self.objects.give(object);
        // SAFETY: as in `pop`; an object's address is not 0.
        if unsafe { (self.table.push)(0, object) } {
            return true;
        }
        loop {
            // SAFETY: as above.
            match unsafe { self.table.stacks.retry_push(0, object) } {
                Ok(()) => return true,
                Err(Outcome::GaveUp) => _ = self.gave_up.fetch_add(1, Ordering::Relaxed),
                Err(_) => break,
            }
        }
        self.objects.take(object);
        false
    }
}

impl Data for StackPool<'_> {
    fn step(&self, round: usize, held: &mut Vec<usize>) {
        if round % 1024 == 1023 {
            return self.take_all(held);
        }
        if (round / 5).is_multiple_of(2) && held.len() < SLOTS {
            let object = self.pop().or_else(|| self.overflow.lock().expect("nobody panics with it").pop());
            held.extend(object);
        } else if let Some(object) = held.pop()
            && !self.push(object)
        {
            self.overflow.lock().expect("nobody panics with it").push(object);
        }
    }

    fn interrupt(&self, pocket: &AtomicUsize) {
        self.take_or_put_back(pocket);
    }

    fn gave_up(&self) -> usize {
        self.gave_up.load(Ordering::Relaxed)
    }
}
