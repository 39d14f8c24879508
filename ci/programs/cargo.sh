# cargo and rustc on a workspace that is generated here: a library of many modules, a procedural macro, a build script,
# and a program with threads, which is run as well. The binaries are the same to the byte.
#
# The rustc of rustup has jemalloc in it and uses that whatever is preloaded. cargo, the build script, the linker and
# the program that is built do use the library.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
own_malloc=(rustc)
workers=("cargo 1" "rustc 3" "build-script-build 1" "shapes 1")

# The toolchain's own programs, not the links that choose one.
sysroot=$(PATH=$callers_path HOME=$callers_home rustc --print sysroot || true)
needs=("$sysroot/bin/cargo" "$sysroot/bin/rustc" /usr/bin/cc)
packages=(gcc)

version() {
    "$sysroot/bin/cargo" --version | cut -d ' ' -f 1,2
}

prepare() {
    mkdir -p source/macros/src source/src
    printf '%s\n' '[package]' 'name = "shapes"' 'version = "0.1.0"' 'edition = "2021"' '[dependencies]' \
        'macros = { path = "macros" }' '[workspace]' 'members = ["macros"]' >source/Cargo.toml
    printf '%s\n' '[package]' 'name = "macros"' 'version = "0.1.0"' 'edition = "2021"' '[lib]' 'proc-macro = true' \
        >source/macros/Cargo.toml
    cp "$programs/cargo-macros.rs" source/macros/src/lib.rs
    cp "$programs/cargo-build.rs" source/build.rs
    cp "$programs/cargo-main.rs" source/src/main.rs
}

run() {
    cp -r "$input/source" source
    export CARGO_HOME=$PWD/cargo-home RUSTC=$sysroot/bin/rustc CARGO_TARGET_DIR=$PWD/target
    (cd source && "$sysroot/bin/cargo" build --offline --release --jobs 2)
    target/release/shapes >output/printed
    cp target/release/shapes output/binary
}
