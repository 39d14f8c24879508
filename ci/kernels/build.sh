#!/usr/bin/env bash
# Builds the programs of ci/kernels.sh for one architecture and libc.
#
#     ci/kernels/build.sh ARCH LIBC OUT
#
# ARCH is x86_64 or aarch64, LIBC is glibc-dynamic, glibc-static or (x86_64 only) musl-static. The programs are put into
# OUT/programs/ARCH/LIBC: probe, foreign, stress, and rseq_sys.* for each test of rseq-sys. OUT/rustc-web is the target
# directory of Debian's rustc; what rustup's builds goes where cargo puts it anyway, and is shared with "cargo test".
set -euo pipefail
cd "$(dirname "$0")/../.."

arch=${1:?usage: ci/kernels/build.sh ARCH LIBC OUT}
libc=$2
out=$3
programs=$out/programs/$arch/$libc
options=(--release --quiet -p rseq-sys -p integration)

# Debian's rustc, for whose targets there is a std: as a package for aarch64, as source for musl. Nobody measures these
# programs, so what the project depends on is compiled fast rather than well, musl's std among it.
use_debians_rustc() {
    export RUSTC=/usr/bin/rustc CARGO_TARGET_DIR=$out/rustc-web
    export CARGO_PROFILE_RELEASE_DEBUG=false
    options+=(--config 'profile.release.package."*".opt-level=0')
}

# musl's std unwinds by LLVM's libunwind, which Debian has built for glibc: all that musl lacks of what it calls is the
# checked fprintf.
make_libunwind() {
    local folder=$out/musl-libunwind
    mkdir -p "$folder"
    musl-gcc -O2 -c ci/kernels/fprintf_chk.c -o "$folder/fprintf_chk.o"
    cp /usr/lib/llvm-14/lib/libunwind.a "$folder/libunwind.a.new"
    ar r "$folder/libunwind.a.new" "$folder/fprintf_chk.o"
    mv "$folder/libunwind.a.new" "$folder/libunwind.a"
    printf '%s\n' "$folder"
}

# The host's glibc. The package hot-path has nothing to do with it, but with it and the features that alloc-c wants,
# cargo arrives at the same features of what all depend on as "cargo test" does, and nothing is built twice.
share_with_cargo_test() {
    options+=(-p hot-path --features "rseq-sys/weak-libc-symbols alloc-core/weak-libc-symbols")
}

# The flag goes to the crates of this project alone, for which cargo wants to be told that unstable options are fine.
# What they depend on does not care, and is shared with the dynamic build.
link_statically() {
    local package
    export RUSTC_BOOTSTRAP=1
    options+=(-Zprofile-rustflags)
    for package in rseq-sys alloc-core integration; do
        options+=(--config "profile.release.package.$package.rustflags=[\"-Ctarget-feature=+crt-static\"]")
    done
}

case $arch-$libc in
x86_64-glibc-dynamic) share_with_cargo_test ;;
x86_64-glibc-static)
    share_with_cargo_test
    link_statically
    ;;
x86_64-musl-static)
    use_debians_rustc
    export RUSTC_BOOTSTRAP=1
    # Without backtraces, nearly half of what std consists of need not be built.
    options+=(--target x86_64-unknown-linux-musl "-Zbuild-std=std,panic_unwind,test" -Zbuild-std-features=panic-unwind)
    options+=(--config 'target.x86_64-unknown-linux-musl.linker="musl-gcc"')
    # One word for each flag; rustc would bring objects of musl that the package does not have, and musl-gcc makes no
    # static programs that can be moved.
    flags="\"-Clink-self-contained=no\", \"-L$(make_libunwind)\", \"-Clink-arg=-lgcc\", \"-Crelocation-model=static\""
    options+=(--config "target.x86_64-unknown-linux-musl.rustflags=[$flags]")
    ;;
aarch64-glibc-*)
    use_debians_rustc
    options+=(--target aarch64-unknown-linux-gnu)
    options+=(--config 'target.aarch64-unknown-linux-gnu.linker="aarch64-linux-gnu-gcc"')
    [ "$libc" != glibc-static ] || link_statically
    ;;
*)
    printf 'build.sh: no way to build for %s with %s\n' "$arch" "$libc" >&2
    exit 2
    ;;
esac

# The tests of rseq-sys, one a line, as cargo names them.
tests_of_rseq_sys() {
    cargo metadata --no-deps --format-version 1 | tr '{' '\n' |
        sed -n 's|^"kind":\["test"\].*"name":"\([^"]*\)".*"src_path":"[^"]*/rseq-sys/tests/.*|\1|p'
}

# What cargo has built, one a line: folder of the package, name of the target, path of the program.
built() {
    sed -n 's|.*"manifest_path":"[^"]*/\([^/"]*\)/Cargo.toml".*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*|\1 \2 \3|p'
}

mapfile -t tests < <(tests_of_rseq_sys)
targets=(--lib --test foreign --test stress)
for test in "${tests[@]}"; do
    targets+=(--test "$test")
done

rm -rf "$programs"
mkdir -p "$programs"
{
    cargo test "${options[@]}" "${targets[@]}" --no-run --message-format=json-render-diagnostics
    cargo build "${options[@]}" --example probe --message-format=json-render-diagnostics
} | built | while read -r package name path; do
    case $package/$name in
    rseq-sys/probe | tests/foreign | tests/stress) to=$name ;;
    rseq-sys/*) to=rseq_sys.$name ;;
    *) continue ;;
    esac
    cp "$path" "$programs/$to"
    # Symbols stay, some tests look up their own. What belongs to another machine has no debug information anyway.
    [ "$arch" != x86_64 ] || strip --strip-debug "$programs/$to"
done

for name in probe foreign stress rseq_sys.rseq_sys "${tests[@]/#/rseq_sys.}"; do
    if [ ! -x "$programs/$name" ]; then
        printf 'build.sh: %s was not built for %s with %s\n' "$name" "$arch" "$libc" >&2
        exit 1
    fi
done
