#!/usr/bin/env bash
# Runs rseq-sys and the allocator on real kernels, libcs and numbers of CPUs, and prints a table with a line for each
# combination. Status 0 only if every row chose the expected mode and had no failure.
#
#     ci/kernels.sh [--short] [--list] [WORD...]
#
# --short does less work in each row, and most of it where a guest has 4 CPUs (ci/kernels/work.sh). WORDs select the rows
# that have them all, for instance "6.12 arm64 4-cpus", "musl", "host"; --list prints what is selected and ends.
#
# Each row runs the probe, all tests of rseq-sys, and the allocator's tests foreign and stress (ci/kernels/run-rows.sh):
# on this machine, and in guests that run Debian's own kernels under QEMU's emulation. Everything is built here; what is
# missing for that and for the guests is installed by apt-get (Debian 12). The table is also written to
# target/kernels/table.md, the guests' consoles to target/kernels/consoles/.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${CARGO_TARGET_DIR:-target}/kernels
mkdir -p "$out"
out=$(cd "$out" && pwd)
consoles=$out/consoles
form=long
list=false
words=()
for argument; do
    case $argument in
    --short) form=short ;;
    --list) list=true ;;
    -*)
        printf 'usage: ci/kernels.sh [--short] [--list] [WORD...]\n' >&2
        exit 2
        ;;
    *) words+=("$argument") ;;
    esac
done

# Guests at a time.
readonly AT_ONCE=2

# Every row that there is: kernel, architecture, CPUs, index that must be chosen, libc. Linux 6.1 says nothing of rseq
# in the auxiliary vector, so cpu_id it is; since 6.3 there is mm_cid.
all_rows() {
    local kernel index cpus libc
    for libc in glibc-dynamic glibc-static glibc-untuned musl-static; do
        printf 'host x86_64 %s %s %s\n' "$(nproc)" "$(index_of_host)" "$libc"
    done
    for kernel in 6.1 6.12; do
        index=mm_cid
        [ "$kernel" != 6.1 ] || index=cpu_id
        for cpus in 1 4 16; do
            for libc in glibc-dynamic glibc-static glibc-untuned musl-static; do
                printf '%s x86_64 %s %s %s\n' "$kernel" "$cpus" "$index" "$libc"
            done
        done
        for cpus in 1 4 16; do
            [ "$form" = long ] || [ "$cpus" -eq 4 ] || continue
            for libc in glibc-dynamic glibc-static glibc-untuned; do
                printf '%s aarch64 %s %s %s\n' "$kernel" "$cpus" "$index" "$libc"
            done
        done
    done
}

# What this machine's kernel allows: AT_RSEQ_FEATURE_SIZE (27) of the auxiliary vector covers mm_cid from 28 on.
index_of_host() {
    od -An -v -t u8 -w16 /proc/self/auxv |
        awk '$1 == 27 && $2 >= 28 { found = 1 } END { print found ? "mm_cid" : "cpu_id" }'
}

# Keeps the rows that have all the words given.
select_rows() {
    local kernel arch cpus index libc names word
    while read -r kernel arch cpus index libc; do
        names=" $kernel $arch $cpus-cpus $index $libc ${libc//-/ } "
        [ "$kernel" = host ] || names+="guest "
        case $arch in
        x86_64) names+="x86-64 amd64 " ;;
        aarch64) names+="arm64 " ;;
        esac
        for word in "${words[@]}"; do
            [[ $names == *" $word "* ]] || continue 2
        done
        printf '%s %s %s %s %s\n' "$kernel" "$arch" "$cpus" "$index" "$libc"
    done
}

phase() {
    local name=$1 from=$SECONDS
    shift
    "$@"
    printf 'kernels: %s: %d s\n' "$name" $((SECONDS - from)) >&2
}

# The builds that the rows need, as ARCH-LIBC.
builds() {
    awk '{ libc = $5; sub(/untuned/, "dynamic", libc); print $2 "-" libc }' "$out/rows" | sort -u
}

