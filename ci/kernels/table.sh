#!/usr/bin/env bash
# Judges the rows of a run of ci/kernels.sh by the consoles, and prints the table.
#
#     ci/kernels/table.sh long|short OUT
#
# Reads OUT/rows (what must have run), OUT/all-rows (what there is) and OUT/consoles, writes OUT/table.md. A row that is
# not there, did not end, ran on another kernel, left a program out, chose another mode, failed a test or aborted nothing
# is a failure; the end of its console is printed. Status 0 only if there is none.
set -euo pipefail

form=${1:?usage: ci/kernels/table.sh long|short OUT}
out=$2
here=$(dirname "$0")
table=$out/table.md
bad=0
failures=()

# What a machine's console says of a row: the rest of its line "@row WHAT LIBC …".
said() {
    # None at all if the machine was never started.
    [ -f "$console" ] || return 0
    sed -n "s/^.*@row $1 $libc //p" "$console" | tail -n 1
}

# Who registers the threads with this libc (glibc from 2.35 on).
registrar() {
    case $1 in
    glibc-dynamic | glibc-static | glibc-2.41) printf 'libc\n' ;;
    *) printf 'ourselves\n' ;;
    esac
}

# How many programs a row has to run: all that were built, but those it is to leave out.
programs_to_run() {
    local built left_out
    built=$(find "$out/programs/$arch/$build" -type f | wc -l)
    left_out=$("$here/work.sh" "$form" "$kernel" "$arch" "$cpus" "$build" | sed -n 's/^LEAVE_OUT=//p' | tr ',' '\n' | grep -c .) || true
    printf '%d\n' $((built - left_out))
}

# Why a row without an end has none.
how_it_ended() {
    if [ ! -f "$console" ]; then
        printf 'was not started'
    elif grep -q 'Kernel panic' "$console"; then
        printf 'kernel panic'
    elif grep -q '^@host killed' "$console"; then
        printf 'hung, killed'
    else
        printf 'did not run to its end'
    fi
}

# What the probe must have said, and the allocator: a text for each, or its beginning. On a kernel that is to be refused
# there is nothing to abort.
expect() {
    if [ "$index" = none ]; then
        wanted="none: this kernel does not abort preempted sections"
        wanted_of_allocator=${wanted/none/arenas}
        least_aborts=0
    else
        wanted="$index, registered by $(registrar "$libc"), "
        wanted_of_allocator=$wanted
        least_aborts=1
    fi
}

judge() {
    local wanted wanted_of_allocator least_aborts
    expect
    if [ -z "$programs" ]; then
        how_it_ended
    elif [ "$kernel" != host ] && [[ $release != "$kernel".* ]]; then
        printf 'another kernel'
    elif [ "$ran_on" != "$cpus" ]; then
        printf 'another number of CPUs'
    elif [ "$programs" -ne "$(programs_to_run)" ]; then
        printf 'programs left out'
    elif [[ $mode != "$wanted"* ]]; then
        printf 'wrong mode'
    elif [[ $chosen != "$wanted_of_allocator"* ]]; then
        printf 'allocator: %s' "${chosen:-no mode}"
    elif [ "$failed" -ne 0 ] || [ "$passed" -eq 0 ]; then
        printf 'failed'
    elif [ "$operations" -eq 0 ]; then
        printf 'no operations'
    elif [ "$aborts" -lt "$least_aborts" ]; then
        printf 'no aborts'
    else
        printf 'ok'
    fi
}

# Columns as wide as their widest cell.
align() {
    awk -F ' *[|] *' '
        { rows[NR] = $0; for (i = 2; i < NF; i++) if (length($i) > width[i]) width[i] = length($i); columns = NF }
        END {
            for (row = 1; row <= NR; row++) {
                split(rows[row], cell, / *[|] */)
                line = "|"
                for (i = 2; i < columns; i++) {
                    text = cell[i]
                    fill = (text ~ /^-+:?$/) ? "-" : " "
                    before = (fill == "-" || text ~ /^[0-9]+$/)
                    while (length(text) < width[i]) text = before ? fill text : text fill
                    line = line " " text " |"
                }
                print line
            }
        }'
}

{
    printf '| kernel | arch | CPUs | libc | mode | passed | failed | skipped | operations | aborts | verdict |\n'
    printf '| --- | --- | --: | --- | --- | --: | --: | --: | --: | --: | --- |\n'
} >"$table.new"
while read -r kernel arch cpus index libc root build; do
    console=$out/consoles/$kernel-$arch-$cpus-$root.log
    read -r release ran_on <<<"$(said begin)" || true
    mode=$(said mode)
    chosen=$(said stress)
    read -r programs passed failed skipped operations aborts _ <<<"$(said end)" || true
    verdict=$(judge)
    if [ "$verdict" != ok ]; then
        bad=$((bad + 1))
        failures+=("$console")
    fi
    name=${release:-$kernel}
    [ "$kernel" != host ] || name="host, ${release%%-*}"
    printf '| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n' "$name" "$arch" "$cpus" "$libc" \
        "${mode:-none}" "${passed:-0}" "${failed:-0}" "${skipped:-0}" "${operations:-0}" "${aborts:-0}" "$verdict"
done <"$out/rows" >>"$table.new"
align <"$table.new" >"$table"
rm "$table.new"

for console in $(printf '%s\n' "${failures[@]}" | sort -u); do
    [ -f "$console" ] || continue
    printf '=== the end of %s\n' "$console"
    grep -nE 'FAILED|panicked|assert|Kernel panic|^@host|: error|: status [^0]' "$console" | tail -n 20 || true
    tail -n 40 "$console"
done
cat "$table"
printf 'kernels: %d of %d rows, %d bad, %s form\n' "$(wc -l <"$out/rows")" "$(wc -l <"$out/all-rows")" "$bad" "$form"
[ "$bad" -eq 0 ]
