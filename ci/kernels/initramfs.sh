#!/usr/bin/env bash
# Packs the initial file system of some guests: busybox, /init, the rows' script, programs and their libraries.
#
#     ci/kernels/initramfs.sh ARCH ROOT BUILD OUT       makes OUT/ARCH-ROOT.cpio of OUT/programs/ARCH/BUILD
#
# ROOT is BUILD, or glibc-2.41, which is glibc-dynamic on another C library. The programs lie in /tests/ROOT.
# It is not compressed: an emulated processor copies faster than it unpacks.
set -euo pipefail
cd "$(dirname "$0")"

name=$1-${2:?usage: ci/kernels/initramfs.sh ARCH ROOT BUILD OUT}
arch=$1 root=$2 build=$3 out=$4
tree=$out/root-$name

rm -rf "$tree"
mkdir -p "$tree"/{bin,dev,proc,sys,tmp,tests}
busybox=$(./install.sh busybox "$arch" "$out")
cp "$busybox" "$tree/bin/busybox"
ln -s busybox "$tree/bin/sh"
cp init run-rows.sh "$tree/"
cp -r "$out/programs/$arch/$build" "$tree/tests/$root"

# The libraries that dynamic programs name, under the paths that they name: the loader by its full path, the others where
# that loader looks first.
case $arch in
x86_64) from=(/lib/x86_64-linux-gnu /lib64) loader=lib64/ld-linux-x86-64.so.2 libraries=lib/x86_64-linux-gnu ;;
aarch64) from=(/usr/aarch64-linux-gnu/lib) loader=lib/ld-linux-aarch64.so.1 libraries=lib/aarch64-linux-gnu ;;
esac
case $root in
glibc-2.41)
    folder=$(./install.sh libc "$arch" "$out")
    from=("$folder")
    ;;
esac
if [ "$build" = glibc-dynamic ]; then
    mkdir -p "$tree/$(dirname "$loader")" "$tree/$libraries"
    cp -L "$(find "${from[@]}" -maxdepth 1 -name "${loader##*/}" | head -n 1)" "$tree/$loader"
    for library in libc.so.6 libgcc_s.so.1 libm.so.6; do
        cp -L "$(find "${from[@]}" -maxdepth 1 -name "$library" | head -n 1)" "$tree/$libraries/"
    done
fi

(cd "$tree" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet) >"$out/$name.cpio.new"
mv "$out/$name.cpio.new" "$out/$name.cpio"
