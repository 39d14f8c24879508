//! Linux restartable sequences, the thin layer: who registered this thread, which fields of `struct rseq` may be
//! trusted, commit sequences, and the fences that go with them.
//!
//! A restartable sequence is a short run of instructions that ends in one plain store. If the thread is preempted,
//! migrated or interrupted by a signal before that store, the kernel sends it to an abort handler instead. Data
//! that belongs to a CPU, or to a *concurrency id* (`mm_cid`, which no two running threads of a process share),
//! can so be changed without a lock and without an atomic instruction.
//!
//! # What it does
//!
//! - [`mode()`] decides once per process whether rseq can be had and how; [`ensure_thread`] does the same for the
//!   calling thread. Where libc registered every thread (glibc 2.35 and later), its registration is shared. Where
//!   nobody did (musl, glibc with `glibc.pthread.rseq=0`), each thread is registered in a thread-local block of
//!   this crate on first use, and unregistered before its thread-local storage goes away.
//! - [`features::plan`] is the rule for the *effective feature size*, a pure function of what libc and the
//!   auxiliary vector say. A field is usable if `feature_size >= offsetofend(struct rseq, field)`; the accessors of
//!   [`FeatureSize`] are exactly that test. So `mm_cid` works on a kernel that has it, however old the libc is.
//! - [`sequence`] has the commit sequences, indexed by `cpu_id` or `mm_cid`. Each gives up after a bounded number
//!   of aborts, so nothing spins for ever under a debugger.
//! - [`own_sequence`] is a page on how to write another one.
//! - [`membarrier`] makes sections that run in other threads abort or finish.
//! - [`self_test`] tries whether the kernel aborts what it should.
//!
//! # Contract
//!
//! - No field that belongs to the kernel is ever written while an area is registered; the one field that is, is
//!   `rseq_cs`. Registrations by libc are neither replaced nor removed.
//! - Nothing here allocates, takes a lock, panics or changes `errno`, with two exceptions, on the first call of a
//!   process or thread only: `dlsym`, used where the program was started by naming the loader on the command line,
//!   takes the loader's lock and may allocate; `pthread_setspecific` may allocate. A nested call out of an allocator is
//!   answered with [`Unavailable::Busy`] at once.
//! - Any errno from the kernel means "not available" and is kept as the reason.
//!
//! # Limits
//!
//! - A child that shares its parent's memory (`vfork`, raw `clone` with `CLONE_VM`) reads its parent's ids, and no
//!   check can notice. It must not run sequences; POSIX allows it next to nothing anyway. `fork` and `posix_spawn`
//!   are fine.
//! - Code with sequences must stay mapped: a thread's `rseq_cs` may still point at it. A shared library that
//!   carries this crate has to be linked with `-z nodelete` or pin itself. The same goes for the exit hook.
//! - A thread of a libc without rseq support that comes here for the first time from the last round of its
//!   thread-specific data destructors stays registered until it exits.
//! - arm64 kernels from 6.19 to 7.0.13 do not abort a section after a preemption that resumes on the same CPU. There
//!   [`mode()`] tries it once, by [`self_test`], and refuses such a kernel.
//! - A checkpoint that is restored on another kernel (CRIU) keeps the decisions of the old one; the README of the
//!   crate lists what that breaks.
//!
//! # Sources
//!
//! The kernel's [restartable sequences documentation](https://docs.kernel.org/userspace-api/rseq.html),
//! `include/uapi/linux/rseq.h`, [`getauxval(3)`](https://man7.org/linux/man-pages/man3/getauxval.3.html),
//! [`membarrier(2)`](https://man7.org/linux/man-pages/man2/membarrier.2.html), and the
//! [glibc manual](https://sourceware.org/glibc/manual/latest/html_node/Restartable-Sequences.html).
//!
//! # Example
//!
//! ```
//! match rseq_sys::mode() {
//!     Ok(mode) => println!("{mode}"), // mm_cid, registered by libc, feature size 28 (libc says 20)
//!     Err(reason) => println!("no rseq: {reason}"),
//! }
//! ```
#![no_std]

#[cfg(test)]
extern crate std;

#[cfg(not(target_os = "linux"))]
compile_error!("restartable sequences exist on Linux only");

pub mod abi;
mod arch;
pub mod features;
mod ids;
pub mod membarrier;
mod mode;
pub mod own_sequence;
pub mod probe;
mod registration;
pub mod self_test;
pub mod sequence;
mod signals;

pub use abi::Errno;
pub use arch::{HAVE_SEQUENCES, LOADS_IN_ORDER, prefetch_to_write, set_private_id, with_thread_words};
pub use features::{FeatureSize, Registrar};
pub use ids::possible_ids;
pub use mode::{IndexKind, Mode, ModeWithIndex, Unavailable};
pub use registration::{call_at_thread_exit, current_mode, ensure_thread, mode, thread_is_registered};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
