//! Commit sequences: small pieces of code that the kernel restarts when they are cut, so that data belonging to a
//! vCPU can be changed without a lock and without an atomic instruction.
//!
//! # How every sequence is built
//!
//! ```text
//!   rseq_cs = descriptor                   arm: the kernel now knows start, end and abort handler
//! start:
//!   read the id, check it, read and check the data       nothing written that another reader could mistake for state
//!   store                                  the commit: one store, the last instruction of the section
//! post_commit:
//! ```
//!
//! The kernel looks at `rseq_cs` when the thread was preempted, migrated or is about to run a signal handler, and when
//! another thread asks for it through [`crate::membarrier`]. If the instruction pointer lies in `start..post_commit`
//! it goes on at the abort handler instead.
//!
//! Where a sequence can be cut, and what each cut leaves behind:
//!
//! 1. Before the arming store: no data and no id was read, only the table's distance to the area. What it leads to
//!    instead, before the table is open and after it is closed, are ids of all ones. The section starts with the
//!    instruction right after that store, so there is no instruction that has read the id and is not covered.
//! 2. Between start and the commit: reads only, except for words that nobody reads before the commit: the slot after the
//!    top of a stack that `push` fills, and in a chain of stacks (see [`Stacks`]) the way back that is noted in the
//!    stack that a header is about to move to. The abort handler does not look at any register of the
//!    section; the inputs are in registers that the section does not write, or in the table, so a retry starts from
//!    the same inputs.
//! 3. After the commit: the section is over. `rseq_cs` stays set; the kernel clears it when it next looks and finds
//!    the instruction pointer outside.
//!
//! A nested sequence in a signal handler overwrites `rseq_cs`, but the handler's delivery has aborted ours before.
//! Every retry arms again, since the kernel clears the field on abort. The descriptor and the abort handler live as
//! long as the object they are in; an object that can be unloaded must pin itself first.
//!
//! # What bounds them
//!
//! A sequence that was aborted [`MAX_ABORTS`] times in a row gives up ([`Outcome::GaveUp`]), so that no caller spins
//! for ever under a debugger that single-steps or in a storm of signals. [`Stacks::pop`] and [`Stacks::push`] try once,
//! since they are meant to be inlined (as are the functions that [`stack_functions`](crate::stack_functions) makes for
//! a static table); their callers retry out of line through [`Stacks::retry_pop`] and [`Stacks::retry_push`].
//!
//! # Rejected
//!
//! * Not arming again while `rseq_cs` still holds the same descriptor saves a store but needs the kernel to clear it on
//!   every switch, which newer kernels do not promise.
//! * Committing with a read-modify-write instruction (`sub [top], 8`) saves an instruction but breaks whoever
//!   exchanges the word from another CPU: the plain store writes a value that was computed from what was read,
//!   so a later look tells whether the exchange or the commit came last. ([`Vcpu::add`] does commit so on x86-64, since
//!   nobody may exchange a counter from outside.)
//! * Counting aborts in a register costs an instruction on the way that is not aborted; the handler counts in memory
//!   instead, and the retry loop is Rust code out of line.
//!
//! Source: the kernel's `Documentation/userspace-api/rseq.rst` and `include/uapi/linux/rseq.h`.

use crate::arch;
use crate::mode::{IndexKind, Mode};
use core::sync::atomic::{AtomicIsize, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

#[cfg(all(target_arch = "aarch64", target_endian = "little", not(miri)))]
#[path = "aarch64.rs"]
mod imp;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[path = "x86_64.rs"]
mod imp;

mod entry;
pub mod portable;
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64", not(miri)),
    all(target_arch = "aarch64", target_endian = "little", not(miri))
)))]
use portable as imp;

pub use entry::Entry;

/// Aborts in a row after which a sequence gives up. Timer ticks and signals come thousands of instructions apart, so
/// two in a row are already rare; sixteen mean a debugger or a storm.
pub const MAX_ABORTS: u32 = 16;

/// Aborts seen by all sequences of this copy of the crate. Written by the abort handlers alone, which are cold. Public
/// for the assembly that [`stack_functions`](crate::stack_functions) places in other crates.
#[doc(hidden)]
pub static ABORTS: AtomicU64 = AtomicU64::new(0);

