#!/usr/bin/env bash
# Installs what ci/kernels.sh needs for an architecture and its libcs, by apt-get, and fetches what guests are made of.
#
#     ci/kernels/install.sh packages ARCH-LIBC...       x86_64-musl-static, aarch64-glibc-dynamic, …
#     ci/kernels/install.sh kernel SERIES ARCH OUT      Debian's newest kernel of a series: 6.1, 7.3, …
#     ci/kernels/install.sh busybox ARCH OUT            the guests' shell and tools
#     ci/kernels/install.sh libc ARCH OUT               the glibc of Debian 13 (2.41) and its libgcc
#
# All but the first print the path of the file, or of the folder. What only guests use is fetched and unpacked below
# OUT, never installed; what comes from Debian 13, by package lists of its own below OUT. Nothing is asked of the network
# where everything is there.
set -euo pipefail

# shellcheck source=ci/debian.sh
. "$(dirname "$0")/../debian.sh"

debian_name() {
    case $1 in
    x86_64) printf 'amd64\n' ;;
    aarch64) printf 'arm64\n' ;;
    esac
}

install_packages() {
    local build packages=(cpio)
    for build; do
        case $build in
        x86_64-musl-static) packages+=(qemu-system-x86 musl-tools rust-web-src rustc-web libunwind-14-dev) ;;
        x86_64-*) packages+=(qemu-system-x86) ;;
        aarch64-*)
            # The second std is for build scripts, which run here.
            packages+=(qemu-system-arm rustc-web libstd-rust-web-dev libstd-rust-web-dev:arm64)
            packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
            if ! dpkg --print-foreign-architectures | grep -qx arm64; then
                as_root dpkg --add-architecture arm64
            fi
            ;;
        esac
    done
    install_missing "${packages[@]}"
}

# Downloads a package into a folder and unpacks the files that match there, unless that was done before. What follows
# the pattern is options of apt-get.
unpack() {
    local package=$1 folder=$2 pattern=$3
    [ ! -e "$folder/done" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder"
    (
        cd "$folder"
        apt-get "${@:4}" download -qq -o APT::Sandbox::User="$(id -un)" "$package" >&2
        dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards "$pattern"
        rm ./*.deb
        touch ./done
    )
}

# The package of a kernel of Debian 12 at present, without its architecture; nothing if the lists do not have it.
current_kernel() {
    apt-cache depends --important "$1:$2" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^:]*\).*/\1/p' | head -n 1
}

# Sets other_lists: Debian 13 and its backports, with lists below OUT.
debian_13() {
    other_lists "$1/debian-13" "deb [arch=amd64,arm64] MIRROR trixie main" \
        "deb [arch=amd64,arm64] MIRROR trixie-backports main"
}

# The newest kernel of a series in the backports of Debian 13. From 6.19 on the image is in a package "linux-binary".
backported_kernel() {
    apt-cache "${other_lists[@]}" search -n "^linux-binary-$1\.[0-9]+\+deb13-cloud-$2\$" | sed 's/ .*//' | sort -V | tail -n 1
}

fetch_kernel() {
    local series=$1 arch out=$3 meta='' package other_lists=()
    arch=$(debian_name "$2")
    case $series in
    6.1) meta=linux-image-cloud-$arch ;;
    6.12) meta=linux-image-6.12-cloud-$arch ;;
    esac
    if [ -z "$meta" ]; then
        debian_13 "$out"
        package=$(backported_kernel "$series" "$arch")
    else
        package=$(current_kernel "$meta" "$arch")
        if [ -z "$package" ]; then
            update_lists
            package=$(current_kernel "$meta" "$arch")
        fi
    fi
    if [ -z "$package" ]; then
        printf 'install.sh: there is no kernel %s for %s\n' "$series" "$arch" >&2
        exit 1
    fi
    unpack "$package:$arch" "$out/kernel/$package" '*/vmlinuz*' "${other_lists[@]}"
    find "$out/kernel/$package" -type f -name 'vmlinuz*'
}

fetch_busybox() {
    local arch=$1 out=$2
    unpack "busybox-static:$(debian_name "$arch")" "$out/busybox-$arch" '*/bin/busybox'
    find "$out/busybox-$arch" -type f -name busybox
}

# The files of both packages in one folder, which is what a guest wants.
fetch_libc() {
    local arch=$1 out=$2 folder=$2/glibc-2.41-$1 other_lists=()
    debian_13 "$out"
    unpack "libc6:$(debian_name "$arch")" "$folder/libc6" '*-linux-gnu/*.so*' "${other_lists[@]}"
    unpack "libgcc-s1:$(debian_name "$arch")" "$folder/libgcc" '*-linux-gnu/*.so*' "${other_lists[@]}"
    mkdir -p "$folder/all"
    find "$folder"/lib* -name '*.so*' -path "*/lib/$arch-linux-gnu/*" -exec cp -L -t "$folder/all" {} +
    printf '%s\n' "$folder/all"
}

# Only one at a time, since they share package lists.
alone() {
    exec 9>"$1/install.lock"
    flock 9
}

case ${1:-} in
packages) install_packages "${@:2}" ;;
kernel)
    alone "$4"
    fetch_kernel "${@:2:3}"
    ;;
busybox | libc)
    alone "$3"
    "fetch_$1" "${@:2:2}"
    ;;
*)
    printf 'usage: ci/kernels/install.sh packages|kernel|busybox|libc …\n' >&2
    exit 2
    ;;
esac
