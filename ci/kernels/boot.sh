#!/usr/bin/env bash
# Boots one guest and runs rows in it.
#
#     ci/kernels/boot.sh ARCH IMAGE INITRAMFS CPUS LIMIT [NAME=VALUE...] >CONSOLE
#
# The pairs become environment of the guest's first process. A guest that is not through after LIMIT seconds is killed,
# with a line "@host killed"; what becomes of a guest is to be read from its console, so the exit status is always 0.
set -uo pipefail

arch=${1:?usage: ci/kernels/boot.sh ARCH IMAGE INITRAMFS CPUS LIMIT [NAME=VALUE...]}
image=$2 initramfs=$3 cpus=$4 limit=$5
shift 5

# Emulation throughout, so that every machine gives the same table: most CI machines have no KVM for the second
# architecture, and many for none.
machine=(-smp "$cpus" -m 2G -accel "tcg,thread=multi")
case $arch in
x86_64)
    machine=(qemu-system-x86_64 "${machine[@]}" -cpu max)
    # A kernel that patches its code while another CPU runs it crashes now and then under emulation. Most of that is done
    # while it boots, with one CPU therefore (/init starts the others); and on a busy machine it would take the emulated
    # clocks for broken and patch its code to do without them.
    options="console=ttyS0 maxcpus=1 noreplace-smp tsc=reliable no_timer_check"
    ;;
aarch64)
    # The architected algorithm of pointer authentication costs more than all the rest under emulation.
    machine=(qemu-system-aarch64 -M "virt,gic-version=3" "${machine[@]}" -cpu "max,pauth-impdef=on")
    options="console=ttyAMA0"
    ;;
esac
# A crashed kernel restarts at once, which ends the guest. Its watchdogs know nothing of emulation and are off.
line="$options quiet panic=-1 oops=panic nowatchdog rcupdate.rcu_cpu_stall_suppress=1 $*"
timeout --foreground -k 5 "$limit" "${machine[@]}" -kernel "$image" -initrd "$initramfs" -append "$line" \
    -no-reboot -nographic -net none -monitor none </dev/null 2>&1 | sed -u 's/\r//g'
status=${PIPESTATUS[0]}
case $status in
0) ;;
124 | 137) printf '\n@host killed after %d s\n' "$limit" ;;
*) printf '\n@host qemu ended with status %d\n' "$status" ;;
esac
exit 0
