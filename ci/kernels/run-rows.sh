#!/bin/sh
# What is run for each row of the table of ci/kernels.sh, on the host and in the guests alike (there by busybox).
#
#     run-rows.sh BINARIES LIBC...
#
# BINARIES holds a folder of programs for each LIBC: glibc-dynamic, glibc-static, glibc-2.41, musl-static. LIBC may also be
# glibc-untuned, which is glibc-dynamic with glibc's own registration switched off. For each LIBC all programs are run:
# the probe, every test of rseq-sys, and of the allocator the tests foreign and stress.
#
# Environment: RSEQ_SYS_TEST_PERCENT and STRESS_* as the tests know them; PROGRAM_LIMIT, seconds after which a program
# counts as hung (300); LEAVE_OUT, programs that are not run, separated by commas; STORM_CPUS and STRESS_CPUS, on
# which CPUs programs run that have timers in every thread, if not on all: the others, and the stress test.
#
# Everything a program prints is shown. Lines for the table begin with "@row":
#
#     @row begin LIBC KERNEL CPUS
#     @row mode LIBC TEXT             what the probe says in its line "mode: "
#     @row stress LIBC TEXT           the mode that the allocator chose
#     @row end LIBC PROGRAMS PASSED FAILED SKIPPED OPERATIONS ABORTS SECONDS
set -u

binaries=${1:?usage: run-rows.sh BINARIES LIBC...}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Seconds since the machine started.
now() {
    cut -d' ' -f1 /proc/uptime
}

# Runs one program into $work/log. A program that ends in any other way than with status 0 has failed at least once,
# whatever it printed: it may have crashed before it could count.
run() {
    printf -- '--- %s: %s\n' "$libc" "$*"
    started=$(now)
    timeout -k 5 "${PROGRAM_LIMIT:-300}" "$@" >"$work/log" 2>&1 </dev/null
    status=$?
    cat "$work/log"
    printf -- '--- %s: %s: status %d after %s s\n' "$libc" "$1" "$status" \
        "$(awk -v from="$started" '{ printf "%.1f", $1 - from }' /proc/uptime)"
    programs=$((programs + 1))
}

# Runs a program on some CPUs, or on all if none are named.
run_on() {
    if [ -n "$1" ]; then
        run taskset -c "$@"
    else
        shift
        run "$@"
    fi
}

# Counts what libtest ("test result: ok. 3 passed; 0 failed; …") or the tests' own harness ("3 passed, 0 failed") says
# at the end (a test may print what a child of its said), and the tests that say they skipped something.
count() {
    set -- "$(awk '
        /^test result: / || /^[0-9]+ passed, [0-9]+ failed/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed = $(i - 1)
                if ($i ~ /^failed/) failed = $(i - 1)
            }
        }
        END { print passed + 0, failed + 0 }' "$work/log")"
    here_passed=${1% *}
    here_failed=${1#* }
    if [ "$here_failed" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$here_passed" -eq 0 ]; }; then
        here_failed=1
    fi
    passed=$((passed + here_passed))
    failed=$((failed + here_failed))
    skipped=$((skipped + $(grep -c 'skipped:' "$work/log")))
}

# The number before a word in the line "stress: 1 operations in 1.0 s (0.00 million/s), 1 aborts, …".
stressed() {
    awk -v word="$1" '/^stress: [0-9]+ operations in / {
        for (i = 3; i <= NF; i++) if ($i == word || $i == word ",") { print $(i - 1); exit }
    }' "$work/log"
}

row() {
    programs=0 passed=0 failed=0 skipped=0 operations=0 aborts=0
    began=$(cut -d. -f1 /proc/uptime)
    printf '@row begin %s %s %s\n' "$libc" "$(uname -r)" "$(nproc)"

    run "$binaries/$build/probe"
    mode=$(sed -n 's/^mode: *//p' "$work/log")
    printf '@row mode %s %s\n' "$libc" "$mode"
    # That rseq cannot be used here is an answer, too, and the table knows where it is the right one.
    case $status-$mode in
    0-* | 1-none:*) ;;
    *) failed=$((failed + 1)) ;;
    esac

    for program in "$binaries/$build"/rseq_sys.*; do
        case ,${LEAVE_OUT:-}, in
        *,"${program##*/}",*)
            printf -- '--- %s: %s left out\n' "$libc" "$program"
            continue
            ;;
        esac
        if [ "${program##*/}" = rseq_sys.attack ]; then
            run_on "${STORM_CPUS:-}" "$program" --show-output
        else
            run "$program" --show-output
        fi
        count
    done
    run_on "${STORM_CPUS:-}" "$binaries/$build/foreign"
    count
    # One run in the mode that is chosen here; its other modes are the other rows.
    STRESS_CHILD=1 run_on "${STRESS_CPUS:-}" "$binaries/$build/stress"
    count
    operations=$(stressed operations)
    aborts=$(stressed aborts)
    printf '@row stress %s %s\n' "$libc" "$(sed -n 's/^stress: .* CPUs\{0,1\}, //p' "$work/log")"

    printf '@row end %s %d %d %d %d %s %s %d\n' "$libc" "$programs" "$passed" "$failed" "$skipped" \
        "${operations:-0}" "${aborts:-0}" $(($(cut -d. -f1 /proc/uptime) - began))
}

for libc; do
    build=$libc
    unset GLIBC_TUNABLES
    if [ "$libc" = glibc-untuned ]; then
        build=glibc-dynamic
        export GLIBC_TUNABLES=glibc.pthread.rseq=0
    fi
    row
done
