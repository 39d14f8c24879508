#!/usr/bin/env bash
# Builds librseqalloc and installs it with its header, pkg-config file and manual page, or takes all that away again.
#
#     alloc-c/install.sh [--uninstall]
#
# Environment, with defaults: PREFIX (/usr/local), LIBDIR ($PREFIX/lib), INCLUDEDIR ($PREFIX/include), MANDIR
# ($PREFIX/share/man), DESTDIR (empty; put in front of all of them, for packages), CARGO (cargo). Options of cargo's own
# go by its variables: CARGO_NET_OFFLINE=true uses no network, CARGO_TARGET_DIR builds elsewhere.
set -euo pipefail
cd "$(dirname "$0")"

prefix=${PREFIX:-/usr/local}
libdir=${LIBDIR:-$prefix/lib}
includedir=${INCLUDEDIR:-$prefix/include}
mandir=${MANDIR:-$prefix/share/man}
destdir=${DESTDIR:-}
cargo=${CARGO:-cargo}

for name in prefix libdir includedir mandir; do
    if [[ ${!name} != /* ]]; then
        printf 'install.sh: %s is to be an absolute path, not "%s"\n' "${name^^}" "${!name}" >&2
        exit 2
    fi
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' ../Cargo.toml)
soname=$(sed -n 's/.*-soname,\(librseqalloc\.so\.[0-9]*\)".*/\1/p' build.rs)
if [ -z "$version" ] || [ -z "$soname" ]; then
    printf 'install.sh: no version in Cargo.toml, or no soname in build.rs\n' >&2
    exit 1
fi

lib=$destdir$libdir
include=$destdir$includedir
man=$destdir$mandir/man3

uninstall() {
    rm -f "$lib"/librseqalloc.{so,a} "$lib/$soname" "$lib/librseqalloc.so.$version" "$lib/pkgconfig/rseqalloc.pc" \
        "$include/rseqalloc.h" "$man/rseqalloc.3"
}

# Where cargo puts what it builds.
target_directory() {
    "$cargo" metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

do_install() {
    "$cargo" build --release -p alloc-c --lib
    local built
    built=$(target_directory)/release
    install -d "$lib/pkgconfig" "$include" "$man"
    # A running program keeps the file it has mapped; "install" makes a new one.
    install -m 755 "$built/librseqalloc.so" "$lib/librseqalloc.so.$version"
    strip --strip-debug "$lib/librseqalloc.so.$version"
    ln -sf "librseqalloc.so.$version" "$lib/$soname"
    ln -sf "$soname" "$lib/librseqalloc.so"
    install -m 644 "$built/librseqalloc.a" "$lib/"
    strip --strip-debug "$lib/librseqalloc.a"
    install -m 644 include/rseqalloc.h "$include/"
    sed -e "s|@PREFIX@|$prefix|" -e "s|@LIBDIR@|$libdir|" -e "s|@INCLUDEDIR@|$includedir|" -e "s|@VERSION@|$version|" \
        rseqalloc.pc.in >"$lib/pkgconfig/rseqalloc.pc"
    chmod 644 "$lib/pkgconfig/rseqalloc.pc"
    sed -e "s|@LIBDIR@|$libdir|" man/rseqalloc.3.in >"$man/rseqalloc.3"
    chmod 644 "$man/rseqalloc.3"
    printf 'installed librseqalloc %s to %s\n' "$version" "$lib"
    # Only a system directory of the running system, not a staging area, has a linker cache.
    if [ -z "$destdir" ] && [ "$(id -u)" -eq 0 ] && command -v ldconfig >/dev/null; then
        ldconfig
    fi
}

case ${1:-} in
'') do_install ;;
--uninstall) uninstall ;;
*)
    printf 'usage: alloc-c/install.sh [--uninstall]\n' >&2
    exit 2
    ;;
esac
