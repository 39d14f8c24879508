#!/usr/bin/env bash
# Runs rseq-sys and the allocator on real kernels, libcs and numbers of CPUs, and prints a table with a line for each
# combination. Status 0 only if every row chose the expected mode and had no failure.
#
#     ci/kernels.sh [--short] [--list | --install] [WORD...]
#
# Without --short every row is run, with all tests; that takes most of an hour. --short is what CI runs, within five
# minutes on two quiet processors once "cargo test --release" has built: fewer rows (in_short_form below), in most guests
# not the slowest tests (ci/kernels/work.sh), and less work in each. It has every kernel but one, every libc, both
# architectures, and guests with 1, 4 and 16 CPUs.
#
# WORDs select the rows that have them all, for instance "6.12 arm64 4-cpus", "musl", "host"; --list prints what is
# selected and ends, --install only installs what it needs.
#
# Each row runs the probe, the tests of rseq-sys, and the allocator's tests foreign and stress (ci/kernels/run-rows.sh):
# on this machine, and in guests that run Debian's own kernels under QEMU's emulation. Everything is built here; what is
# missing for that and for the guests is installed by apt-get (Debian 12). The table is also written to
# target/kernels/table.md, the guests' consoles to target/kernels/consoles/.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${CARGO_TARGET_DIR:-target}/kernels
form=long
list=false only_install=false
words=()
for argument; do
    case $argument in
    --short) form=short ;;
    --list) list=true ;;
    --install) only_install=true ;;
    -*)
        printf 'usage: ci/kernels.sh [--short] [--list | --install] [WORD...]\n' >&2
        exit 2
        ;;
    *) words+=("$argument") ;;
    esac
done

# Machines at a time; one less while programs are built.
readonly AT_ONCE=2

# Every row that there is: kernel, architecture, CPUs, index that must be chosen, libc.
#
# Linux 6.1 says nothing of rseq in the auxiliary vector, so cpu_id it is; since 6.3 there is mm_cid. On arm64 Linux 6.19
# and 7.0 do not abort preempted sections: "none" must be chosen there.
all_rows() {
    local kernel
    rows host x86_64 "$(nproc)" "$(index_of_host)" dynamic static untuned musl
    rows 6.1 x86_64 '1 4 16' cpu_id dynamic static untuned musl
    rows 6.12 x86_64 '1 4 16' mm_cid dynamic static untuned musl
    rows 6.12 x86_64 4 mm_cid 2.41
    rows 7.3 x86_64 '1 4 16' mm_cid dynamic 2.41
    rows 7.3 x86_64 4 mm_cid static untuned musl
    rows 6.1 aarch64 '1 4 16' cpu_id dynamic static untuned
    rows 6.12 aarch64 '1 4 16' mm_cid dynamic static untuned
    rows 6.12 aarch64 4 mm_cid 2.41
    for kernel in 6.19 7.0; do
        rows "$kernel" aarch64 4 none dynamic untuned
    done
    rows 7.3 aarch64 4 mm_cid dynamic static untuned 2.41
}

# The rows of a kernel with each of the libcs, by the word that tells them apart.
rows() {
    local kernel=$1 arch=$2 index=$4 cpus libc
    for cpus in $3; do
        for libc in "${@:5}"; do
            case $libc in
            musl) libc=musl-static ;;
            *) libc=glibc-$libc ;;
            esac
            printf '%s %s %s %s %s\n' "$kernel" "$arch" "$cpus" "$index" "$libc"
        done
    done
}

# Whether a row is one of the short form.
in_short_form() {
    case "$kernel $arch $cpus $libc" in
    host\ * | '6.12 x86_64 4 glibc-'[dsu]* | '6.12 x86_64 4 musl-static') ;;
    '6.1 x86_64 4 glibc-'[du]* | '6.12 x86_64 1 glibc-static' | '6.12 x86_64 16 glibc-dynamic') ;;
    '7.3 x86_64 4 glibc-2.41' | '6.12 aarch64 4 glibc-dynamic' | '7.0 aarch64 4 glibc-dynamic') ;;
    *) return 1 ;;
    esac
}

# What this machine's kernel allows: AT_RSEQ_FEATURE_SIZE (27) of the auxiliary vector covers mm_cid from 28 on.
index_of_host() {
    od -An -v -t u8 -w16 /proc/self/auxv |
        awk '$1 == 27 && $2 >= 28 { found = 1 } END { print found ? "mm_cid" : "cpu_id" }'
}

# Keeps the rows of this form that have all the words given. Adds the root that a row needs, which is what a guest's
# file system holds, and the build whose programs it runs.
select_rows() {
    local kernel arch cpus index libc root build names word
    while read -r kernel arch cpus index libc; do
        [ "$form" = long ] || in_short_form || continue
        names=" $kernel $arch $cpus-cpus $index $libc ${libc//-/ } "
        [ "$kernel" = host ] || names+="guest "
        case $arch in
        x86_64) names+="x86-64 amd64 " ;;
        aarch64) names+="arm64 " ;;
        esac
        for word in "${words[@]}"; do
            [[ $names == *" $word "* ]] || continue 2
        done
        root=${libc/untuned/dynamic}
        build=${root/2.41/dynamic}
        printf '%s %s %s %s %s %s %s\n' "$kernel" "$arch" "$cpus" "$index" "$libc" "$root" "$build"
    done
}

