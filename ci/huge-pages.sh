#!/usr/bin/env bash
# Measures what transparent huge pages do, in each of the system's modes (always, madvise, never) and with each setting of
# the option thp, and prints a table. The mode is the whole machine's: it is changed for the time of the measurements, by
# root, and put back however this ends.
#
#     ci/huge-pages.sh [MODE...]          default: always madvise never
#
# THP="system off": only these settings.
# KHUGEPAGED=SECONDS: survivors and holes alone, left to khugepaged for so long after the decay, with khugepaged at full speed.
set -euo pipefail
cd "$(dirname "$0")/.."

switch=/sys/kernel/mm/transparent_hugepage/enabled
khugepaged=/sys/kernel/mm/transparent_hugepage/khugepaged
[ -w "$switch" ] || {
    echo "huge-pages: $switch cannot be written; this needs root and a kernel with huge pages" >&2
    exit 1
}

target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release -p alloc-core --example huge_pages --example index
program=$target/release/examples/huge_pages
index=$target/release/examples/index

before=$(sed 's/.*\[\(.*\)\].*/\1/' "$switch")
sleeps=$(cat $khugepaged/scan_sleep_millisecs)
scans=$(cat $khugepaged/pages_to_scan)
restore() {
    echo "$before" >"$switch"
    echo "$sleeps" >$khugepaged/scan_sleep_millisecs
    echo "$scans" >$khugepaged/pages_to_scan
}
trap restore EXIT
trap 'exit 130' INT TERM HUP

modes=("$@")
[ $# -gt 0 ] || modes=(always madvise never)
for mode in "${modes[@]}"; do
    echo "$mode" >"$switch"
    echo "=== $mode, $(date +%T)"
    for thp in ${THP:-system on off}; do
        export RSEQ_ALLOC=thp=$thp
        if [ -n "${KHUGEPAGED:-}" ]; then
            echo 100 >$khugepaged/scan_sleep_millisecs
            echo 262144 >$khugepaged/pages_to_scan
            echo "thp=$thp $("$program" survivors "$KHUGEPAGED")"
            echo "thp=$thp $("$program" holes "$KHUGEPAGED")"
            continue
        fi
        echo "thp=$thp $("$program" survivors)"
        echo "thp=$thp $("$program" holes)"
        echo "thp=$thp $("$program" threads)"
        echo "thp=$thp $("$program" growth)"
        echo "thp=$thp index $("$program" run "$index")"
    done
    restore
    echo "=== $mode ends, $(date +%T)"
done