/// How many times a sequence of this process was aborted since it started.
///
/// ```
/// let before = rseq_sys::sequence::aborts();
/// assert!(rseq_sys::sequence::aborts() >= before);
/// ```
pub fn aborts() -> u64 {
    ABORTS.load(Ordering::Relaxed)
}

/// How one attempt at a sequence ended, as the assembly reports it; see [`Outcome`] for the meanings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Attempt {
    /// The store was made.
    Committed = 0,
    /// A compared word differed.
    Differs = 1,
    /// The thread runs on another vCPU.
    Moved = 2,
    /// The kernel aborted the section.
    Aborted = 3,
}

impl Attempt {
    /// From the status register of a sequence.
    #[cfg_attr(miri, expect(dead_code, reason = "only assembly reports a status"))]
    #[inline]
    fn from_status(status: usize) -> Self {
        match status {
            0 => Self::Committed,
            1 => Self::Differs,
            2 => Self::Moved,
            _ => Self::Aborted,
        }
    }
}

/// How a sequence ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// The store was made, on the vCPU that was asked for.
    Committed,
    /// A compared word did not hold what was expected; nothing was written.
    Differs,
    /// The thread does not run (any longer) on the vCPU that was asked for; nothing was written.
    Moved,
    /// Aborted [`MAX_ABORTS`] times in a row; nothing was written. Take a way that needs no sequence.
    GaveUp,
}

impl Outcome {
    /// Whether the store was made.
    #[inline]
    pub const fn committed(self) -> bool {
        matches!(self, Self::Committed)
    }
}

/// Runs `attempt` until it ends in something else than an abort, [`MAX_ABORTS`] times at most.
#[inline]
fn bounded(mut attempt: impl FnMut() -> Attempt) -> Outcome {
    let mut aborted = 0;
    loop {
        match attempt() {
            Attempt::Committed => return Outcome::Committed,
            Attempt::Differs => return Outcome::Differs,
            Attempt::Moved => return Outcome::Moved,
            // Opaque, or the compiler unrolls this into MAX_ABORTS copies of the section, descriptor and handler.
            Attempt::Aborted => aborted = core::hint::black_box(aborted + 1),
        }
        if aborted == MAX_ABORTS {
            return Outcome::GaveUp;
        }
    }
}

/// Where a thread finds its rseq area and, inside it, the id that indexes per-vCPU data.
///
/// The sequences below take the id that the data belongs to, so the addresses can be formed in ordinary code: read
/// [`Vcpu::id`], form the address, run the sequence with that id; [`Outcome::Moved`] says that the thread was moved in
/// between, and the caller starts again.
///
/// ```
/// use rseq_sys::{mode, sequence::{Outcome, Vcpu}};
/// static COUNTERS: [core::sync::atomic::AtomicUsize; 4096] =
///     [const { core::sync::atomic::AtomicUsize::new(0) }; 4096];
///
/// if let Ok(mode) = mode() {
///     rseq_sys::ensure_thread().unwrap();
///     let vcpu = Vcpu::new(&mode, mode.default_index());
///     loop {
///         let id = vcpu.id();
///         // SAFETY: the counter of `id` is a valid word that is changed by sequences for `id` only.
///         match unsafe { vcpu.add(id, COUNTERS[id as usize].as_ptr(), 1) } {
///             Outcome::Committed => break,
///             Outcome::Moved => continue,
///             outcome => panic!("{outcome:?}"),
///         }
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Vcpu {
    /// From this crate's thread-local block to the area in use.
    own_delta: isize,
    /// Offset of the id field inside the area.
    id_offset: usize,
}

/// A word that is always 0, for sequences with a compare to spare.
static ZERO: AtomicUsize = AtomicUsize::new(0);

impl Vcpu {
    /// The area that `mode` describes, indexed by `index`.
    ///
    /// Whether the kernel fills that field is for the caller to check: see [`crate::features::FeatureSize`].
    pub fn new(mode: &Mode, index: IndexKind) -> Self {
        Self { own_delta: mode.own_delta(), id_offset: index.offset() }
    }

    /// The id of the vCPU that the thread ran on a moment ago; only a hint outside of a sequence. All ones if the
    /// thread's own registration has not been made or was taken back.
    #[inline]
    pub fn id(self) -> u32 {
        imp::read_id(self.own_delta, self.id_offset)
    }