# Says what a step cost. On a machine with other work the time of processors tells more.
phase() {
    local TIMEFORMAT="kernels: $1: %0R s, %0U s of processors"
    time "${@:2}"
}

# The builds that the rows need, as ARCH-LIBC, in an order in which guests get something to do early.
builds() {
    awk '{ print ($7 ~ /musl/) ? 3 : ($7 ~ /static/) ? 2 : ($2 == "x86_64") ? 0 : 1, $2 "-" $7 }' "$out/rows" |
        sort -u | cut -d' ' -f2
}

fetch_kernels() {
    local kernel arch
    awk '$1 != "host" { print $1, $2 }' "$out/rows" | sort -u | while read -r kernel arch; do
        ci/kernels/install.sh kernel "$kernel" "$arch" "$out" >"$out/image"
        mv "$out/image" "$out/image-$kernel-$arch"
    done
}

# Builds one after another, and packs what guests need of each; "built-ARCH-LIBC" appears as that is done.
build_all() {
    local build roots root
    for build; do
        phase "build $build" ci/kernels/build.sh "${build%%-*}" "${build#*-}" "$out"
        roots=$(awk -v b="$build" '$1 != "host" && $2 "-" $7 == b { print $6 }' "$out/rows" | sort -u)
        for root in $roots; do
            ci/kernels/initramfs.sh "${build%%-*}" "$root" "${build#*-}" "$out"
        done
        touch "$out/built-$build"
    done
}

# Runs the rows of one machine, in one go.
run_machine() {
    local kernel=$1 arch=$2 cpus=$3 root=$4 console=$consoles/$1-$2-$3-$4.log rows amounts limit=2400
    rows=$(awk -v m="$*" '$1 " " $2 " " $3 " " $6 " " $7 == m { print $5 }' "$out/rows" | paste -sd, -)
    [ "$form" = long ] || limit=600
    mapfile -t amounts < <(ci/kernels/work.sh "$form" "$kernel" "$arch" "$cpus" "$5")
    if [ "$kernel" = host ]; then
        # shellcheck disable=SC2086 # one word each
        env "${amounts[@]}" ci/kernels/run-rows.sh "$out/programs/$arch" ${rows//,/ } >"$console" 2>&1
    else
        # A kernel that crashes before any program of ours has run has met the emulator's errors, not ours.
        for _ in 1 2 3; do
            ci/kernels/boot.sh "$arch" "$(cat "$out/image-$kernel-$arch")" "$out/$arch-$root.cpio" "$cpus" "$limit" \
                "ROWS=$rows" "${amounts[@]}" >"$console"
            if grep -q '^@row begin' "$console" || ! grep -q 'Kernel panic' "$console"; then
                break
            fi
            printf 'kernels: %s crashed while it booted: %s\n' "$*" "$(grep -m 1 'Kernel panic' "$console")" >&2
        done
    fi
}

# The place of the first machine that waits and has all it needs, nothing if there is none.
first_ready() {
    local place kernel arch build
    for place in "${!waiting[@]}"; do
        read -r kernel arch _ _ build <<<"${waiting[$place]}"
        if [ -e "$out/built-$arch-$build" ] && { [ "$kernel" = host ] || [ -s "$out/image-$kernel-$arch" ]; }; then
            printf '%s\n' "$place"
            return
        fi
    done
}

# Fetches, builds, and starts every machine as soon as it has all it needs and fewer than AT_ONCE jobs run, of which the
# builder is one. The machines with many CPUs take longest and start first. What could not be fetched or built keeps its
# machines from starting, which the table shows.
run_all() {
    local waiting running ready
    rm -rf "$consoles" "$out"/built-* "$out"/image-*
    mkdir -p "$consoles"
    mapfile -t waiting < <(awk '{ print $1, $2, $3, $6, $7 }' "$out/rows" | sort -u | sort -s -k3,3nr -k2,2)
    build_all "$@" &
    fetch_kernels &
    while [ ${#waiting[@]} -gt 0 ]; do
        mapfile -t running < <(jobs -rp)
        ready=$(first_ready)
        if [ -n "$ready" ] && [ ${#running[@]} -lt $AT_ONCE ]; then
            # shellcheck disable=SC2086 # one word each
            phase "run ${waiting[$ready]% *}" run_machine ${waiting[$ready]} &
            unset "waiting[$ready]"
        elif [ -z "$ready" ] && [ ${#running[@]} -eq 0 ]; then
            break
        else
            sleep 0.5
        fi
    done
    wait
}

selected=$(all_rows | select_rows)
if [ -z "$selected" ]; then
    printf 'kernels: no row of this form has all of: %s\n' "${words[*]}" >&2
    exit 2
fi
if $list; then
    cut -d' ' -f1-5 <<<"$selected"
    exit 0
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
consoles=$out/consoles
all_rows >"$out/all-rows"
printf '%s\n' "$selected" >"$out/rows"
mapfile -t needed < <(builds)
phase 'install' ci/kernels/install.sh packages "${needed[@]}"
! $only_install || exit 0
phase 'build and run' run_all "${needed[@]}"
printf 'kernels: all: %d s\n' $SECONDS >&2
ci/kernels/table.sh "$form" "$out"
