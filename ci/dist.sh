#!/usr/bin/env bash
# Makes a source archive of the allocator with the sources of everything it is built from, so that it builds, tests and
# installs without a network.
#
#     ci/dist.sh              writes target/dist/rseq-alloc-VERSION.tar.xz and prints its path
#
# It holds the committed state of rseq-sys, alloc-core and alloc-c; benchmarks, and tests that need peers, stay here.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${CARGO_TARGET_DIR:-target}/dist
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
name=rseq-alloc-$version
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ -n "$(git status --porcelain -- . | grep -v '^??' || true)" ]; then
    printf 'dist.sh: what is not committed will not be in the archive\n' >&2
fi
git archive --prefix="$name/" HEAD Cargo.toml Cargo.lock rustfmt.toml rseq-sys alloc-core alloc-c README.md \
    ARCHITECTURE.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE | tar -x -C "$out"
(
    cd "$out/$name"
    sed -i 's/^members = .*/members = ["rseq-sys", "alloc-core", "alloc-c"]/; /^# bench pulls in/d; /^default-members/d' \
        Cargo.toml
    # The profiles of packages that are not there.
    sed -i '/^\[profile.release.package\./,/^$/d' Cargo.toml
    mkdir .cargo
    # Told to be quiet it does not print the configuration either.
    cargo vendor vendor >.cargo/config.toml 2>../vendor.log || { cat ../vendor.log >&2 && exit 1; }
)
rm "$out/vendor.log"
XZ_OPT=-2 tar -C "$out" --sort=name --owner=0 --group=0 -cJf "$out/$name.tar.xz" "$name"
rm -rf "${out:?}/$name"
printf '%s\n' "$out/$name.tar.xz"
