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

# shellcheck source=ci/debian.sh
. ci/debian.sh

build=true
case $#:${1:-} in
0:) ;;
1:--packages) build=false ;;
*)
    printf 'usage: ci/install-peers.sh [--packages]\n' >&2
    exit 2
    ;;
esac

install_missing gcc g++ make cmake libtcmalloc-minimal4 libmimalloc2.0
if $build; then
    cargo run --quiet --release -p bench -- --build
fi
