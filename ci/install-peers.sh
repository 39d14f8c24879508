#!/usr/bin/env bash
# Installs what compiles the peers that `bench` measures against, and the ones that are preloaded, by apt-get (Debian and
# its relatives; needs root, or sudo); then builds all peers, and asks each what it is.
#
#     ci/install-peers.sh [--packages]
#
# --packages stops before the builds, which take some minutes: `bench` builds what it needs itself when it runs.
# tikv-jemallocator needs a C compiler and make, snmalloc-rs a C++ compiler and cmake, tcmalloc-better a C++ compiler,
# mimalloc and rpmalloc a C compiler; versions are those of Cargo.lock. Debian has the preloaded ones.
set -euo pipefail
cd "$(dirname "$0")/.."

# Commands that have to be there and the packages that have them; packages that are libraries.
readonly TOOLS=(cc:gcc c++:g++ make:make cmake:cmake)
readonly LIBRARIES=(libtcmalloc-minimal4 libmimalloc2.0)

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

is_installed() {
    dpkg-query --show --showformat='${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'
}

install_packages() {
    local pair package missing=()
    for pair in "${TOOLS[@]}"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    for package in "${LIBRARIES[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        echo "install-peers: all packages are there"
        return
    fi
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    echo "install-peers: installed ${missing[*]}"
}

build=true
case $#:${1:-} in
0:) ;;
1:--packages) build=false ;;
*)
    printf 'usage: ci/install-peers.sh [--packages]\n' >&2
    exit 2
    ;;
esac

install_packages
if $build; then
    cargo run --quiet --release -p bench -- --build
fi
