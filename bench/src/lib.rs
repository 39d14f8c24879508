//! What the benchmarks share: the allocators, the loops that are timed, and the statistics.
//!
//! - [`contender`]: the allocators by name. A loop is compiled once for each of them, with static dispatch; a table of
//!   function pointers then lets the runners treat all alike.
//! - [`single`]: one thread; pairs of malloc and free, and bursts.
//! - [`exchange`]: one thread allocates, another frees.
//! - [`parked`]: many threads that allocated, freed and now sleep; in processes of their own, because resident memory
//!   and `#[global_allocator]` belong to a process.
//! - [`figures`]: medians, and the search for a fitting number of iterations.
//!
//! Three ways of running them: `cargo bench -p bench --bench pairs`, the same with `parked` (criterion; many samples
//! and a history of each figure), and `cargo run --release -p bench --bin ratios` (everything interleaved in one run,
//! which is what a comparison on a machine with other work needs). All peers are built from their crates' sources, for
//! which `ci/install-peers.sh` installs the tools: a C and a C++ compiler, make and cmake.
//!
//! What the numbers are: times of calls to [`GlobalAlloc`](std::alloc::GlobalAlloc) methods in the profile of the
//! build. alloc-core is Rust with `#[inline]` on its fast path, so these loops contain it, as a caller would under fat
//! LTO; the C and C++ peers are always behind a call. [`contender::OURS_CALLED`] is alloc-core behind a call too, which
//! is what `Box` and `Vec` get in the default release profile.

pub mod contender;
pub mod exchange;
pub mod figures;
pub mod parked;
pub mod single;