kernel_meta() {
    case $1 in
    6.1-x86_64) printf 'linux-image-cloud-amd64\n' ;;
    6.12-x86_64) printf 'linux-image-6.12-cloud-amd64\n' ;;
    6.1-aarch64) printf 'linux-image-cloud-arm64\n' ;;
    6.12-aarch64) printf 'linux-image-6.12-cloud-arm64\n' ;;
    esac
}

fetch_kernels() {
    local kernel arch
    awk '$1 != "host" { print $1, $2 }' "$out/rows" | sort -u | while read -r kernel arch; do
        ci/kernels/install.sh kernel "$(kernel_meta "$kernel-$arch")" "$arch" "$out" >"$out/image-$kernel-$arch"
    done
}

# Debian's compiler and rustup's work side by side, in target directories of their own.
build_all() {
    local chain
    for chain in '^x86_64-glibc' '^x86_64-musl|^aarch64'; do
        builds | { grep -E "$chain" || true; } | while read -r build; do
            phase "build $build" ci/kernels/build.sh "${build%%-*}" "${build#*-}" "$out"
        done &
    done
    wait_for_all
}

# Fails if any of the background jobs fails.
wait_for_all() {
    local job status=0
    for job in $(jobs -p); do
        wait "$job" || status=1
    done
    return $status
}

pack() {
    local arch
    awk '$1 != "host" { print $2 }' "$out/rows" | sort -u | while read -r arch; do
        ci/kernels/initramfs.sh "$arch" "$out"
    done
}

# Runs the rows of one machine, in one go.
run_machine() {
    local kernel=$1 arch=$2 cpus=$3 console=$consoles/$1-$2-$3.log rows from=$SECONDS limit=1500
    rows=$(awk -v m="$kernel $arch $cpus" '$1 " " $2 " " $3 == m { print $5 }' "$out/rows" | paste -sd, -)
    [ "$form" = long ] || limit=400
    local amounts
    mapfile -t amounts < <(ci/kernels/work.sh "$form" "$kernel" "$cpus")
    if [ "$kernel" = host ]; then
        env "${amounts[@]}" ci/kernels/run-rows.sh "$out/programs/$arch" ${rows//,/ } >"$console" 2>&1
    else
        ci/kernels/boot.sh "$arch" "$(cat "$out/image-$kernel-$arch")" "$out/$arch.cpio" "$cpus" "$limit" \
            "ROWS=$rows" "${amounts[@]}" >"$console"
    fi
    printf 'kernels: %s %s with %s CPUs: %d s\n' "$kernel" "$arch" "$cpus" $((SECONDS - from)) >&2
}

# The machines with many CPUs take longest and start first.
run_machines() {
    local kernel arch cpus
    rm -rf "$consoles"
    mkdir -p "$consoles"
    awk '{ print $1, $2, $3 }' "$out/rows" | sort -u | sort -k3,3nr >"$out/machines"
    while read -r kernel arch cpus; do
        while [ "$(jobs -rp | wc -l)" -ge $AT_ONCE ]; do
            wait -n || true
        done
        run_machine "$kernel" "$arch" "$cpus" &
    done <"$out/machines"
    wait
}

all_rows | select_rows >"$out/rows"
if [ ! -s "$out/rows" ]; then
    printf 'kernels: no row has all of: %s\n' "${words[*]}" >&2
    exit 2
fi
if $list; then
    cat "$out/rows"
    exit 0
fi
mapfile -t needed < <(builds)
phase 'install' ci/kernels/install.sh packages "${needed[@]}"
phase 'fetch kernels' fetch_kernels
phase 'build' build_all
phase 'pack' pack
phase 'run' run_machines
printf 'kernels: all: %d s\n' $SECONDS >&2
ci/kernels/table.sh "$form" "$out"
