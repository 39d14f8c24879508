#!/usr/bin/env bash
# Proof that the stress test bites: builds it against commit sequences and a drain protocol with one deliberate fault
# each, and demands that it fails on every one of them within LIMIT seconds, and passes without a fault.
#
# The faults are in the sources, under cfg(rseq_fault = "NAME"):
#
#   start_late      the section starts only after the id and the header have been read
#   commit_early    the commit comes before the last check
#   no_descriptor   the section is never announced to the kernel
#   replace_blind   a magazine is replaced without comparing what is there
#   drain_once      magazines are taken out of shards with one membarrier instead of two
#
# The cfg is given to the members of the workspace only, by a wrapper around rustc, so that all dependencies are shared
# with the ordinary build.
#
# Usage: ci/faults.sh [FAULT...]      one line per fault: the seconds until it was caught, and how it showed
set -euo pipefail
cd "$(dirname "$0")/.."

LIMIT=60
# How long the test runs where nothing is to be found.
CLEAN_SECONDS=20
FAULTS=(start_late commit_early no_descriptor replace_blind drain_once)
if [ $# -gt 0 ]; then
    FAULTS=("$@")
fi

out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/faults
mkdir -p "$out"

# The build failed.
broken() {
    cat "$out/build.log"
    exit 1
}

# Prints the path of the stress test's binary, built with the fault $1, or without one.
build() {
    local fault=${1:-}
    if [ -n "$fault" ]; then
        local wrapper=$out/rustc-$fault
        printf '#!/bin/sh\nexec "$@" --cfg %s\n' "'rseq_fault=\"$fault\"'" >"$wrapper.new"
        chmod +x "$wrapper.new"
        mv "$wrapper.new" "$wrapper"
        export RUSTC_WORKSPACE_WRAPPER=$wrapper
    fi
    cargo test --release -p integration --test stress --no-run --message-format=json 2>"$out/build.log" |
        sed -n 's/.*"executable":"\([^"]*\/stress-[^"]*\)".*/\1/p' | tail -n 1 | grep .
}

# Runs the binary $1 in hunting mode for at most $2 seconds, output to $3.
hunt() {
    STRESS_HUNT=1 STRESS_SECONDS=$2 RSEQ_ALLOC=budget=256K RUST_BACKTRACE=0 \
        timeout --signal=KILL $(($2 + 20)) "$1" >"$3" 2>&1
}

failed=0
started=$SECONDS
binary=$(build) || broken
if hunt "$binary" "$CLEAN_SECONDS" "$out/none.log"; then
    printf 'faults: none           passes for %d s, as it must\n' "$CLEAN_SECONDS"
else
    printf 'faults: none           FAILS although nothing is wrong:\n'
    cat "$out/none.log"
    failed=1
fi

for fault in "${FAULTS[@]}"; do
    binary=$(build "$fault") || broken
    begin=$(date +%s%N)
    status=0
    # The subshell keeps the shell's own report of a killed child out of the output.
    (hunt "$binary" "$LIMIT" "$out/$fault.log") 2>/dev/null || status=$?
    millis=$((($(date +%s%N) - begin) / 1000000))
    how=$(grep -a -m 1 -E 'CORRUPTED|panicked|rseq-alloc:|lost|twice|stress: 0x' "$out/$fault.log" | cut -c 1-160 || true)
    seconds=$((millis / 1000)).$(printf '%03d' $((millis % 1000)))
    if [ "$status" -eq 0 ]; then
        printf 'faults: %-14s NOT CAUGHT within %s s\n' "$fault" "$seconds"
        failed=1
    elif [ "$status" -eq 137 ] && [ "$millis" -ge $(((LIMIT + 19) * 1000)) ]; then
        printf 'faults: %-14s HUNG, no verdict after %s s\n' "$fault" "$seconds"
        failed=1
    elif [ "$millis" -ge $(((LIMIT + 1) * 1000)) ]; then
        printf 'faults: %-14s caught only after %s s: %s\n' "$fault" "$seconds" "$how"
        failed=1
    else
        printf 'faults: %-14s caught in %s s: %s\n' "$fault" "$seconds" "${how:-exit status $status}"
    fi
done
printf 'faults: %d s in all\n' $((SECONDS - started))
exit $failed