    /// If the thread runs on vCPU `id` and `*v` is `expect`, stores `new` to `*v`.
    ///
    /// # Safety
    /// The calling thread is registered ([`ensure_thread`](crate::ensure_thread) answered `Ok`), and the mode
    /// [has this index](Mode::has_index). `v` is a valid, aligned word, changed only by sequences that run with this `id`
    /// (or by others under a protocol that accounts for them). The id must come from the same [`Vcpu`] kind for all users
    /// of the word.
    #[inline]
    pub unsafe fn compare_store(self, id: u32, v: *mut usize, expect: usize, new: usize) -> Outcome {
        // SAFETY: the contract of this function; ZERO is a valid word that always holds 0.
        unsafe { self.compare_compare_store(id, v, expect, ZERO.as_ptr(), 0, new) }
    }

    /// If the thread runs on vCPU `id`, `*v` is `expect` and `*v2` is `expect2`, stores `new` to `*v`.
    ///
    /// # Safety
    /// As for [`Vcpu::compare_store`]; `v2` is a valid, aligned word that may be changed by anybody.
    #[inline]
    pub unsafe fn compare_compare_store(
        self,
        id: u32,
        v: *mut usize,
        expect: usize,
        v2: *const usize,
        expect2: usize,
        new: usize,
    ) -> Outcome {
        // SAFETY: the contract of this function is that of the sequence.
        bounded(|| unsafe {
            imp::compare_compare_store(self.own_delta, self.id_offset, id, v, expect, v2, expect2, new)
        })
    }

    /// If the thread runs on vCPU `id`, adds `n` to `*v`, wrapping around.
    ///
    /// # Safety
    /// As for [`Vcpu::compare_store`].
    #[inline]
    pub unsafe fn add(self, id: u32, v: *mut usize, n: usize) -> Outcome {
        // SAFETY: the contract of this function is that of the sequence.
        bounded(|| unsafe { imp::add(self.own_delta, self.id_offset, id, v, n) })
    }

    /// Pops the head of a linked list: if the thread runs on vCPU `id` and `*v` is not `unless`, takes `p = *v`, stores
    /// the word at `p + next_offset` to `*v` and returns `p`.
    ///
    /// `next` is read inside the section, so a list whose nodes are pushed with [`Vcpu::compare_store`] has no ABA.
    ///
    /// # Errors
    /// How the sequence ended if nothing was taken; [`Outcome::Differs`] means that `*v` was `unless` (an empty list).
    ///
    /// # Safety
    /// As for [`Vcpu::compare_store`]; every value that `*v` can take, other than `unless`, is an address whose word at
    /// `next_offset` can be read for as long as any thread may be inside such a sequence.
    #[inline]
    pub unsafe fn load_store(
        self,
        id: u32,
        v: *mut usize,
        unless: usize,
        next_offset: usize,
    ) -> Result<usize, Outcome> {
        // SAFETY: the contract of this function; ZERO is a valid word that always holds 0.
        unsafe { self.compare_load_store(id, v, unless, next_offset, ZERO.as_ptr(), 0) }
    }

    /// [`Vcpu::load_store`] that also demands that `*v2` is `expect2`; a difference there is reported as
    /// [`Outcome::Differs`] too.
    ///
    /// # Errors
    /// As for [`Vcpu::load_store`].
    ///
    /// # Safety
    /// As for [`Vcpu::load_store`]; `v2` is a valid, aligned word that may be changed by anybody.
    #[inline]
    pub unsafe fn compare_load_store(
        self,
        id: u32,
        v: *mut usize,
        unless: usize,
        next_offset: usize,
        v2: *const usize,
        expect2: usize,
    ) -> Result<usize, Outcome> {
        let mut taken = 0;
        let outcome = bounded(|| {
            // SAFETY: the contract of this function is that of the sequence.
            let (attempt, p) = unsafe {
                imp::compare_load_store(self.own_delta, self.id_offset, id, v, unless, next_offset, v2, expect2)
            };
            taken = p;
            attempt
        });
        if outcome.committed() { Ok(taken) } else { Err(outcome) }
    }
}

