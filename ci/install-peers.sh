#!/usr/bin/env bash
# Installs what compiles the peers that the crate `bench` measures against: jemalloc (C, make) and snmalloc (C++, cmake).
# For Debian and its relatives; needs root, or sudo.
set -euo pipefail

missing=()
for pair in cc:gcc c++:g++ make:make cmake:cmake; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "install-peers: everything is there"
    exit 0
fi

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
echo "install-peers: installed ${missing[*]}"
