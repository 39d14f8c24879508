#!/usr/bin/env bash
# Runs one program of ci/programs.sh without the allocator and then with it in each mode, and prints a line for each.
#
#     ci/programs/compare.sh PROGRAM OUT
#     ci/programs/compare.sh --packages PROGRAM     the Debian packages it needs
#     ci/programs/compare.sh --header               the line above the lines
#
# OUT holds librseqalloc.so and witness.so; what is written goes to OUT/PROGRAM.
#
# ci/programs/PROGRAM.sh is read for
#
#     packages    Debian packages
#     needs       files that must be there, programs above all
#     workers     "NAME COUNT": processes of the executable NAME that do the work. So many have to end normally in each
#                 run, having been given memory by the allocator
#     own_malloc  executables that bring their own malloc; they must have the library mapped, but do not use it
#     modes       auto, cpu_id, arenas: how RSEQ_ALLOC sets the index
#     linked      true if the library is linked into the program, not preloaded
#     version     prints the version
#     prepare     makes what all runs need in the folder $input
#     run         called in an empty folder, which has the same name each time, once with and once without the library in
#                 the environment of everything it starts; it may ask $variant which that is. What it leaves in the
#                 folder output is compared
#
# All functions are run with -e. Those below are for them.
#
# shellcheck disable=SC2317 # functions that are called by those files
set -euo pipefail
programs=$(dirname "$(realpath "$0")")

fail() {
    printf '%s\n' "$*" >&2
    return 1
}

# Starts a server; $server is its process. It is killed at the end of the run, if it is still there then.
serve() {
    "$@" &
    server=$!
    servers+=("$server")
}

# Repeats a command until it succeeds, for 30 s at most, or until the server is gone.
wait_until() {
    local _
    for _ in {1..600}; do
        ! "$@" >wait.log 2>&1 || return 0
        kill -0 "$server" 2>/dev/null || fail 'the server ended' || return
        sleep 0.05
    done
    cat wait.log >&2
    fail "not after 30 s: $*"
}

# Waits for the server to end with status 0, for 30 s at most.
wait_for_end() {
    local _
    for _ in {1..600}; do
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    ! kill -0 "$server" 2>/dev/null || fail 'the server does not end'
    wait "$server"
}

# A package's version, as "NAME VERSION".
debian_version() {
    # shellcheck disable=SC2016 # for dpkg-query
    dpkg-query --show --showformat='${Package} ${Version}\n' "$1"
}

line() {
    printf '%-17s %-36s %-6s %14s %14s  %-6s %-7s %s\n' "$@"
}

# The program's file, with the defaults of what it may leave out.
load() {
    packages=() needs=() workers=() own_malloc=() modes=(auto) linked=false
    # shellcheck source=/dev/null
    . "$programs/$1.sh"
}

# For programs' files that have to know where the caller's own programs are.
# shellcheck disable=SC2034
callers_path=$PATH callers_home=$HOME

case ${1:-} in
--header)
    line program version mode 's with/out' 'MiB with/out' mapped output verdict
    exit 0
    ;;
--packages)
    load "$2"
    printf '%s\n' "${packages[@]}"
    exit 0
    ;;
esac
name=${1:?usage: ci/programs/compare.sh PROGRAM OUT}
out=$2
work=$out/$name
input=$work/input
load "$name"

rm -rf "$work"
mkdir -p "$input" "$work/home"

# The kernel's choice: AT_RSEQ_FEATURE_SIZE (27) of the auxiliary vector covers mm_cid from 28 on.
mode_of_auto() {
    od -An -v -t u8 -w16 /proc/self/auxv |
        awk '$1 == 27 && $2 >= 28 { found = 1 } END { print found ? "mm_cid" : "cpu_id" }'
}

# Runs the program once, in the variant without or one of the modes, and moves the folder to its name. Status and
# seconds are left in files, what it prints in the log.
run_variant() {
    local variant=$1 status=0 from=$EPOCHREALTIME
    mkdir -p "$work/now/output"
    # Other users' processes may have something to say as well.
    : >"$work/$variant.witness"
    chmod 666 "$work/$variant.witness"
    set +e
    (
        set -e
        cd "$work/now"
        servers=()
        trap '[ ${#servers[@]} -eq 0 ] || kill -KILL "${servers[@]}" 2>/dev/null || true' EXIT
        unset LD_LIBRARY_PATH LD_PRELOAD RSEQ_ALLOC GLIBC_TUNABLES MALLOC_ARENA_MAX MALLOC_CONF PYTHONMALLOC
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=$work/home LC_ALL=C.UTF-8 TZ=UTC
        export WITNESS_LOG=$work/$variant.witness WITNESS_LIBRARY=$out/librseqalloc.so
        case $variant in
        cpu_id | arenas) export RSEQ_ALLOC=index=$variant ;;
        esac
        # From here on everything that is started is under the library.
        if ! $linked; then
            LD_PRELOAD=$out/witness.so
            [ "$variant" = without ] || LD_PRELOAD+=:$out/librseqalloc.so
            export LD_PRELOAD
        fi
        run
    ) >"$work/$variant.log" 2>&1 </dev/null
    status=$?
    set -e
    printf '%d\n' "$status" >"$work/$variant.status"
    awk -v from="$from" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f\n", to - from }' >"$work/$variant.seconds"
    awk -F '\t' '$8 > peak { peak = $8 } END { printf "%.0f\n", peak / 1024 }' "$work/$variant.witness" >"$work/$variant.peak"
    mv "$work/now" "$work/$variant"
}