/// Pointer stacks, one header for each vCPU and displacement, at `base + (id << SHIFT) + displacement`.
///
/// A stack is an array of pointers that ends at a multiple of `STACK` bytes (a power of two); below its first slot
/// stands a 0. The header holds the address of the first free slot (`top`), which is the end for a full one; or 0 for no
/// stack at all, which sends both operations away. So memory that was never written is a table of headers in order.
///
/// ```text
///   pop:   t = *header;  t == 0: none;            r = t[-1];  r == 0: empty;                 *header = t - 1   (commit)
///   push:  t = *header;  t % STACK == 0: full or none;  t[-1] == p: twice;  t[0] = p;        *header = t + 1   (commit)
/// ```
///
/// Both form the header's address in a register and use it plainly for the load and for the commit: processors
/// forward a store to the next load without a penalty only then. What limits these sequences is the number of loads:
/// on a Zen 4 each costs 0.1 ns of the 2.2 that a pair takes, an arming store nothing, and a comparison with a limit in
/// memory as much as any other load. Hence no limit of the ids, but zeroes wherever an id may lead; no sentinel above a
/// stack, but an end that the address tells; and no table from ids to headers, whose load would also come before all
/// others.
///
/// # Chains
///
/// A header may own more than one stack: the one it points into, full ones to go on to when that is empty, and empty ones
/// for when it is full. [`Stacks::pop_chained`] and [`Stacks::push_chained`] follow them, by one sequence and with no
/// other write than the way back, so that a burst that overflows a stack costs as much as an operation and a call. They are
/// meant for the slow path of whoever inlines the plain ones. [`Vcpu::extend`] and [`Vcpu::exchange`] put in new stacks.
///
/// ```text
///   full <--- full <--- in use ---> empty ---> empty        at FULL: top of the next full stack, at EMPTY: of the next
///     0                                            0                 empty one; 0 for none
/// ```
///
/// Each stack of a chain begins at a multiple of `STACK` with a word that is its owner's, the word [`FULL`] and the
/// word [`EMPTY`]. What counts is the way from the header: along `FULL` and `EMPTY` in turn from the stack in use, along
/// `FULL` from a full one, along `EMPTY` from an empty one. The other word of those is old, and is written by the
/// section that comes from there, before its commit; so nothing is read that such a section left behind when it was cut.
///
/// The fields are read by the assembly, so their order is fixed. Before [`Stacks::open`] the id is read from a word of
/// this crate's own thread-local block that holds all ones, so a table in a `static` may be used before any set-up.
#[repr(C)]
#[derive(Debug)]
pub struct Stacks<const SHIFT: u32, const STACK: usize> {
    own_delta: AtomicIsize,
    id_offset: AtomicUsize,
    base: AtomicPtr<u8>,
}

/// Offset in a stack of a chain: where the top of its full neighbour stands.
pub const FULL: usize = 8;
/// Offset in a stack of a chain: where the top of its empty neighbour stands.
pub const EMPTY: usize = 16;

/// Room on either side of where headers are looked for before a table is open.
const MARGIN: usize = 1 << 13;
/// Words that are 0 for ever: a table that is not open leads here. Atomic, so that it takes no room in the file.
static NOTHING: [AtomicUsize; 2 * MARGIN / size_of::<usize>()] = [const { AtomicUsize::new(0) }; _];

/// Functions `pop` and `push` over a [`Stacks`] table in a `static`, with the contracts of [`Stacks::pop`] and
/// [`Stacks::push`].
///
/// On x86-64 their assembly names the static instead of taking its address in a register, which saves an instruction
/// and, in code compiled before linking, a load. The static and its users must
/// end up in the same linked object; a Rust `dylib` that others inline from does not do that.
///
/// ```
/// mod cache {
///     use rseq_sys::sequence::Stacks;
///     pub(crate) static TABLE: Stacks<12, 2048> = Stacks::new();
///     rseq_sys::stack_functions!(TABLE, 12, 2048);
/// }
/// // SAFETY: the table was never opened, so it has no headers.
/// assert!(unsafe { cache::pop(0) }.is_null());
/// // SAFETY: as above.
/// assert!(!unsafe { cache::push(0, 64) });
/// ```
#[macro_export]
macro_rules! stack_functions {
    ($table:path, $shift:expr, $stack:expr) => {
        // The assembly takes any static and any numbers: hold them to the type.
        const _: fn() -> &'static $crate::sequence::Stacks<{ $shift }, { $stack }> = || &$table;
        $crate::__rseq_stack_functions!($table, $shift, $stack);
    };
}

