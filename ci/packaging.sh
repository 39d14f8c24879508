#!/usr/bin/env bash
# Builds the C library from the source archive without network and without cargo's caches, installs it to a staging
# directory, and uses what was installed as a C programmer would.
#
#     ci/packaging.sh
#
# Installs mandoc and pkg-config by apt-get where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. ci/debian.sh

out=${CARGO_TARGET_DIR:-target}/packaging
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
stage=$out/stage
libdir=/usr/lib/here

fail() {
    printf 'packaging: %s\n' "$*" >&2
    exit 1
}

# Runs a command where there is no network at all, if this user may make such a place.
without_network() {
    if unshare --map-root-user --net true 2>/dev/null; then
        unshare --map-root-user --net "$@"
    else
        printf 'packaging: no namespace without network here; cargo is told to use none\n' >&2
        "$@"
    fi
}

# The installer, in the unpacked archive.
installer() {
    (cd "$out"/rseq-alloc-* &&
        without_network env CARGO_HOME="$out/cargo" CARGO_NET_OFFLINE=true CARGO_TARGET_DIR="$out/build" \
            DESTDIR="$stage" PREFIX=/usr LIBDIR="$libdir" alloc-c/install.sh "$@")
}

installed() {
    (cd "$stage" && find . ! -type d -printf '%P %l\n' | sed 's/ *$//' | sort)
}

check_files() {
    local lib=${libdir#/}
    diff <(
        printf '%s\n' "$lib/librseqalloc.a" "$lib/librseqalloc.so librseqalloc.so.0" \
            "$lib/librseqalloc.so.0 librseqalloc.so.$version" "$lib/librseqalloc.so.$version" \
            "$lib/pkgconfig/rseqalloc.pc" usr/include/rseqalloc.h usr/share/man/man3/rseqalloc.3 | sort
    ) <(installed) || fail 'these are not the files that should have been installed'
    ! grep -rl '@[A-Z]*@' "$stage/usr/share" "$stage$libdir/pkgconfig" || fail 'there are names left to be replaced'
    mandoc -T lint -W warning "$stage/usr/share/man/man3/rseqalloc.3" || fail 'the manual page has mistakes'
    mandoc -T utf8 "$stage/usr/share/man/man3/rseqalloc.3" | grep -q 'LD_PRELOAD=/usr/lib/here/librseqalloc.so.0' ||
        fail 'the manual page does not say where the library is'
}

write_program() {
    cat >"$out/program.c" <<'C'
#include <rseqalloc.h>
#include <stdio.h>
#include <stdlib.h>
int main(void)
{
    char text[4096];
    void *block = malloc(100);
    if (block == NULL || rseqalloc_stats_json(text, sizeof text) < 100 || rseqalloc_set_options("decay=500") != 0)
        return 1;
    free(block);
    puts(rseqalloc_mode());
    return 0;
}
C
    cp "$out/program.c" "$out/program.cpp"
}

flags() {
    PKG_CONFIG_PATH=$stage$libdir/pkgconfig PKG_CONFIG_SYSROOT_DIR=$stage pkg-config "$@" rseqalloc
}

# Builds a program with the installed files and prints the mode that it prints.
mode_of() {
    local compiler=$1 standard=$2 source=$3
    shift 3
    # shellcheck disable=SC2046 # pkg-config prints words
    "$compiler" "-std=$standard" -Wall -Wextra -Wpedantic -Werror "$out/$source" -o "$out/program" "$@" 2>"$out/errors" ||
        { cat "$out/errors" >&2 && fail "$source does not build with $*"; }
    LD_LIBRARY_PATH=$stage$libdir "$out/program" || fail "the program built with $* fails"
}

install_missing mandoc pkg-config gcc g++ xz-utils
archive=$(ci/dist.sh)
tar -xJf "$archive" -C "$out"
version=$(basename "$archive" .tar.xz)
version=${version#rseq-alloc-}
write_program

installer
check_files
read -ra shared <<<"$(flags --cflags --libs)"
read -ra static <<<"$(flags --static --cflags --libs)"
[ "$(flags --modversion)" = "$version" ] || fail 'pkg-config knows another version'
mode=$(mode_of cc c99 program.c "${shared[@]}")
case $mode in
mm_cid* | cpu_id* | arenas*) ;;
*) fail "the program says: $mode" ;;
esac
[ "$(mode_of c++ c++17 program.cpp "${shared[@]}")" = "$mode" ] || fail 'another mode from C++'
# The linker warns of what std names and nobody calls.
[ "$(mode_of cc c99 program.c -static "${static[@]}")" = "$mode" ] || fail 'another mode when linked statically'
preloaded=$(LD_PRELOAD=$stage$libdir/librseqalloc.so.0 sh -c 'cat /proc/self/maps')
grep -q "librseqalloc.so.$version" <<<"$preloaded" || fail 'it is not mapped under LD_PRELOAD'
status=0
PREFIX=relative alloc-c/install.sh 2>"$out/errors" || status=$?
if [ "$status" -ne 2 ] || ! grep -q 'PREFIX is to be an absolute path' "$out/errors"; then
    fail 'a relative PREFIX was taken'
fi
installer --uninstall
[ -z "$(installed)" ] || fail "left behind: $(installed)"
printf 'packaging: %s builds offline, installs, links (%s) and uninstalls\n' "$(basename "$archive")" "$mode"
