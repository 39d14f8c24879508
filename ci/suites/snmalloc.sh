# shellcheck shell=bash
# shellcheck disable=SC2154 # what is not assigned here is in ci/suites.sh
# Part of ci/suites.sh: snmalloc's tests, from the crate snmalloc-sys, on headers that make its functions the standard
# ones (ci/suites/snmalloc). A test is a program.

snmalloc_fetch() {
    fetch_crates
}

snmalloc_names() {
    local file
    for file in "$(crate snmalloc-sys)"/upstream/src/test/*/*/*.cc; do
        file=${file%.cc}
        printf '%s\n' "${file##*/test/}"
    done
}

# SNMALLOC_USE_WAIT_ON_ADDRESS is what snmalloc's cmake finds out on Linux.
snmalloc_flags=(-std=gnu++20 -DSNMALLOC_USE_WAIT_ON_ADDRESS=1 -I"$out/snmalloc" -I"$root/ci/suites/snmalloc"
    -I"$crates/snmalloc-sys/upstream/src")
[ "$(uname -m)" != x86_64 ] || snmalloc_flags+=(-mcx16)

# snmalloc's headers take a compiler some seconds, so they are compiled once.
snmalloc_prepare() {
    mkdir -p "$out/snmalloc"
    printf '#include <test/snmalloc_testlib.h>\n' >"$out/snmalloc/all.h"
    logged "$out/snmalloc/all.log" g++ "${flags[@]}" "${snmalloc_flags[@]}" -x c++-header "$out/snmalloc/all.h" \
        -o "$out/snmalloc/all.h.gch"
}

snmalloc_build() {
    local file=$1 program=$2 source=$2.cc
    # Natural alignment, and where a block starts that a pointer points into, are promises of snmalloc's own.
    sed -E -e 's/natural_alignment\(size\)/suites_alignment(size)/' -e '/^ *TEST\(test_(remaining_bytes|external_pointer)\);/ d' \
        -e '/^ *test_external_pointer_large\(\);/ d' -e '/^void test_(remaining_bytes|external_pointer)\(/,/^}/ d' \
        "$(crate snmalloc-sys)/upstream/src/test/$file.cc" >"$source"
    compile_cxx "$program" "${snmalloc_flags[@]}" -include all.h "$source" -latomic
    printf '%s\n' "$program"
}
