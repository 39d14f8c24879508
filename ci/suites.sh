#!/usr/bin/env bash
# Runs the test suites of other allocators, as far as they test malloc's standard interface, on librseqalloc.so.
#
#     ci/suites.sh [--long] [--list] [SUITE...]      glibc jemalloc mimalloc rpmalloc snmalloc; all if none is named
#     ci/suites.sh --faults [FAULT...]               the proof that the suites notice a malloc that is wrong
#
# The suites' sources are fetched into target/suites, never kept: those that crates ship by cargo, which compares them
# with ci/suites/Cargo.lock; glibc's and mimalloc's by apt-get from the machine's own Debian mirror, which checks
# signature and hashes. Each test becomes a program, or a program and the name of one of its functions, that is run once
# on the C library's malloc and once with librseqalloc.so preloaded. An object in each program (ci/suites/proof.c) ends
# it if its malloc is another one than it was told, and writes down that it looked.
#
# ci/suites/tests has a line for every test that there is in the sources: what comes out of it and why, or why it does
# not apply; --list prints it. A test without a line, a line without a test, an outcome other than the line's (better
# ones included), and a number of tests other than the lines say end in status 1. What is missing to build is installed
# by apt-get.
#
# --long leaves the counts of the heavy tests as their authors chose them. --faults runs everything on a malloc with one
# deliberate fault each (ci/suites/broken.c), and says how many tests notice; status 1 if none does.
#
# Environment: SUITES_JOBS, tests at a time (the number of CPUs, at most 4).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC2034 # for the suites' files
root=$PWD

readonly ALL_SUITES=(glibc jemalloc mimalloc rpmalloc snmalloc)
readonly ALL_FAULTS=(misaligned aligned overlap twice dirty overflow realloc usable errno free_errno fork)
# Seconds that a test may take. The longest needs about 15 on a quiet machine with two CPUs.
LIMIT=120

die() {
    printf 'suites: %s\n' "$*" >&2
    exit 2
}

form=short
action=run
words=()
for argument; do
    case $argument in
    --long) form=long LIMIT=1200 ;;
    --list) action=list ;;
    --faults) action=faults ;;
    -*) die 'usage: ci/suites.sh [--long] [--list] [SUITE...] | ci/suites.sh --faults [FAULT...]' ;;
    *) words+=("$argument") ;;
    esac
done

# The words given, or all of those that follow the first argument, which says what they are.
chosen() {
    local what=$1 word
    shift
    if [ ${#words[@]} -eq 0 ]; then
        printf '%s\n' "$@"
        return
    fi
    for word in "${words[@]}"; do
        [[ " $* " == *" $word "* ]] || die "there is no $what $word; there are: $*"
        printf '%s\n' "$word"
    done
}

suites=("${ALL_SUITES[@]}")
faults=()
if [ $action = faults ]; then
    list=$(chosen fault "${ALL_FAULTS[@]}")
    mapfile -t faults <<<"$list"
else
    list=$(chosen suite "${ALL_SUITES[@]}")
    mapfile -t suites <<<"$list"
fi

# The lines of ci/suites/tests for a suite: NAME OUTCOME REASON…
lines_of() {
    awk -v suite="$1" '!/^#/ && NF && $1 == suite { sub(/^[^ ]+ +/, ""); print }' ci/suites/tests
}

if [ $action = list ]; then
    for suite in "${suites[@]}"; do
        lines_of "$suite" | sed "s/^/$suite /"
    done
    exit 0
fi

out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/suites
mkdir -p "$out"
library=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release/librseqalloc.so
jobs=${SUITES_JOBS:-$(nproc)}
[ -n "${SUITES_JOBS:-}" ] || [ "$jobs" -le 4 ] || jobs=4

# shellcheck source-path=SCRIPTDIR
. ci/debian.sh

# Runs a command with its output in a log, which is shown if it fails.
logged() {
    local log=$1
    shift
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        die "failed: $*"
    fi
}

# What every test is compiled with. No builtins: the compiler would remove pairs of malloc and free.
flags=(-O1 -g -w -pthread -fno-builtin -fno-strict-aliasing)

# compile PROGRAM FLAG-OR-FILE...: C. compile_cxx the same for C++.
compile() {
    local program=$1
    shift
    gcc "${flags[@]}" "$@" "$out/proof.o" -o "$program" -lm -ldl
}
compile_cxx() {
    local program=$1
    shift
    g++ "${flags[@]}" "$@" "$out/proof.o" -o "$program" -lm -ldl
}

# shellcheck source=ci/suites/fetch.sh
. ci/suites/fetch.sh
for suite in "${suites[@]}"; do
    # Each defines SUITE_fetch; SUITE_names, which prints the names of all tests in the sources; SUITE_prepare, if there
    # is something to build before the tests; SUITE_build FILE PROGRAM, which builds the program for the tests of a file
    # and prints how it is started (see run_test).
    # shellcheck source=/dev/null # one of several
    . "ci/suites/$suite.sh"
done

# Every test of the sources has a line: its own, or one of its file or with a pattern, which both can only be for tests
# that do not apply. And every line has a test.
check_lines() {
    local suite=$1 name outcome rest line
    local -A own=() used=()
    local shared=()
    while read -r name outcome rest; do
        case $outcome in
        pass | libc-fails | libc-varies | ours-fails | both-fail | no) ;;
        *) die "ci/suites/tests: $suite $name: there is no outcome '$outcome'" ;;
        esac
        [ -z "${own[$name]:-}" ] || die "ci/suites/tests: $suite $name: two lines"
        [ "$outcome" = pass ] || [ -n "$rest" ] || die "ci/suites/tests: $suite $name: no reason"
        own[$name]=$outcome
        [ "$outcome" != no ] || shared+=("$name")
    done < <(lines_of "$suite")
    "${suite}_names" >"$out/$suite.names"
    while read -r name; do
        if [ -n "${own[$name]:-}" ]; then
            used[$name]=1
            continue
        fi
        for line in "${shared[@]}"; do
            # shellcheck disable=SC2053 # it is meant as a pattern
            if [[ $name == $line || ${name%%:*} == $line ]]; then
                used[$line]=1
                continue 2
            fi
        done
        printf 'suites: %s: no line in ci/suites/tests for the test %s\n' "$suite" "$name" >&2
        wrong_lines=1
    done <"$out/$suite.names"
    for name in "${!own[@]}"; do
        if [ -z "${used[$name]:-}" ]; then
            printf 'suites: %s: the sources do not have the test %s of ci/suites/tests\n' "$suite" "$name" >&2
            wrong_lines=1
        fi
    done
}

