#!/usr/bin/env bash
# Checkpoints and restores a program in the middle of its sequences with CRIU, and tells how far each case comes.
#
#     ci/criu.sh
#
# The program is rseq-sys/examples/checkpoint.rs. It is dumped and restored on the running kernel, in a guest with each
# of Debian's kernels 6.12 and 6.1 (emulated by qemu, without KVM), and from either of these onto the other. Cases:
#   quiet-*   all threads wait outside of any section
#   busy-*    most threads run sequences, so that some are inside a section
#   *-libc    registered by libc; *-own: by rseq-sys itself, since libc was told not to
#   *-cpu_id  indexed by cpu_id; else by mm_cid, if the kernel has it
# One line for each step says what came out. It takes some minutes and needs root.
#
# Environment:
#   CRIU         the program to use instead of Debian's criu; a wrapper is fine
#   CRIU_FOLDER  a folder that CRIU needs besides itself and its libraries, taken along into the guests
#   KERNELS      a folder with kernel packages of 6.1 and 6.12 unpacked into it, instead of those that apt-get has
#   GUEST_LIMIT  seconds after which a guest is ended (300)
#   KEEP         if set, the working folder with logs and dumps stays, and its name is printed
#
# Exit code 1 if a case that has to work does not. It does not have to work
#   - on Linux 6.13 and later with the CRIU 3.17.1 of Debian 12, which cannot run there at all;
#   - if CRIU is blind, as that one is: it looks for threads inside of sections before it knows where they are, so that
#     they go on and commit what they had read. Then only the quiet cases have to work;
#   - with mm_cid, from a kernel that fills it onto one that does not. rseq-sys' README advises against that.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -m)" != x86_64 ]; then
    echo "criu: skipped: the kernels and the guests are those of x86-64, this is $(uname -m)"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "criu: needs root" >&2
    exit 2
fi

# shellcheck source-path=SCRIPTDIR
. ci/debian.sh
# The busybox of the package of that name is not static.
packages=(qemu-system-x86 cpio binutils xz-utils busybox-static)
[ -n "${CRIU:-}" ] || packages+=(criu)
install_missing "${packages[@]}"
# For the kernels.
[ -n "${KERNELS:-}" ] || update_lists
criu=$(command -v "${CRIU:-criu}")

work=$(mktemp -d)
# apt-get downloads as a user of its own.
chmod 755 "$work"
if [ -n "${KEEP:-}" ]; then
    echo "working folder: $work"
else
    trap 'rm -rf "$work"' EXIT
fi

cargo build --quiet --release -p rseq-sys --example checkpoint
program=$work/checkpoint
strip -o "$program" "${CARGO_TARGET_DIR:-target}/release/examples/checkpoint"

# The newest kernel of a series: what apt-get has, or what lies in KERNELS.
kernel() {
    local series=$1 name
    if [ -z "${KERNELS:-}" ]; then
        name=$(apt-cache search --names-only "^linux-image-$series\.[0-9.]*[-+][^ ]*cloud-amd64\$" | cut -d' ' -f1 |
            sort --version-sort | tail -n 1)
        (cd "$work" && apt-get download --quiet --quiet "$name" && dpkg -x "$name"_*.deb kernels) >&2
    fi
    find "${KERNELS:-$work/kernels}" -name "vmlinuz-$series.*" | sort --version-sort | tail -n 1
}

# What is done in the guests and here, for a shell that may be busybox. Prints lines that begin with "@criu".
cat >"$work/steps" <<'END'
#!/bin/sh
# steps FOLDER STEP...: a step is dump:CASE or restore:CASE.
folder=$1
shift

# One line: which kernel, which step, what came out.
say() {
    echo "@criu $(uname -r | cut -d- -f1) $step: $*"
}

errors() {
    grep Error "$1" | grep -v RLIMIT_NOFILE | tail -n 3 | cut -d' ' -f2- | tr '\n' ';' | cut -c 1-400
}

setting() {
    case $1 in
    *-libc*) echo GLIBC_TUNABLES= ;;
    *-own*) echo GLIBC_TUNABLES=glibc.pthread.rseq=0 ;;
    esac
    case $1 in
    *cpu_id) echo RSEQ_INDEX=cpu_id ;;
    esac
}

