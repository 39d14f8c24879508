//! Compiles the C side of the tests: a library that uses rseq by itself in the same process (`foreign/`).

fn main() {
    for file in ["foreign/foreign.c", "foreign/area.h", "foreign/sequences.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // Bundled into this package's library; a binary that names none of its functions does not get it.
    cc::Build::new().file("foreign/foreign.c").std("gnu11").warnings_into_errors(true).compile("foreign");
}
