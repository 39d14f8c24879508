//! The allocation functions of C and C++ on the heap of `alloc-core`, as `librseqalloc.so` and `librseqalloc.a`.
//!
//! ```text
//! LD_PRELOAD=/usr/local/lib/librseqalloc.so program
//! cc program.c -L/usr/local/lib -lrseqalloc
//! ```
//!
//! `malloc` and what belongs to it is in [`standard`], the operators `new` and `delete` in [`cxx`], what asks for or
//! prints figures in [`figures`], the library's own functions (`include/rseqalloc.h`) in [`own`], `vfork` and the
//! constructor in [`process`]. The heap, and how a block without a size finds its way back, is in [`alloc_core::c`].
//!
//! What is promised:
//!
//! - Every allocation function of glibc and of the C++ standard is there, so that none of the C library's own is left
//!   to meet a block of this heap. Blocks of Rust's `RseqAlloc` in the same library may be freed by `free`.
//! - Nothing on the way of an allocation or a free uses Rust's standard library, a thread-local of Rust's, or the C
//!   library's heap. The first call may be the dynamic linker's, before any constructor ran.
//! - Under secure execution (`AT_SECURE`) the environment variable `RSEQ_ALLOC` is ignored.
//! - Once loaded the library stays: `dlclose` does not unload it.
//!
//! What is not: a throwing new handler is not caught by the `nothrow` forms of `new` (the process ends as when an
//! exception leaves a `noexcept` function), and no exception can be thrown where libstdc++ is not in the process.
//! In the static library, handlers of `pthread_atfork` that shared libraries' constructors install must not allocate
//! unless something allocated before.

pub mod cxx;
pub mod figures;
pub mod own;
pub mod process;
pub mod standard;
mod text;