dump() {
    mkdir -p "$here/images"
    # So that the process and its threads find their numbers free where they are restored.
    [ -z "$GUEST" ] || echo $((10000 + 1000 * number)) >/proc/sys/kernel/ns_last_pid
    : >"$here/out"
    # shellcheck disable=SC2046 # one word each
    env $(setting "$1") setsid "$PROGRAM" "$here/restored" 20 </dev/null >>"$here/out" 2>&1 &
    process=$!
    for _ in $(seq 300); do
        [ "$(grep -c '^round' "$here/out")" -lt 15 ] || break
        sleep 0.1
    done
    case $1 in
    quiet*)
        touch "$here/restored.pause"
        for _ in $(seq 300); do
            ! grep -q '^paused' "$here/out" || break
            sleep 0.1
        done
        ;;
    esac
    if timeout 120 "$CRIU" dump --tree "$process" --images-dir "$here/images" -v4 --log-file "$here/dump.log" \
        2>/dev/null; then
        inside=$(sed -n 's/.*start_ip = \([0-9a-f]*\) .*_offset = \([0-9a-f]*\) .* IP = \([0-9a-f]*\)$/\1 \2 \3/p' \
            "$here/dump.log" | while read -r start length ip; do
            [ $((0x$ip - 0x$start)) -lt 0 ] || [ $((0x$ip - 0x$start)) -ge $((0x$length)) ] || echo inside
        done | wc -l)
        found="threads inside a section: $inside"
        ! grep -q 'fixup_thread_rseq for .* IP = 0$' "$here/dump.log" || found='CRIU is blind for sections'
        say "dumped ($(sed -n 's/^mode: //p' "$here/out")); $found"
        # As it is now: CRIU compares the sizes of open files.
        [ -z "$GUEST" ] || tar -C "$folder" -cf "$folder/$1.tar" "$1"
    else
        say "FAILED to dump: $(errors "$here/dump.log")"
        kill -9 "$process"
    fi
}

restore() {
    if ! [ -e "$here/images/inventory.img" ]; then
        say "not tried, there is no dump"
        return
    fi
    rm -f "$here/restored.pause"
    touch "$here/restored"
    if ! timeout 120 "$CRIU" restore --restore-detached --images-dir "$here/images" -v4 --log-file "$here/restore.log" \
        2>/dev/null; then
        say "FAILED to restore: $(errors "$here/restore.log")"
        return
    fi
    for _ in $(seq 600); do
        ! grep -qE '^(PASSED|FAILED)' "$here/out" || break
        sleep 0.1
    done
    last=$(grep -E '^(PASSED|FAILED)' "$here/out" || echo "FAILED: it has not ended: $(tail -n 1 "$here/out")")
    fence=$(sed -n 's/^restored: the fence: //p' "$here/out")
    say "$last; the fence: ${fence:-not tried}$(sed -n 's/^round [0-9]*: WRONG/; WRONG/p' "$here/out")"
}

number=0
for step in "$@"; do
    number=$((number + 1))
    here=$folder/${step#*:}
    "${step%%:*}" "${step#*:}"
done
END

# The first process of a guest goes to a file system of its own: CRIU cannot work on the initial one, which no mount
# table lists.
cat >"$work/init" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o size=75% new /new
for archive in /*.tar; do
    /bin/busybox tar -xf "$archive" -C /new
    /bin/busybox rm "$archive"
done
exec /bin/busybox switch_root /new /guest
END
cat >"$work/guest" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /criu
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin GUEST=1
dmesg -n 1
# CRIU tries out a connection to itself, and whether there is nftables.
ip link set lo up
for module in libcrc32c nfnetlink nf_tables; do
    [ ! -e "/modules/$module.ko" ] || insmod "/modules/$module.ko"
done
# shellcheck disable=SC2046 # one word each
/bin/sh /steps /criu $(echo "$STEPS" | tr , ' ')
cd /criu && tar -czf /dumps.tgz *.tar && base64 /dumps.tgz >/dev/ttyS1
echo "@guest end"
sleep 1
poweroff -f
END
chmod +x "$work/init" "$work/guest"

# What a guest needs of this system, at the same places.
{
    printf '%s\n' "$criu" "$program" "$work/busybox" /lib64/ld-linux-x86-64.so.2
    for file in "$criu" "$program"; do
        ldd "$file" 2>/dev/null | sed -n 's|.* => \(/[^ ]*\) .*|\1|p' || true
    done
    [ -z "${CRIU_FOLDER:-}" ] || printf '%s\n' "$CRIU_FOLDER"
} | sed 's|^/||' | sort -u >"$work/files"
cp "$(command -v busybox)" "$work/busybox"
tar -chf "$work/system.tar" -C / --transform "s|^${work#/}/busybox\$|bin/busybox|" -T "$work/files"
tar -rf "$work/system.tar" -C "$work" steps guest

# Puts the modules that CRIU needs of a kernel into an archive.
modules() {
    local release=${1##*/vmlinuz-} folder=$work/modules
    rm -rf "$folder"
    mkdir -p "$folder/modules"
    find "${1%/boot/*}/lib/modules/$release" -name 'libcrc32c.ko*' -o -name 'nfnetlink.ko*' -o -name 'nf_tables.ko*' |
        while read -r module; do
            case $module in
            *.xz) xz -dc "$module" >"$folder/modules/$(basename "$module" .xz)" ;;
            *) cp "$module" "$folder/modules" ;;
            esac
        done
    tar -cf "$2" -C "$folder" modules
}