/// Where no assembly names statics: by address.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(miri))))]
#[doc(hidden)]
#[macro_export]
macro_rules! __rseq_stack_functions {
    ($table:path, $shift:expr, $stack:expr) => {
        /// [`pop`](rseq_sys::sequence::Stacks::pop) for this table.
        ///
        /// # Safety
        /// As there.
        #[inline(always)]
        pub(crate) unsafe fn pop(displacement: usize) -> *mut u8 {
            // SAFETY: the contract of this function.
            unsafe { $table.pop(displacement) }
        }

        /// [`push`](rseq_sys::sequence::Stacks::push) for this table.
        ///
        /// # Safety
        /// As there.
        #[inline(always)]
        pub(crate) unsafe fn push(displacement: usize, p: usize) -> bool {
            // SAFETY: the contract of this function.
            unsafe { $table.push(displacement, p) }
        }
    };
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Stacks<12, 2048>, own_delta) == 0);
    assert!(offset_of!(Stacks<12, 2048>, id_offset) == 8);
    assert!(offset_of!(Stacks<12, 2048>, base) == 16);
};

impl<const SHIFT: u32, const STACK: usize> Default for Stacks<SHIFT, STACK> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const SHIFT: u32, const STACK: usize> Stacks<SHIFT, STACK> {
    /// A closed table: every operation is sent away.
    pub const fn new() -> Self {
        const {
            assert!(1 << SHIFT <= MARGIN, "places of more than 8 KiB");
            assert!(STACK.is_power_of_two() && STACK >= 16 && STACK <= 1 << 30);
        }
        Self {
            own_delta: AtomicIsize::new(0),
            id_offset: AtomicUsize::new(arch::PRIVATE_ID),
            base: AtomicPtr::new((&raw const NOTHING).cast::<u8>().cast_mut().wrapping_add(MARGIN)),
        }
    }

    /// Says where the ids come from and where the headers are. False, and nothing is changed, if this processor needs a
    /// [fence](crate::membarrier::fence) for that and there is none.
    ///
    /// # Safety
    /// The table is new. From `base - (2 << SHIFT)` to `base + (ids << SHIFT)`, `ids` being more than any id that the
    /// kernel gives to a thread ([`possible_ids`](crate::possible_ids)), memory can be read for ever, and where
    /// there may be headers it holds 0 until they are made.
    #[must_use]
    pub unsafe fn open(&self, vcpu: Vcpu, base: *mut u8) -> bool {
        // Sections load the delta, then the offset, then the base. So each step is to be seen only by who sees those
        // before it: with the new base and the old offset the id is all ones; with the new offset and the old delta
        // it is that of the own block, which is all ones or right; with the new delta all is new.
        let in_order = || crate::LOADS_IN_ORDER || crate::membarrier::fence().is_ok();
        let old = self.base.swap(base, Ordering::Release);
        if !in_order() {
            self.base.store(old, Ordering::Release);
            return false;
        }
        self.id_offset.store(vcpu.id_offset, Ordering::Release);
        if !in_order() {
            self.id_offset.store(arch::PRIVATE_ID, Ordering::Release);
            return false;
        }
        self.own_delta.store(vcpu.own_delta, Ordering::Release);
        true
    }

    /// Has each thread use the place of its own id, [`set_private_id`](crate::set_private_id), in a process without
    /// rseq; threads that have none are sent away. Such places belong to one thread: nothing aborts its operations, so
    /// nobody else may touch the headers and stacks meanwhile, nor may a signal handler of that thread.
    ///
    /// # Safety
    /// As for [`Stacks::open`], `ids` being more than any private id; and no thread has one yet.
    pub unsafe fn open_private(&self, base: *mut u8) {
        // A thread sees this before it gives itself an id.
        self.base.store(base, Ordering::Release);
    }

    /// Sends every operation away from now on, where the areas are libc's; those that have begun end as they would
    /// have. To be called when a thread turns up that libc did not register: its ids may look valid.
    ///
    /// No use where this crate registers the threads, and no need: what is not registered has no ids there.
    pub fn close(&self) {
        self.own_delta.store(0, Ordering::Release);
    }

    /// Where the ids come from, as given to [`Stacks::open`].
    #[inline]
    pub fn vcpu(&self) -> Vcpu {
        Vcpu { own_delta: self.own_delta.load(Ordering::Acquire), id_offset: self.id_offset.load(Ordering::Relaxed) }
    }

