# shellcheck shell=bash
# shellcheck disable=SC2154 # what is not assigned here is in ci/suites.sh
# Part of ci/suites.sh: the tests of glibc's folder malloc, with glibc's own test driver (its folder support), from the
# sources of a newer release than Debian 12's, which has more of them.

glibc_fetch() {
    fetch_debian trixie glibc 2.41 malloc support test-skeleton.c include/array_length.h include/intprops.h \
        include/libc-diag.h include/libc-pointer-arith.h sysdeps/generic/malloc-size.h \
        sysdeps/generic/malloc-alignment.h
}

glibc_names() {
    local file
    for file in "$out"/glibc/malloc/tst-*.c "$out/glibc/malloc/mallocbug.c"; do
        basename "$file" .c
    done
}

# The driver as a library: those of its files that the tests here need. Others want more of glibc's inner headers.
glibc_prepare() {
    local objects=$out/glibc-support file name paths=() built=()
    # Where glibc would be built and installed, which no test here asks.
    for name in SRCDIR_PATH OBJDIR_PATH OBJDIR_ELF_LDSO_PATH INSTDIR_PATH LIBDIR_PATH BINDIR_PATH SBINDIR_PATH \
        ROOTSBINDIR_PATH COMPLOCALEDIR_PATH SYSCONFDIR_PATH SLIBDIR_PATH; do
        paths+=("-D$name=\"/none\"")
    done
    rm -rf "$objects" "$out/glibc-support.a"
    mkdir -p "$objects"
    # Copies, so that glibc's other headers cannot hide the system's.
    mkdir -p "$objects/include"
    cp "$out"/glibc/include/*.h "$out"/glibc/sysdeps/generic/*.h "$objects/include/"
    for file in check ignore_stderr oom_error support_{paths,record_failure,shared_allocate,test_compare_failure} \
        support_test_{main,verify_impl} temp_file write_message \
        x{asprintf,calloc,chdir,fopen,fork,malloc,mmap,munmap,open,signal,sysconf} \
        xpthread_{barrier_{destroy,init,wait},barrierattr_{destroy,init,setpshared},check_return,create,join,kill}; do
        at_most
        logged "$objects/$file.log" gcc "${flags[@]}" -std=gnu11 -D_GNU_SOURCE -DTIMEOUTFACTOR=3 "${paths[@]}" -c \
            -I"$objects/include" -I"$out/glibc/support" -I"$out/glibc" "$out/glibc/support/$file.c" \
            -o "$objects/$file.o" &
        built+=("$objects/$file.o")
    done
    wait
    ar rcs "$out/glibc-support.a" "${built[@]}"
}

# As glibc's own Makefile has it: without the mallopt call of the old driver.
glibc_build() {
    local name=$1 program=$2 extra=() shims=$root/ci/suites/glibc
    case $name in
    tst-aligned-alloc-random* | tst-malloc-random)
        # Their malloc is a library in front of the real one.
        compile "$program.so" -shared -fPIC -D__libc_malloc=suites_next_malloc -D__libc_calloc=suites_next_calloc \
            -I"$shims" "$out/glibc/malloc/tst-aligned_alloc-lib.c" "$shims/next.c"
        printf 'before=%s ' "$program.so"
        ;;
    tst-malloc-thread-exit | tst-malloc-fork-deadlock) extra=(-include "$shims/mallopt.h") ;;
    # It limits its own address space to 200 MiB, which librseqalloc.so can only follow if it knows from the start.
    tst-malloc-thread-fail)
        extra=(-include "$shims/thread-fail.h")
        printf 'space=204800 '
        ;;
    tst-malloc-stats-cancellation) extra=(-include "$shims/stats.h") ;;
    esac
    # The attribute came to sys/cdefs.h after Debian 12.
    compile "$program" -std=gnu11 -D_GNU_SOURCE -DTEST_NO_MALLOPT \
        '-D__attribute_optimization_barrier__=__attribute__((noinline, noclone))' -I"$out/glibc-support/include" -I"$out/glibc" \
        "${extra[@]}" "$out/glibc/malloc/$name.c" "$out/glibc-support.a"
    printf '%s\n' "$program"
}
