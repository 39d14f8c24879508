//! How to write a sequence that this crate does not have.
//!
//! There is no code in this module. It explains the example `own_sequence`, which stands at the end and is run by the
//! tests: appending to a log of the current vCPU, for x86-64 and aarch64.
//!
//! # Before you do
//!
//! [`Vcpu`](crate::sequence::Vcpu) has compare-and-store, add and pop from a linked list, and
//! [`Stacks`](crate::sequence::Stacks) has arrays of pointers. A statistic, a free list, a reference count, a "take
//! whatever is there" can be built of these. Write assembly if several words have to agree, or if you count
//! instructions.
//!
//! A sequence cannot be written in Rust: it has to consist of known instructions between two labels, and no compiler
//! promises that.
//!
//! # What a sequence is
//!
//! ```text
//!         t = &descriptor
//!         area.rseq_cs = t          arm
//! start:                            <- start_ip; the section begins with the instruction right after the arming store
//!         area.cpu_id == id ?       is this still the vCPU whose data I am about to change?
//!         read, compute, write where nobody looks
//!         data = new                commit: one store, the last instruction of the section
//! end:                              <- start_ip + post_commit_offset
//!
//!         .long SIGNATURE
//! abort:  back to the caller        <- abort_ip
//! ```
//!
//! If the thread is preempted, moved to another CPU or about to run a signal handler, and its next instruction lies in
//! `start..end`, the kernel has it go on at `abort` instead. So does [`membarrier::fence`](crate::membarrier::fence)
//! called by another thread. Nothing is rolled back, only the instruction pointer is changed.
//!
//! # The rules
//!
//! 1. **One commit.** A single store of at most a word, naturally aligned, makes the change visible, and it is the last
//!    instruction before `end`. What is stored earlier must mean nothing until then: the free entry above the end of a
//!    log, a field of a node that is not linked yet.
//! 2. **Everything that decides lies inside.** The id is read after `start`, and so is all data that the commit depends
//!    on. An id from before is a hint for finding the data, to be compared again inside.
//! 3. **No calls, no system calls** in the section. A page fault is allowed.
//! 4. **Early ways out** are jumps to an address outside of `start..end`. They need no cleaning up: `rseq_cs` may stay
//!    set, the kernel clears it when it next looks and finds the thread elsewhere.
//! 5. **The abort handler** lies outside of the section, in an executable mapping, with
//!    [`abi::SIGNATURE`](crate::abi::SIGNATURE) in the four bytes before it; if they differ the kernel ends the process
//!    with SIGSEGV. It may rely on the stack pointer and on registers that the section does not write, and on no flag.
//! 6. **Arm again for each attempt.** The kernel clears `rseq_cs` on an abort, and a signal handler may have put
//!    another descriptor there.
//! 7. **Bound the attempts.** A debugger that single-steps aborts every one of them. Have another way, on other data
//!    (never a word that sequences commit to), with a lock or an atomic, after some number, as the sequences of this
//!    crate do after [`MAX_ABORTS`](crate::sequence::MAX_ABORTS).
//! 8. **Every writer takes part.** A word that sequences of one vCPU commit to may be written by anybody else only
//!    while no such sequence can be under way: after sealing it (with a word that every such section checks after
//!    `start`) and a [`fence`](crate::membarrier::fence), or by a sequence on that same vCPU. One atomic instruction
//!    from another CPU breaks it: the section's plain store may follow its plain load with the other's change in
//!    between.
//! 9. **Reading from outside** gives a value that was right a moment ago. Sum up counters that way, not invariants
//!    across words. Make the words atomics for Rust's sake. If the reader is to see what was stored before the commit,
//!    as with the entries of a log, load the committed word with Acquire order, and on aarch64 commit with `stlr`,
//!    which is one store as well. (The example reads when all threads have ended, which orders everything.)
//! 10. **The code stays mapped.** A sleeping thread's `rseq_cs` may point at the descriptor for as long as it
//!     sleeps, and the kernel ends the process if that memory has gone.
//!
//! # In inline assembly
//!
//! - The compiler may copy a block, so labels are numbers and each copy has its own descriptor, in a section of its
//!   own. Avoid labels of the digits 0 and 1 alone, which LLVM reads as binary numbers.
//! - The descriptor has absolute addresses, which a position-independent object relocates when it is loaded: its
//!   section is writable (`"aw"`), and no sequence may run before relocation.
//! - Inputs are `in(reg)`, never written by the section, so that they are still there after an abort. Whatever it
//!   writes is `out(reg) _`, not `lateout`, which could share a register with an input.
//! - Results: with `label` operands as below each way out is a Rust block. A value can come back in a register instead,
//!   but stable Rust does not allow both in one block.
//! - `options(nostack)` if nothing is pushed. Not `nomem`, not `preserves_flags`.
//! - On aarch64 a conditional branch reaches one MiB. Labels of the same function are near enough; an abort
//!   handler in another section comes back by a plain `b`.
//!
//! # Which area, which id
//!
//! [`Mode::area`](crate::Mode::area) is the calling thread's area. It never moves, so it may be read long before the
//! section, but it belongs to this thread: do not hand it to another, and do not keep it over an `await`. Call
//! [`ensure_thread`](crate::ensure_thread) once in each thread before. [`IndexKind::offset`](crate::IndexKind::offset)
//! is where the id stands in it. Index data of one process by either kind, but never the same data by both. Size tables
//! by the number of possible CPUs, and check the id before it is used as an index of raw memory.
//!
//! # How it is tested
//!
//! Run it from more threads than CPUs while they are moved about, with timers that interrupt at some kHz, and demand
//! exact totals; `tests/attack.rs` of this crate is a model. Then break it on purpose: let the section start after the
//! id was read, commit before the last check, leave out the arming store, spoil the signature. Tests that do not notice
//! prove nothing. `tests/every_instruction.rs` stops a thread at each instruction of each section in turn, which finds
//! in seconds what chance finds in hours.
//!
//! # The example
//!
//! Also as a file, `examples/own_sequence.rs`; `cargo run -p rseq-sys --example own_sequence` runs it.
//!
#![doc = concat!("```rust\n", include_str!("../examples/own_sequence.rs"), "\n```")]
