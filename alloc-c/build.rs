//! How the shared library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // The number changes when the interface of `rseqalloc.h` does.
        "-Wl,-soname,librseqalloc.so.0",
        // Blocks, fork handlers and the kernel's registrations outlive every `dlclose`.
        "-Wl,-z,nodelete",
        // Lazy binding would run the dynamic linker in the middle of an allocation.
        "-Wl,-z,now",
        // The fork handlers come before those of other libraries' constructors, which may allocate in theirs.
        "-Wl,-z,initfirst",
        // The static library names glibc's rseq symbols, of version 2.35. The shared one has other ways to find them,
        // and should load where there are none.
        "-Wl,--defsym=__rseq_offset=0",
        "-Wl,--defsym=__rseq_size=0",
        "-Wl,--defsym=__rseq_flags=0",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