# Runs steps in a guest: guest KERNEL STEPS [DUMPS], where STEPS are separated by commas. Leaves the dumps in dumps.tgz.
guest() {
    local kernel=$1 steps=$2 dumps=${3:-}
    local initial=$work/initial
    rm -rf "$initial"
    mkdir -p "$initial/bin"
    cp "$work/init" "$work/system.tar" "$initial"
    cp "$work/busybox" "$initial/bin"
    modules "$kernel" "$initial/modules.tar"
    [ -z "$dumps" ] || cp "$dumps" "$initial/"
    (cd "$initial" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initial.gz"
    rm -f "$work/console" "$work/serial"
    timeout "${GUEST_LIMIT:-300}" \
        qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 4 -m 1536 -no-reboot \
        -display none -monitor none -serial "file:$work/console" -serial "file:$work/serial" \
        -kernel "$kernel" -initrd "$work/initial.gz" \
        -append "console=ttyS0 quiet panic=-1 no_timer_check CRIU=$criu PROGRAM=$program STEPS=$steps" \
        </dev/null || true
    tr -d '\r' <"$work/console" | grep '^@criu' | sed 's/^@criu //' || true
    if ! grep -q '^@guest end' "$work/console"; then
        echo "FAILED: the guest with $(basename "$kernel") did not come to its end:"
        tail -n 20 "$work/console"
    fi
    tr -d '\r' <"$work/serial" | base64 -d >"$work/dumps.tgz" || true
}

# Unpacks the dumps that a guest has left, as an archive for another one: criu/CASE.
keep_dumps() {
    local archive=$1 folder=$work/kept
    rm -rf "$folder"
    mkdir -p "$folder/criu"
    tar -xzf "$work/dumps.tgz" -C "$folder/criu" 2>/dev/null || true
    for dump in "$folder"/criu/*.tar; do
        [ -e "$dump" ] || continue
        tar -xf "$dump" -C "$folder/criu"
        rm "$dump"
    done
    tar -cf "$archive" -C "$folder" criu
}

# Steps in one line, with a separator: of the cases that are dumped, and of those that are restored elsewhere.
cases=(quiet-libc quiet-own quiet-own-cpu_id busy-libc busy-own busy-own-cpu_id)
same_kernel() {
    local steps=()
    for name in "${cases[@]}"; do
        steps+=("dump:$name" "restore:$name")
    done
    printf '%s\n' "${steps[@]}" | paste -sd "$1"
}
other_kernel() {
    printf 'restore:%s\n' "${cases[@]}" | paste -sd ,
}

failed=0
blind=''
# Shows the lines of some steps. A failure counts, except in the cases of the pattern, if one is given, and in those
# that CRIU is too blind for.
judge() {
    local lines counted
    lines=$(cat)
    printf '%s\n' "$lines" | sed 's/^/  /'
    ! grep -q 'CRIU is blind' <<<"$lines" || blind=yes
    counted=$(grep -E 'FAILED|WRONG|not tried' <<<"$lines" || true)
    [ -z "$blind" ] || counted=$(grep -v ' restore:busy-' <<<"$counted" || true)
    [ -z "${1:-}" ] || counted=$(grep -vE "$1" <<<"$counted" || true)
    [ -z "$counted" ] || failed=1
}

echo "criu: $("$criu" --version | head -n 1)"
echo "on the running kernel:"
if error=$("$criu" check 2>&1); then
    mkdir "$work/host"
    # shellcheck disable=SC2046 # one word each
    CRIU=$criu PROGRAM=$program GUEST='' sh "$work/steps" "$work/host" $(same_kernel ' ') 2>/dev/null |
        sed 's/^@criu //' >"$work/lines"
    judge <"$work/lines"
else
    echo "  $(uname -r) skipped: criu check says: $(grep -v 'exited, status=1' <<<"$error" | head -n 1)"
fi

new=$(kernel 6.12)
old=$(kernel 6.1)
echo "from 6.12 to 6.12:"
guest "$new" "$(same_kernel ,)" >"$work/lines"
judge <"$work/lines"
keep_dumps "$work/new.tar"
echo "from 6.12 to 6.1, which does not fill mm_cid:"
guest "$old" "$(other_kernel)" "$work/new.tar" >"$work/lines"
judge 'restore:[a-z]*-(libc|own):' <"$work/lines"
echo "from 6.1 to 6.1:"
guest "$old" "$(same_kernel ,)" >"$work/lines"
judge <"$work/lines"
keep_dumps "$work/old.tar"
echo "from 6.1 to 6.12:"
guest "$new" "$(other_kernel)" "$work/old.tar" >"$work/lines"
judge <"$work/lines"
[ "$failed" -eq 0 ] || echo "criu: FAILED: see the lines above"
exit "$failed"