    /// Takes the topmost pointer of the current vCPU's stack at `displacement`, in one attempt. Null means: closed,
    /// empty or aborted; [`Stacks::retry_pop`] tells them apart.
    ///
    /// # Safety
    /// The calling thread is registered, unless the table is closed or the areas are this crate's own (an unregistered one
    /// has ids of all ones). `displacement` is that of a header, below `1 << SHIFT`. The stacks that headers point at
    /// stay mapped for ever; their slots are written only by these operations or by whoever owns the stack exclusively.
    #[inline(always)]
    pub unsafe fn pop(&self, displacement: usize) -> *mut u8 {
        // SAFETY: the contract of this function is that of the sequence.
        unsafe { imp::pop::<SHIFT>(core::ptr::from_ref(self).cast(), displacement) }
    }

    /// Puts `p` on the current vCPU's stack at `displacement`, in one attempt. False means: closed, full, `p` is
    /// already the topmost pointer, or aborted; [`Stacks::retry_push`] tells them apart.
    ///
    /// # Safety
    /// As for [`Stacks::pop`]; `p` is not 0.
    #[inline(always)]
    pub unsafe fn push(&self, displacement: usize, p: usize) -> bool {
        // SAFETY: the contract of this function is that of the sequence.
        unsafe { imp::push::<SHIFT, STACK>(core::ptr::from_ref(self).cast(), displacement, p) }
    }

    /// [`Stacks::pop`], again after each abort up to [`MAX_ABORTS`].
    ///
    /// # Errors
    /// [`Outcome::Differs`]: closed or empty, [`Outcome::GaveUp`]: [`MAX_ABORTS`] attempts in a row during each of
    /// which this or another thread was aborted.
    ///
    /// # Safety
    /// As for [`Stacks::pop`].
    pub unsafe fn retry_pop(&self, displacement: usize) -> Result<*mut u8, Outcome> {
        for _ in 0..MAX_ABORTS {
            let before = aborts();
            // SAFETY: the contract of this function.
            let p = unsafe { self.pop(displacement) };
            if !p.is_null() {
                return Ok(p);
            }
            // Another thread's abort counts as ours here: one more attempt each time, and in a storm of them a give-up
            // that was not ours, which only sends the caller the slower way.
            if aborts() == before {
                return Err(Outcome::Differs);
            }
        }
        Err(Outcome::GaveUp)
    }

    /// [`Stacks::push`], again after each abort up to [`MAX_ABORTS`].
    ///
    /// # Errors
    /// [`Outcome::Differs`]: closed, full, or `p` is the topmost pointer; [`Outcome::GaveUp`]: as for
    /// [`Stacks::retry_pop`].
    ///
    /// # Safety
    /// As for [`Stacks::push`].
    pub unsafe fn retry_push(&self, displacement: usize, p: usize) -> Result<(), Outcome> {
        for _ in 0..MAX_ABORTS {
            let before = aborts();
            // SAFETY: the contract of this function.
            if unsafe { self.push(displacement, p) } {
                return Ok(());
            }
            if aborts() == before {
                return Err(Outcome::Differs);
            }
        }
        Err(Outcome::GaveUp)
    }
}

/// For stacks in chains.
impl<const SHIFT: u32, const STACK: usize> Stacks<SHIFT, STACK> {
    /// Takes the topmost pointer of the current vCPU's chain at `displacement`; if the stack in use is empty, its full
    /// neighbour is in use from then on.
    ///
    /// # Errors
    /// [`Outcome::Differs`]: closed, or none has a pointer; [`Outcome::GaveUp`].
    ///
    /// # Safety
    /// As for [`Stacks::pop`], and all stacks are in chains.
    #[inline]
    pub unsafe fn pop_chained(&self, displacement: usize) -> Result<*mut u8, Outcome> {
        let mut taken = 0;
        let outcome = bounded(|| {
            // SAFETY: the contract of this function is that of the sequence.
            let (attempt, p) =
                unsafe { imp::pop_chained::<SHIFT, STACK>(core::ptr::from_ref(self).cast(), displacement) };
            taken = p;
            attempt
        });
        if outcome.committed() { Ok(core::ptr::with_exposed_provenance_mut(taken)) } else { Err(outcome) }
    }

