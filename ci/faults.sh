#!/usr/bin/env bash
# Proof that the tests bite: builds them against commit sequences and a drain protocol with one deliberate fault each,
# and demands that they fail on every one of them within LIMIT seconds, and pass without a fault.
#
# The faults are in the sources, under cfg(rseq_fault = "NAME"):
#
#   start_late      the section starts only after the id and the header have been read
#   commit_early    the commit comes before the last check
#   no_descriptor   the section is never announced to the kernel
#   bad_signature   the word before the abort handler is not the one that the thread was registered with
#   replace_blind   a magazine is replaced without comparing what is there
#   drain_once      magazines are taken out of shards with one membarrier instead of two
#   no_aborts       the section of the self-test is never announced, as if the kernel aborted nothing
#
# The allocator's stress test has to catch them all. The tests of rseq-sys that attack sequences, and stop them at every
# instruction, each have to catch the first four, which are faults of the sequences themselves. With no_aborts it is the
# crate that has to notice: its test of the self-test then demands that rseq is refused.
#
# The cfg is given to the members of the workspace only, by a wrapper around rustc, so that all dependencies are shared
# with the ordinary build. A build that fails, a test that cannot be started and a test that skips prove nothing and
# fail this script.
#
# Usage: ci/faults.sh [FAULT...]      one line per fault and test: the seconds until it was caught, and how it showed
set -euo pipefail
cd "$(dirname "$0")/.."

LIMIT=60
# How long the stress test runs where nothing is to be found.
CLEAN_SECONDS=10
# How much the attack does, of its usual work.
PERCENT=50
FAULTS=(start_late commit_early no_descriptor bad_signature replace_blind drain_once no_aborts)
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

# The tests that have to catch the fault $1.
tests_for() {
    case $1 in
        replace_blind | drain_once) echo stress ;;
        no_aborts) echo self_test ;;
        *) echo stress attack every_instruction ;;
    esac
}

# Builds the tests named by $2... with the fault $1, or without one if that is empty; their paths go to $out/NAME.path.
build() {
    local fault=$1 test args=()
    shift
    if [ -n "$fault" ]; then
        local wrapper=$out/rustc-$fault
        printf '#!/bin/sh\nexec "$@" --cfg %s\n' "'rseq_fault=\"$fault\"'" >"$wrapper.new"
        chmod +x "$wrapper.new"
        mv "$wrapper.new" "$wrapper"
        export RUSTC_WORKSPACE_WRAPPER=$wrapper
    fi
    for test in "$@"; do
        args+=(--test "$test")
    done
    # Of all default members, so that what none of them changes is the ordinary build's.
    cargo test --release "${args[@]}" --no-run --message-format=json \
        2>"$out/build.log" >"$out/build.json" || broken
    for test in "$@"; do
        sed -n "s/.*\"executable\":\"\([^\"]*\/$test-[^\"]*\)\".*/\1/p" "$out/build.json" | tail -n 1 |
            grep . >"$out/$test.path" || broken
    done
}

# Runs the test $1, of which the binary was built last, for at most $2 seconds, output to $3.
hunt() {
    STRESS_HUNT=1 STRESS_SECONDS=$2 RSEQ_ALLOC=budget=256K RSEQ_SYS_TEST_PERCENT=$PERCENT RUST_BACKTRACE=0 \
        timeout --signal=KILL $(($2 + 20)) "$(cat "$out/$1.path")" --nocapture >"$3" 2>&1
}

# Whether the log $2 of the test $1, which passed, shows that it did something.
did_something() {
    case $1 in
        stress) true ;;
        attack) grep -q -a ' operations in ' "$2" ;;
        every_instruction) grep -q -a ' restarts' "$2" ;;
    esac
}

# What gave the fault away, from the log $1.
symptom() {
    local known='CORRUPTED|rseq-alloc:|hung|lost|twice|stress: 0x|wrong result|not aborted|announces no|ended on its way'
    grep -a -m 1 -E "$known" "$1" || grep -a -m 1 'panicked' "$1" || true
}

failed=0
started=$SECONDS
report() {
    printf 'faults: %-14s %-18s %s\n' "$@"
}

read -r -a all <<<"$(tests_for all)"
build "" "${all[@]}"
for test in "${all[@]}"; do
    log=$out/none-$test.log
    begin=$SECONDS
    if ! hunt "$test" "$CLEAN_SECONDS" "$log"; then
        report none "$test" "FAILS although nothing is wrong:"
        cat "$log"
        failed=1
    elif ! did_something "$test" "$log"; then
        report none "$test" "SKIPS, which proves nothing:"
        cat "$log"
        failed=1
    else
        report none "$test" "passes in $((SECONDS - begin)) s, as it must"
    fi
done

for fault in "${FAULTS[@]}"; do
    read -r -a tests <<<"$(tests_for "$fault")"
    build "$fault" "${tests[@]}"
    for test in "${tests[@]}"; do
        log=$out/$fault-$test.log
        begin=$(date +%s%N)
        status=0
        # The subshell keeps the shell's own report of a killed child out of the output.
        (hunt "$test" "$LIMIT" "$log") 2>/dev/null || status=$?
        millis=$((($(date +%s%N) - begin) / 1000000))
        how=$(symptom "$log" | sed 's/^ *//' | cut -c 1-120)
        seconds=$((millis / 1000)).$(printf '%03d' $((millis % 1000)))
        if [ "$fault" = no_aborts ]; then
            if [ "$status" -eq 0 ] && grep -q -a DoesNotAbort "$log"; then
                report "$fault" "$test" "noticed in $seconds s, and rseq refused"
            else
                report "$fault" "$test" "NOT NOTICED:"
                cat "$log"
                failed=1
            fi
        elif [ "$status" -eq 0 ]; then
            report "$fault" "$test" "NOT CAUGHT within $seconds s"
            failed=1
        elif [ "$status" -eq 137 ] && [ "$millis" -ge $(((LIMIT + 19) * 1000)) ]; then
            report "$fault" "$test" "HUNG, no verdict after $seconds s"
            failed=1
        elif [ "$status" -ge 124 ] && [ "$status" -le 127 ]; then
            report "$fault" "$test" "COULD NOT BE RUN: $(tail -n 1 "$log")"
            failed=1
        elif [ "$millis" -ge $(((LIMIT + 1) * 1000)) ]; then
            report "$fault" "$test" "caught only after $seconds s: $how"
            failed=1
        else
            report "$fault" "$test" "caught in $seconds s: ${how:-exit status $status}"
        fi
    done
done
printf 'faults: %d s in all\n' $((SECONDS - started))
exit $failed