# run_test ALLOCATOR PRELOAD SUITE NAME: writes "OUTCOME SECONDS SYMPTOM" for a test that was built.
run_test() {
    local allocator=$1 preload=$2 suite=$3 name=$4
    local id=$suite.${name//[\/:]/_} file=${name%%:*} status=0 outcome begin millis command before='' space=unlimited words_of
    local base=$out/run/$id.$allocator only=''
    # The part of a file that is meant.
    [[ $name != *:* ]] || only=${name#*:}
    rm -rf "$base" "$base".*
    mkdir -p "$base"
    # [before=LIBRARY] [space=KIB] PROGRAM [ARGUMENT...]: a library that has to be preloaded, too, and a limit of the
    # address space.
    command=$(<"$out/built/$suite/${file//\//_}")
    read -r -a words_of <<<"$command"
    while [[ ${words_of[0]} == *=* ]]; do
        case ${words_of[0]} in
        before=*) before=${words_of[0]#before=} ;;
        space=*) space=${words_of[0]#space=} ;;
        esac
        words_of=("${words_of[@]:1}")
    done
    begin=$(date +%s%N)
    (
        cd "$base"
        ulimit -v "$space"
        # Nobody else's options.
        env -u RSEQ_ALLOC -u GLIBC_TUNABLES -u MALLOC_CHECK_ SUITES_MALLOC="$allocator" SUITES_PROOF="$base.proof" \
            SUITES_ONLY="$only" \
            TMPDIR="$base" LC_ALL=C LD_PRELOAD="$before${before:+${preload:+:}}$preload" \
            timeout --kill-after=5 "$LIMIT" "${words_of[@]}" </dev/null >"$base.log" 2>&1
    ) 2>/dev/null || status=$?
    millis=$((($(date +%s%N) - begin) / 1000000))
    case $status in
    0) outcome=pass ;;
    77) outcome=skip ;;
    124 | 137) outcome=timeout ;;
    *) outcome=fail ;;
    esac
    # A program that never looked whose malloc it has proves nothing, whatever its status.
    if ! grep -qx "$allocator" "$base.proof" 2>/dev/null; then
        outcome=unproved
    fi
    printf '%s %d.%d %s\n' "$outcome" $((millis / 1000)) $((millis % 1000 / 100)) \
        "$([ "$outcome" = pass ] || symptom "$base.log" "$status")" >"$base.result"
    rm -rf "$base"
}

