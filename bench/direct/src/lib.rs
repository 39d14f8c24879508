//! The allocators that can be called beside each other in one process, as [`Contender`]s.
//!
//! None of them is the global allocator. alloc-core is there twice: inlined into the loops as far as the build allows,
//! and behind a call, as `__rust_alloc` is in the default release profile. The peers in C and C++ are always behind a
//! call. tcmalloc runs as it comes, that is with caches of threads wherever glibc has registered rseq.

use std::alloc::{GlobalAlloc, Layout, System};

use alloc_core::RseqAlloc;
use bench_workloads::loops::{Layouts, Loop, Timed};
use bench_workloads::subjects::FORGOTTEN;

/// The loops on one allocator.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    /// What criterion calls it.
    pub name: &'static str,
    /// A loop, ready to run.
    pub on: fn(Loop, Layouts) -> Timed,
}

/// Every allocator of this build, ours first.
pub const ALL: &[Contender] = &[
    Contender { name: "rseq", on: |each, layouts| each.on(Inlined, layouts) },
    Contender { name: "rseq, called", on: |each, layouts| each.on(Called, layouts) },
    #[cfg(feature = "jemalloc")]
    Contender { name: "jemalloc", on: |each, layouts| each.on(tikv_jemallocator::Jemalloc, layouts) },
    #[cfg(feature = "mimalloc")]
    Contender { name: "mimalloc3", on: |each, layouts| each.on(Mimalloc, layouts) },
    #[cfg(feature = "snmalloc")]
    Contender { name: "snmalloc", on: |each, layouts| each.on(snmalloc_rs::SnMalloc, layouts) },
    #[cfg(feature = "tcmalloc")]
    Contender { name: "tcmalloc", on: |each, layouts| each.on(Tcmalloc, layouts) },
    #[cfg(feature = "rpmalloc")]
    Contender { name: "rpmalloc", on: |each, layouts| each.on(Rpmalloc, layouts) },
    Contender { name: "glibc", on: |each, layouts| each.on(System, layouts) },
];

/// No allocator: what the frame of a loop costs.
pub const FLOOR: Contender = Contender { name: "floor", on: |each, layouts| each.on(FORGOTTEN, layouts) };

/// A value that can be copied, which calls an allocator that cannot. `$inline` says how.
macro_rules! subject {
    ($(#[$meta:meta])* $name:ident, $inline:ident, $type:ty, $value:expr) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        struct $name;

        $(#[$meta])*
        impl $name {
            #[inline(always)]
            fn allocator() -> &'static $type {
                static VALUE: $type = $value;
                &VALUE
            }
        }

        $(#[$meta])*
        // SAFETY: every method passes its arguments to an allocator that keeps this contract.
        unsafe impl GlobalAlloc for $name {
            #[inline($inline)]
            unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
                // SAFETY: the caller keeps the contract, which is the same there.
                unsafe { Self::allocator().alloc(layout) }
            }

            #[inline($inline)]
            unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
                // SAFETY: as in `alloc`.
                unsafe { Self::allocator().dealloc(block, layout) }
            }

            #[inline($inline)]
            unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
                // SAFETY: as in `alloc`.
                unsafe { Self::allocator().alloc_zeroed(layout) }
            }

            #[inline($inline)]
            unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
                // SAFETY: as in `alloc`.
                unsafe { Self::allocator().realloc(block, layout, new_size) }
            }
        }
    };
}

subject!(Inlined, always, RseqAlloc, RseqAlloc::new());
subject!(Called, never, RseqAlloc, RseqAlloc::new());
subject!(
    #[cfg(feature = "mimalloc")]
    Mimalloc,
    always,
    mimalloc::MiMalloc,
    mimalloc::MiMalloc
);
subject!(
    #[cfg(feature = "tcmalloc")]
    Tcmalloc,
    always,
    tcmalloc_better::TCMalloc,
    tcmalloc_better::TCMalloc
);
subject!(
    #[cfg(feature = "rpmalloc")]
    Rpmalloc,
    always,
    rpmalloc::RpMalloc,
    rpmalloc::RpMalloc
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_runs_loops_of_every_kind() {
        for contender in ALL {
            for name in ["pairs/64", "bursts/50/random", "zeroed/4096", "exchange/64"] {
                for layouts in [Layouts::AtRunTime, Layouts::Constant] {
                    let timed = (contender.on)(name.parse().unwrap(), layouts);
                    assert!((timed.run)(3).as_nanos() > 0, "{} on {}", name, contender.name);
                }
            }
        }
    }
}
