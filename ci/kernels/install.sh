#!/usr/bin/env bash
# Installs what ci/kernels.sh needs for an architecture and its libcs, by apt-get, and fetches Debian's kernels.
#
#     ci/kernels/install.sh packages ARCH-LIBC...     x86_64-musl-static, aarch64-glibc-dynamic, …
#     ci/kernels/install.sh kernel META ARCH OUT      the kernel that the package META stands for
#     ci/kernels/install.sh busybox ARCH OUT          the guests' shell and tools
#
# The second and third form print the path of a file. What only guests use is fetched and unpacked below OUT, never
# installed. Nothing is asked of the network where everything is there.
set -euo pipefail

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# Package lists are fetched once, and only if something is missing.
update() {
    as_root apt-get update -qq
}

debian_name() {
    case $1 in
    x86_64) printf 'amd64\n' ;;
    aarch64) printf 'arm64\n' ;;
    esac
}

install_packages() {
    local build package packages=(cpio) missing=()
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
    for package in "${packages[@]}"; do
        dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The package of this kernel at present, without its architecture; nothing if the lists do not have it.
current_kernel() {
    apt-cache depends --important "$1:$2" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^:]*\).*/\1/p' | head -n 1
}

# Downloads a package into a folder and unpacks one folder of it there, unless that was done before.
unpack() {
    local package=$1 part=$2 folder=$3
    [ ! -e "$folder/done" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder"
    (
        cd "$folder"
        apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$package" >&2
        dpkg-deb --fsys-tarfile ./*.deb | tar -x "./$part"
        rm ./*.deb
        touch done
    )
}

fetch_kernel() {
    local meta=$1 arch out=$3 package
    arch=$(debian_name "$2")
    package=$(current_kernel "$meta" "$arch")
    if [ -z "$package" ]; then
        update
        package=$(current_kernel "$meta" "$arch")
    fi
    unpack "$package:$arch" boot "$out/kernel/$package"
    printf '%s\n' "$out/kernel/$package"/boot/vmlinuz-*
}

fetch_busybox() {
    local arch=$1 out=$2
    unpack "busybox-static:$(debian_name "$arch")" bin "$out/busybox-$arch"
    printf '%s\n' "$out/busybox-$arch/bin/busybox"
}

case ${1:-} in
packages) install_packages "${@:2}" ;;
kernel) fetch_kernel "${@:2:3}" ;;
busybox) fetch_busybox "${@:2:2}" ;;
*)
    printf 'usage: ci/kernels/install.sh packages|kernel|busybox …\n' >&2
    exit 2
    ;;
esac