    /// Puts `p` on the current vCPU's chain at `displacement`; if the stack in use is full, its empty neighbour is in use
    /// from then on. [`Outcome::Differs`]: closed, all are full, or `p` is the topmost pointer of the stack in use.
    ///
    /// # Safety
    /// As for [`Stacks::push`], and all stacks are in chains.
    #[inline]
    pub unsafe fn push_chained(&self, displacement: usize, p: usize) -> Outcome {
        // SAFETY: the contract of this function is that of the sequence.
        bounded(|| unsafe { imp::push_chained::<SHIFT, STACK>(core::ptr::from_ref(self).cast(), displacement, p) })
    }
}

impl Vcpu {
    /// Replaces the stack in use of a chain by another one, which takes over its neighbours. Afterwards the old stack
    /// belongs to the caller alone, for the reasons given at [`Vcpu::replace`].
    ///
    /// # Safety
    /// As for [`Vcpu::replace`]; `expect` and `new` are tops of stacks as they are in chains.
    #[inline]
    pub unsafe fn exchange<const STACK: usize>(
        self,
        id: u32,
        header: *mut usize,
        expect: usize,
        seal: *const usize,
        new: usize,
    ) -> Outcome {
        let full = core::ptr::with_exposed_provenance(((expect - size_of::<usize>()) & !(STACK - 1)) + FULL);
        // SAFETY: the contract of this function; the stack of `expect` has that word.
        unsafe { self.replace_chained::<STACK>(id, header, expect, seal, new, full) }
    }

    /// Puts another stack in use, in front of the one that was, which is full and becomes its full neighbour.
    ///
    /// # Safety
    /// As for [`Vcpu::exchange`]; `expect` is the top of a full stack.
    #[inline]
    pub unsafe fn extend<const STACK: usize>(
        self,
        id: u32,
        header: *mut usize,
        expect: usize,
        seal: *const usize,
        new: usize,
    ) -> Outcome {
        // SAFETY: the contract of this function.
        unsafe { self.replace_chained::<STACK>(id, header, expect, seal, new, &raw const expect) }
    }

    /// See [`Vcpu::exchange`] and [`Vcpu::extend`].
    ///
    /// # Safety
    /// As there; `full` is a word that holds the new stack's full neighbour.
    #[inline]
    unsafe fn replace_chained<const STACK: usize>(
        self,
        id: u32,
        header: *mut usize,
        expect: usize,
        seal: *const usize,
        new: usize,
        full: *const usize,
    ) -> Outcome {
        #[cfg(rseq_fault = "replace_blind")]
        // SAFETY: the header is a valid word.
        let expect = {
            let _ = expect;
            unsafe { header.read_volatile() }
        };
        // SAFETY: the contract of this function.
        bounded(|| unsafe {
            imp::replace_chained::<STACK>(self.own_delta, self.id_offset, id, header, expect, seal, new, full)
        })
    }

    /// Replaces the stack of a header: if the thread runs on vCPU `id`, `*header` is still `expect` and `*seal` is 0,
    /// stores `new`. Afterwards the old stack belongs to the caller alone.
    ///
    /// Why exclusively: another thread that read the old top inside a section on this vCPU was switched out since, by
    /// which the kernel aborts it before another instruction of the section runs; the same holds for a section of this
    /// thread that a signal handler with this call interrupted. So nobody can still commit to the old stack. A slot
    /// that such a section had already filled after the top (`t[0] = p`) is ordered before this by the switch, and nobody
    /// looks there.
    ///
    /// # Safety
    /// `header` belongs to vCPU `id` of a [`Stacks`] table with the same kind of index, and can be written; `new` is the
    /// top of a stack that the caller owns exclusively; `seal` is a valid word.
    #[inline]
    pub unsafe fn replace(self, id: u32, header: *mut usize, expect: usize, seal: *const usize, new: usize) -> Outcome {
        #[cfg(rseq_fault = "replace_blind")]
        // SAFETY: the header is a valid word.
        let expect = {
            let _ = expect;
            unsafe { header.read_volatile() }
        };
        // SAFETY: the contract of this function.
        unsafe { self.compare_compare_store(id, header, expect, seal, 0, new) }
    }
}

#[cfg(test)]
mod tests;
