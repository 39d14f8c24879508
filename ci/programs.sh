#!/usr/bin/env bash
# Runs programs as Debian ships them with librseqalloc.so preloaded, and compares what comes out with a run without it.
#
#     ci/programs.sh [--list | --install] [PROGRAM...]
#
# All of them, or those named; --list prints the names, --install only installs what they need. Each is a file
# ci/programs/PROGRAM.sh, which says what it runs; ci/programs/compare.sh says how it is judged. One line for each
# program and mode of the allocator:
#
#     seconds and peak    with and without the library; the peak is the largest resident process. For information only
#     mapped              whether every process that ran had the library mapped and called its malloc, and the
#                         processes that do the work were among them and have been given memory by it
#     output              whether it is the same as without
#
# What differs, and the end of a program's log if it failed, follows its line. Status 1 if a program is not ok, or is
# missing. Packages that are missing are installed by apt-get (Debian 12). Everything that is written, logs included, is
# below target/programs.
set -euo pipefail
cd "$(dirname "$0")/.."

# Those that take long come first, so that none is left over at the end.
readonly ALL=(python-threading gcc python-subprocess containers redis static-pie git sqlite nginx python perl memcached cargo)
# Programs at a time.
readonly AT_ONCE=2
# Seconds for all runs of one program.
readonly LIMIT=600

usage() {
    printf 'usage: ci/programs.sh [--list | --install] [PROGRAM...]; programs: %s\n' "${ALL[*]}" >&2
    exit 2
}

selected=() only_install=false
for argument; do
    case $argument in
    --install) only_install=true ;;
    --list)
        printf '%s\n' "${ALL[@]}"
        exit 0
        ;;
    *)
        [[ " ${ALL[*]} " == *" $argument "* ]] || usage
        selected+=("$argument")
        ;;
    esac
done
[ ${#selected[@]} -gt 0 ] || selected=("${ALL[@]}")

out=${CARGO_TARGET_DIR:-target}/programs
mkdir -p "$out"
out=$(realpath "$out")

# shellcheck source-path=SCRIPTDIR
. ci/debian.sh

# Installs what the selected programs need. If that fails, the programs that are missing say so themselves.
install() {
    local name
    # The compilers build the witness and the C++ programs.
    # shellcheck disable=SC2046 # one word each
    install_missing gcc g++ $(for name in "${selected[@]}"; do ci/programs/compare.sh --packages "$name"; done | sort -u) ||
        printf 'programs: installing failed\n' >&2
}

# The library is copied, so that no build changes it under a running program.
build() {
    local built=${CARGO_TARGET_DIR:-target}/release
    cargo build --quiet --release -p alloc-c
    cp "$built/librseqalloc.so" "$out/"
    gcc -O2 -Wall -Wextra -Werror -fPIC -shared -o "$out/witness.so" ci/programs/witness.c -ldl
}

# The programs that run: process ids, which are also those of their process groups, and names.
declare -A running=()

# Nothing that was started here stays behind.
stop_all() {
    local process
    for process in "${!running[@]}"; do
        kill -TERM -- "-$process" 2>/dev/null || true
    done
    [ ${#running[@]} -eq 0 ] || sleep 1
    for process in "${!running[@]}"; do
        kill -KILL -- "-$process" 2>/dev/null || true
    done
}

# Waits for one of the programs to end, and shows what it has to say.
finish_one() {
    local process name status=0
    wait -n -p process "${!running[@]}" || status=$?
    name=${running[$process]}
    unset "running[$process]"
    cat "$out/$name.lines"
    case $status in
    0) good=$((good + 1)) ;;
    124 | 137)
        bad+=("$name")
        printf '%s: not done after %d s\n' "$name" "$LIMIT"
        ;;
    *) bad+=("$name") ;;
    esac
}

install
! $only_install || exit 0
build
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

started=$SECONDS
good=0 bad=()
ci/programs/compare.sh --header
for name in "${selected[@]}"; do
    if [ ${#running[@]} -ge $AT_ONCE ]; then
        finish_one
    fi
    # timeout makes a process group of its own, and ends all of it.
    timeout --kill-after=10 "$LIMIT" ci/programs/compare.sh "$name" "$out" </dev/null >"$out/$name.lines" 2>&1 &
    running[$!]=$name
done
while [ ${#running[@]} -gt 0 ]; do
    finish_one
done
[ ${#bad[@]} -eq 0 ] || printf 'programs: NOT OK: %s\n' "${bad[*]}"
printf 'programs: %d s\n' $((SECONDS - started))
printf 'programs: %d passed, %d failed\n' "$good" ${#bad[@]}
[ ${#bad[@]} -eq 0 ]