# The line of a log that says most, and the status.
symptom() {
    local line
    line=$(grep -a -m 1 -iE 'rseq-alloc:|suites:|assert|FAIL|error|expected|corrupt' "$1" || tail -n 1 "$1") || true
    printf '%s' "$(tr -d '\0' <<<"$line" 2>/dev/null | cut -c 1-110 | sed 's/^ *//') (status $2)"
}

# Keeps at most $jobs children; the rest waits.
at_most() {
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
        wait -n || true
    done
}

# The files of a suite that have a test to run.
files_of() {
    lines_of "$1" | awk '$2 != "no" { sub(/:.*/, "", $1); if (!seen[$1]++) print $1 }'
}

# Builds the tests of a suite, unless that was done with the same sources, scripts and compiler.
build_tests() {
    local suite=$1 file id stamp
    stamp=$(cat "$out/$suite.stamp" 2>/dev/null || true)
    if [ "$stamp" = "$(stamp_of "$suite")" ]; then
        return
    fi
    rm -rf "$out/built/$suite" "$out/programs/$suite"
    mkdir -p "$out/built/$suite" "$out/programs/$suite"
    ! declare -F "${suite}_prepare" >/dev/null || "${suite}_prepare"
    while read -r file; do
        id=$out/built/$suite/${file//\//_}
        at_most
        (
            "${suite}_build" "$file" "$out/programs/$suite/${file//\//_}" >"$id.new" 2>"$id.log"
            mv "$id.new" "$id"
        ) &
    done < <(files_of "$suite")
    wait
    while read -r file; do
        id=$out/built/$suite/${file//\//_}
        if [ ! -s "$id" ]; then
            head -n 20 "$id.log" >&2
            die "$suite: $file could not be built"
        fi
    done < <(files_of "$suite")
    stamp_of "$suite" >"$out/$suite.stamp"
}

stamp_of() {
    (
        gcc --version
        printf '%s\n' "$form" "${flags[*]}"
        cat ci/suites.sh "$out/$1.done" "$out/crates.done" 2>/dev/null || true
        files_of "$1"
        find ci/suites -type f ! -name tests ! -name broken.c -exec sha256sum {} + | sort
    ) | sha256sum
}

# All tests of the chosen suites on ALLOCATOR, which PRELOAD brings in.
run_all() {
    local allocator=$1 preload=$2 suite name outcome rest
    mkdir -p "$out/run"
    for suite in "${suites[@]}"; do
        while read -r name outcome rest; do
            [ "$outcome" != no ] || continue
            if [ "$allocator" = broken ]; then
                [ "$outcome" = pass ] || continue
                [ ! -e "$out/quick" ] || grep -qxF "$suite $name" "$out/quick" || continue
            fi
            at_most
            run_test "$allocator" "$preload" "$suite" "$name" &
        done < <(lines_of "$suite")
    done
    wait
}

# result ALLOCATOR SUITE NAME: sets outcome, seconds and said.
result() {
    local id=$2.${3//[\/:]/_}
    outcome=lost seconds=0 said=
    [ ! -s "$out/run/$id.$1.result" ] || read -r outcome seconds said <"$out/run/$id.$1.result"
}

# Judges what ran: a line per test, and totals. What the outcomes mean stands in ci/suites/tests.
judge() {
    local suite name expected reason wanted libc libc_said ours ours_said verdict skipped
    local ran passed explained wrong all_ran=0 line unexpected=()
    for suite in "${suites[@]}"; do
        ran=0 passed=0 explained=0 wrong=0 skipped=0
        while read -r name expected reason; do
            if [ "$expected" = no ]; then
                skipped=$((skipped + 1))
                continue
            fi
            ran=$((ran + 1))
            result libc "$suite" "$name"
            libc=$outcome libc_said=$said
            result ours "$suite" "$name"
            ours=$outcome ours_said=$said
            case $expected in
            pass) wanted='pass pass' ;;
            libc-fails) wanted='fail pass' ;;
            libc-varies) wanted="$libc pass" ;;
            ours-fails) wanted='pass fail' ;;
            both-fail) wanted='fail fail' ;;
            esac
            if [ "$libc $ours" = "$wanted" ]; then
                verdict=ok
                if [ "$ours" = pass ]; then passed=$((passed + 1)); else explained=$((explained + 1)); fi
                [ "$expected" = pass ] || verdict="as expected: $reason"
            else
                verdict="UNEXPECTED, not $expected:"
                [ "$libc" = pass ] || verdict+=" glibc: $libc_said"
                [ "$ours" = pass ] || verdict+=" ours: $ours_said"
                wrong=$((wrong + 1))
            fi
            printf -v line 'suites: %-8s %-46s glibc %-8s ours %-8s %5s s  %s' \
                "$suite" "$name" "$libc" "$ours" "$seconds" "$verdict"
            printf '%s\n' "$line"
            [[ $verdict != UNEXPECTED* ]] || unexpected+=("$line")
        done < <(lines_of "$suite")
        printf '%-8s %3d ran, %3d pass on ours, %d explained, %d unexpected; %d of the sources do not apply\n' \
            "$suite:" "$ran" "$passed" "$explained" "$wrong" "$skipped" >>"$out/totals"
        [ "$ran" -gt 0 ] || die "$suite: no test ran"
        all_ran=$((all_ran + ran))
    done
    sed 's/^/suites: /' "$out/totals"
    # Once more, where they are seen.
    [ ${#unexpected[@]} -eq 0 ] || printf '%s\n' "${unexpected[@]}"
    printf 'suites: %d tests, %d unexpected, %d s; what does not apply and why: ci/suites.sh --list\n' \
        "$all_ran" "${#unexpected[@]}" "$SECONDS"
    [ ${#unexpected[@]} -eq 0 ]
}

# Each fault: how many tests notice it, of those that pass on both and take less than a second. The rest would take most
# of the time and notice nothing else, but for forks under many threads.
judge_faults() {
    local fault suite name noticed ran by blind=0
    logged "$out/broken.log" gcc -O1 -g -shared -fPIC -pthread -fno-builtin -Wall -Werror ci/suites/broken.c \
        -o "$out/broken.so"
    # A hang is noticed, too, but nobody wants to wait for it.
    LIMIT=20
    rm -f "$out/quick" "$out/passed" "$out/short"
    SUITES_FAULT=none run_all broken "$out/broken.so"
    while read -r suite name; do
        result broken "$suite" "$name"
        if [ "$outcome" != pass ]; then
            printf 'suites: left out, since it is not passed without a fault: %s/%s %s %s\n' "$suite" "$name" "$outcome" \
                "$said"
        else
            printf '%s %s\n' "$suite" "$name" >>"$out/passed"
            [[ $seconds != 0.* ]] || printf '%s %s\n' "$suite" "$name" >>"$out/short"
        fi
    done < <(passing)
    for fault in "${faults[@]}"; do
        if [ "$fault" = fork ]; then cp "$out/passed" "$out/quick"; else cp "$out/short" "$out/quick"; fi
        SUITES_FAULT=$fault run_all broken "$out/broken.so"
        noticed=0 ran=0 by=()
        while read -r suite name; do
            result broken "$suite" "$name"
            ran=$((ran + 1))
            [ "$outcome" != pass ] || continue
            noticed=$((noticed + 1))
            by+=("$suite/$name")
        done <"$out/quick"
        printf 'suites: fault %-11s noticed by %3d of %d tests: %s\n' "$fault" "$noticed" "$ran" \
            "$(printf '%s ' "${by[@]:0:4}")$([ "$noticed" -le 4 ] || printf '…')"
        [ "$noticed" -gt 0 ] || blind=1
    done
    printf 'suites: %d s\n' "$SECONDS"
    return $blind
}

# SUITE NAME of all tests that pass on both.
passing() {
    local suite
    for suite in "${suites[@]}"; do
        lines_of "$suite" | awk -v suite="$suite" '$2 == "pass" { print suite, $1 }'
    done
}

phase() {
    local what=$1 from=$SECONDS
    shift
    "$@"
    printf 'suites: %s: %d s\n' "$what" $((SECONDS - from)) >&2
}

fetch_all() {
    local suite
    for suite in "${suites[@]}"; do
        "${suite}_fetch"
    done
}

build_all() {
    local suite
    logged "$out/cargo.log" cargo build --release -p alloc-c
    logged "$out/proof.log" gcc -O1 -g -fPIC -Wall -Werror -c ci/suites/proof.c -o "$out/proof.o"
    for suite in "${suites[@]}"; do
        build_tests "$suite"
    done
}

wrong_lines=0
rm -f "$out/totals"
command -v cargo >/dev/null || die 'cargo is missing'
phase install install_missing gcc g++ binutils xz-utils
phase fetch fetch_all
for suite in "${suites[@]}"; do
    check_lines "$suite"
done
[ $wrong_lines -eq 0 ] || exit 1
phase build build_all
if [ $action = faults ]; then
    judge_faults
    exit
fi
phase 'run on glibc' run_all libc ''
phase 'run on ours' run_all ours "$library"
judge
