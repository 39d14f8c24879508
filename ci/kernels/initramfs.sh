#!/usr/bin/env bash
# Packs the initial file system of the guests of one architecture: busybox, /init, the rows' script and the programs.
#
#     ci/kernels/initramfs.sh ARCH OUT        makes OUT/ARCH.cpio of OUT/programs/ARCH
#
# It is not compressed: an emulated processor copies faster than it unpacks.
set -euo pipefail
cd "$(dirname "$0")"

arch=${1:?usage: ci/kernels/initramfs.sh ARCH OUT}
out=$2
root=$out/root-$arch

rm -rf "$root"
mkdir -p "$root"/{bin,dev,proc,sys,tmp,tests}
cp "$(./install.sh busybox "$arch" "$out")" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp init run-rows.sh "$root/"
for programs in "$out/programs/$arch"/*; do
    cp -r "$programs" "$root/tests/"
done

# The libraries that the dynamic programs name, under the paths that they name: the loader by its full path, the
# others where that loader looks first.
case $arch in
x86_64) from=(/lib/x86_64-linux-gnu /lib64) loader=lib64/ld-linux-x86-64.so.2 libraries=lib/x86_64-linux-gnu ;;
aarch64) from=(/usr/aarch64-linux-gnu/lib) loader=lib/ld-linux-aarch64.so.1 libraries=lib/aarch64-linux-gnu ;;
esac
if [ -d "$root/tests/glibc-dynamic" ]; then
    mkdir -p "$root/$(dirname "$loader")" "$root/$libraries"
    cp -L "$(find "${from[@]}" -maxdepth 1 -name "${loader##*/}" | head -n 1)" "$root/$loader"
    for library in libc.so.6 libgcc_s.so.1 libm.so.6; do
        cp -L "$(find "${from[@]}" -maxdepth 1 -name "$library" | head -n 1)" "$root/$libraries/"
    done
fi

(cd "$root" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet) >"$out/$arch.cpio.new"
mv "$out/$arch.cpio.new" "$out/$arch.cpio"
