#!/usr/bin/env bash
# The amounts of work in a row of ci/kernels.sh, as NAME=VALUE lines for the environment of its programs.
#
#     ci/kernels/work.sh long|short KERNEL ARCH CPUS BUILD
#
# LEAVE_OUT names programs that a row does without: in the short form, the tests that start dozens of processes, or need
# minutes where many emulated CPUs share two, run on the host with every libc, and in guests on Linux 6.12 with 4 CPUs
# and glibc linked dynamically, on both architectures.
#
# STORM_CPUS and STRESS_CPUS are where programs with timers in every thread run (the others, and the stress test), if not
# everywhere. The kernel's locks for aarch64 are handed on in the order in which CPUs came, whether the next one runs or
# not. With 16 emulated CPUs on two that is a stand-still as soon as all of them want a lock, and the signals of timers
# do: the attack did not get through its first test in a quarter of an hour. With 4 the stress test needs seconds or
# minutes, by chance. (On x86-64 the kernel knows that it is emulated and lets any CPU have the lock.) So there they have
# the last two.
set -euo pipefail

leave_out='' storm_cpus='' stress_cpus=''
form=${1:?usage: ci/kernels/work.sh long|short KERNEL ARCH CPUS BUILD}
kernel=$2 arch=$3 cpus=$4 build=$5

if [ "$kernel" = host ]; then
    if [ "$form" = long ]; then
        percent=100 seconds=20 operations=20000000 limit=900
    else
        percent=10 seconds=2 operations=500000 limit=500
    fi
    threads=8 period=200 aborts=1000 hertz=5000
else
    if [ "$form" = long ]; then
        percent=2 seconds=4 operations=20000 aborts=20 limit=900
    else
        percent=1 seconds=2 operations=10000 aborts=10 limit=500
        if [ "$kernel-$cpus-$build" != 6.12-4-glibc-dynamic ]; then
            leave_out=rseq_sys.attack,rseq_sys.refused,rseq_sys.registration,rseq_sys.singlestep
            [ "$cpus" -ne 16 ] || leave_out+=,rseq_sys.self_test
        fi
    fi
    # As many timers as there are threads share two real processors.
    threads=2 period=$((500 * cpus))
    case $arch-$cpus in
    aarch64-16) storm_cpus=14-15 stress_cpus=14-15 period=1000 ;;
    aarch64-4) stress_cpus=2-3 period=1000 ;;
    esac
    # How fast a guest runs depends on what else the machine does. What shows that it was disturbed is the aborts.
    hertz=1
    # Tests with time limits of their own do not share them with others.
    printf 'RUST_TEST_THREADS=1\n'
fi
printf '%s=%s\n' RSEQ_SYS_TEST_PERCENT "$percent" STRESS_SECONDS "$seconds" STRESS_OPS "$operations" \
    STRESS_THREADS "$threads" STRESS_SIGNAL_US "$period" STRESS_ABORTS "$aborts" STRESS_HERTZ "$hertz" PROGRAM_LIMIT "$limit" \
    LEAVE_OUT "$leave_out" STORM_CPUS "$storm_cpus" STRESS_CPUS "$stress_cpus"
