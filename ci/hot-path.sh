#!/usr/bin/env bash
# Counts the instructions on the allocator's hit path and fails when there are more than promised.
#
# Sizes known only at run time, default release profile: `__rust_alloc` at most 25 instructions, `__rust_dealloc` 24.
# A constant 64-byte layout, fat LTO: inlined into the callers `box_64` and `drop_64`, at most 20 and 19.
# The C library: `malloc` and `operator new` at most 19, `free` and `operator delete`, which find the class themselves, 23;
# sizes above 1 KiB, and ids in the field `cpu_id`, have longer paths: at most 42 and 28.
# No call and no lock prefix in any of them. What a hit path is: hot-path/src/bin/count_hot_path/main.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -m)" != x86_64 ]; then
    echo "hot-path: counts are defined for x86-64 only, nothing to do on $(uname -m)"
    exit 0
fi

target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release -p hot-path --bin hot_path --bin count_hot_path
cargo build --quiet --profile lto -p hot-path --no-default-features --bin hot_path

status=0
"$target/release/hot_path" >/dev/null
"$target/release/count_hot_path" "$target/release/hot_path" __rust_alloc=25 __rust_dealloc=24 || status=1
"$target/lto/hot_path" >/dev/null
"$target/release/count_hot_path" "$target/lto/hot_path" box_64=20 drop_64=19 || status=1
cargo build --quiet --release -p alloc-c
"$target/release/count_hot_path" "$target/release/librseqalloc.so" malloc=42/19 free=28/23 _Znwm=42/19 _ZdlPv=28/23 || status=1
exit $status
