//! `GlobalAlloc`: the interface of Rust programs.

use crate::front;
use crate::limit::Limit;
use crate::options::{IndexChoice, Options};
use crate::os::huge::HugePages;
use core::alloc::{GlobalAlloc, Layout};

/// The allocator, to be used as `#[global_allocator]`.
///
/// The value holds options only; all instances share one heap. The options of the instance that serves the first
/// allocation of the process count.
///
/// ```
/// use alloc_core::{IndexChoice, RseqAlloc};
///
/// #[global_allocator]
/// static GLOBAL: RseqAlloc = RseqAlloc::new().decay_ms(5_000).index(IndexChoice::Auto);
///
/// fn main() {
///     let words: Vec<String> = ["kept", "per", "vCPU"].map(String::from).to_vec();
///     assert_eq!(words.concat(), "keptpervCPU");
///     eprintln!("{}", alloc_core::mode());
/// }
/// ```
#[derive(Debug)]
pub struct RseqAlloc {
    options: Options,
}

impl Default for RseqAlloc {
    fn default() -> Self {
        Self::new()
    }
}

impl RseqAlloc {
    /// With default options.
    pub const fn new() -> Self {
        Self { options: Options::new() }
    }

    /// What the caches are indexed by; [`IndexChoice::Auto`] by default. `RSEQ_ALLOC=index=…` overrides it.
    pub const fn index(mut self, index: IndexChoice) -> Self {
        self.options.index = index;
        self
    }

    /// Over how many milliseconds free pages go back to the operating system: 10 000 by default, 0 for at once,
    /// `u64::MAX` for never. Calls that reach a slow path drive it, and while memory waits, rare calls are made to;
    /// a program that makes none at all gives nothing back without
    /// a [`background_thread`](Self::background_thread). `RSEQ_ALLOC=decay=…` overrides it.
    pub const fn decay_ms(mut self, ms: u64) -> Self {
        self.options.decay_ms = ms;
        self
    }

    /// For how many bytes of free blocks a vCPU has room beyond one magazine of each size: 4 MiB by default.
    /// `RSEQ_ALLOC=budget=…` overrides it.
    pub const fn shard_budget(mut self, bytes: usize) -> Self {
        self.options.shard_budget = bytes;
        self
    }

    /// For how many bytes of free blocks the caches of all vCPUs together have room. By default 12 MiB for each CPU that
    /// the process may use by its affinity, or has time for by its cgroup's quota, and at least 32 MiB: one magazine of each
    /// size up to 1 KiB and a budget of 4 MiB, for as many vCPUs as can run at a time. But a process with time for two of 64 CPUs
    /// may leave blocks on all of them, and that is what this bounds. When it is reached, caches do not
    /// grow, and those that were not used for longest give theirs back for others to have some. `usize::MAX` is no limit,
    /// and less than 1 MiB counts as that. `RSEQ_ALLOC=cache=…` overrides it.
    pub const fn cache_limit(mut self, bytes: usize) -> Self {
        self.options.cache_limit = Some(bytes);
        self
    }

    /// Whether a thread of the allocator's own gives memory back, for processes that fall silent: off by default. It is
    /// created when there is something to give back, sleeps while there is nothing, has all signals blocked and is
    /// named `rseq-alloc`. `RSEQ_ALLOC=background=on` or `off` overrides it.
    pub const fn background_thread(mut self, on: bool) -> Self {
        self.options.background = on;
        self
    }

    /// Above this the caches keep a quarter of what they otherwise do, and everything that is free is given back before
    /// more memory is taken from the operating system: again whenever the process has taken another eighth. It refuses
    /// nothing. No limit by default. What counts is [`Stats::counted`](crate::Stats::counted).
    /// `RSEQ_ALLOC=soft_limit=…` overrides it.
    pub const fn soft_limit(mut self, limit: Limit) -> Self {
        self.options.soft_limit = limit;
        self
    }

    /// What would take the process above this is answered with null, after everything that is free was given back and
    /// the request was tried once more. After frees allocation works again. No limit by default. What counts is
    /// [`Stats::counted`](crate::Stats::counted). `RSEQ_ALLOC=hard_limit=…` overrides it.
    ///
    /// ```
    /// use alloc_core::{Limit, RseqAlloc};
    ///
    /// #[global_allocator]
    /// static GLOBAL: RseqAlloc =
    ///     RseqAlloc::new().soft_limit(Limit::CgroupPercent(80)).hard_limit(Limit::Bytes(1 << 30));
    ///
    /// fn main() {
    ///     assert!(Vec::<u8>::new().try_reserve(2 << 30).is_err());
    /// }
    /// ```
    pub const fn hard_limit(mut self, limit: Limit) -> Self {
        self.options.hard_limit = limit;
        self
    }

    /// What the kernel is told about transparent huge pages; [`HugePages::System`] by default. `RSEQ_ALLOC=thp=…`
    /// overrides it.
    pub const fn huge_pages(mut self, choice: HugePages) -> Self {
        self.options.huge_pages = choice;
        self
    }

    /// For tests: NUMA node and last-level cache of each CPU, both counted from 0 over all, in place of what the system
    /// says.
    #[doc(hidden)]
    pub const fn places(mut self, places: &'static [(u8, u8)]) -> Self {
        self.options.places = Some(places);
        self
    }
}

// SAFETY: blocks are aligned, disjoint and stay valid until they are freed, by the invariants of the layers below; a
// failed resize leaves the block as it was; nothing unwinds.
unsafe impl GlobalAlloc for RseqAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout's alignment is a power of two.
        unsafe { front::allocate(&self.options, layout.size(), layout.align()) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's block, allocated with this layout.
        unsafe { front::free(&self.options, block, layout.size(), layout.align()) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout's alignment is a power of two.
        unsafe { front::allocate_zeroed(&self.options, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's block, allocated with this layout; the new size is not 0.
        unsafe { front::resize(&self.options, block, layout.size(), layout.align(), new_size) }
    }
}
