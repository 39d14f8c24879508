# shellcheck shell=bash
# shellcheck disable=SC2154 # what is not assigned here is in ci/suites.sh
# Part of ci/suites.sh: jemalloc's tests, from the crate tikv-jemalloc-sys, with a stand-in for their harness
# (ci/suites/jemalloc/test). A test is a function of a file.

jemalloc_fetch() {
    fetch_crates
}

jemalloc_names() {
    local folder file
    folder=$(crate tikv-jemalloc-sys)/jemalloc/test
    (
        cd "$folder" || exit
        find unit integration stress analyze -name '*.c' -o -name '*.cpp' | sort | while read -r file; do
            sed -nE "s|^ *TEST_BEGIN\((.*)\).*|${file%.*}:\1|p" "$file" | grep . || printf '%s\n' "${file%.*}"
        done
    )
}

jemalloc_build() {
    local file=$1 program=$2 source with=compile extra=()
    source=$(crate tikv-jemalloc-sys)/jemalloc/test/$file
    if [ -e "$source.cpp" ]; then
        source+=.cpp with=compile_cxx
        extra=(-std=gnu++17 -fpermissive)
    else
        source+=.c
        extra=(-std=gnu11)
    fi
    [ "$form" = long ] || extra+=(-DSUITES_SHORT)
    "$with" "$program" -D_GNU_SOURCE "${extra[@]}" -I"$root/ci/suites/jemalloc" "$source"
    printf '%s\n' "$program"
}