# What the witness saw that must not be, on one line; nothing if all is as it must be.
contradiction() {
    local variant=$1 mode=
    case $variant in
    without) ;;
    auto) mode=$(mode_of_auto) ;;
    *) mode=$variant ;;
    esac
    awk -F '\t' -v mode="$mode" -v workers="$(printf '%s;' "${workers[@]}")" -v own=" ${own_malloc[*]} " \
        -v library="$($linked || printf '%s' "$out/librseqalloc.so")" '
        # Of several things that are wrong, the first of a worker, if there is one.
        function wrong(what) {
            if (said == "" || (is_worker[name] && !of_worker)) { said = what; of_worker = is_worker[name] }
        }
        BEGIN {
            for (count = split(workers, list, ";"); count > 0; count--)
                if (split(list[count], of, " ") == 2) { is_worker[of[1]] = 1; wanted[of[1]] = of[2] }
        }
        {
            name = $3
            sub(/.*\//, "", name)
            brings_its_own = index(own, " " name " ")
            if (mode == "") {
                if ($4 != "no") wrong($3 " has the library mapped without being told to")
            } else if ($4 != "yes") wrong("not mapped in " $3)
            else if (library != "" && $5 != library && !brings_its_own) wrong("malloc of " $3 " is that of " $5)
            else if (index($6, mode) != 1) wrong("mode of " $3 ": " $6)
            if ($1 == "end" && (mode == "" || $7 > 0 || brings_its_own)) seen[name]++
        }
        END {
            for (name in wanted)
                if (seen[name] + 0 < wanted[name])
                    wrong((mode == "" ? "" : "not mapped: ") seen[name] + 0 " of " wanted[name] " processes of " name " seen")
            if (said != "") print said
        }' "$work/$variant.witness"
}

# Where the outputs of two runs differ.
differences() {
    local file
    diff -r -u "$work/without/output" "$work/$1/output" | cut -c 1-200 | head -n 40
    (cd "$work/without/output" && find . -type f) | sort | while read -r file; do
        cmp "$work/without/output/$file" "$work/$1/output/$file" 2>&1 || true
    done | head -n 10
}

# Prints the line of a mode, and what is to be said below it. Status 1 if it is not ok.
judge() {
    local mode=$1 mapped=yes output=same verdict=ok wrong more=()
    if [ "$(cat "$work/without.status")" -ne 0 ]; then
        verdict='FAILED without the library' output=- more=(tail -n 40 "$work/without.log")
    elif [ "$(cat "$work/$mode.status")" -ne 0 ]; then
        verdict="FAILED with status $(cat "$work/$mode.status")" output=- more=(tail -n 40 "$work/$mode.log")
    elif [ -z "$(find "$work/without/output" -type f -size +0 -print -quit)" ]; then
        verdict='FAILED: no output' output=-
    elif ! diff -r -q "$work/without/output" "$work/$mode/output" >/dev/null; then
        verdict='DIFFERS' output=differs more=(differences "$mode")
    fi
    wrong=$(contradiction without)
    if [ -n "$wrong" ]; then
        mapped=- verdict+=", without the library: $wrong"
    fi
    wrong=$(contradiction "$mode")
    if [ -n "$wrong" ]; then
        mapped=no verdict+=", $wrong"
    fi
    if [ "$verdict" = ok ] && [ ${#own_malloc[@]} -gt 0 ]; then
        verdict="ok; ${own_malloc[*]}: mapped, has a malloc of its own"
        line "$name" "$version" "$mode" "$(figures seconds "$mode")" "$(figures peak "$mode")" "$mapped" "$output" "$verdict"
        return
    fi
    line "$name" "$version" "$mode" "$(figures seconds "$mode")" "$(figures peak "$mode")" "$mapped" "$output" "${verdict#ok, }"
    [ "$verdict" != ok ] || return 0
    [ ${#more[@]} -eq 0 ] || "${more[@]}" | sed 's/^/    /'
    return 1
}

figures() {
    printf '%s / %s' "$(cat "$work/$2.$1")" "$(cat "$work/without.$1")"
}

for program in "${needs[@]}"; do
    if [ ! -e "$program" ]; then
        line "$name" - - - - - - "MISSING: $program"
        exit 1
    fi
done
version=$(version)
# In no condition, where -e would not be in force.
set +e
(
    set -e
    cd "$input"
    prepare
) >"$work/prepare.log" 2>&1
status=$?
set -e
if [ "$status" -ne 0 ]; then
    line "$name" "$version" - - - - - 'FAILED to prepare'
    tail -n 40 "$work/prepare.log" | sed 's/^/    /'
    exit 1
fi
run_variant without
status=0
for mode in "${modes[@]}"; do
    run_variant "$mode"
    judge "$mode" || status=1
done
exit $status
