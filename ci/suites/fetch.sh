# shellcheck shell=bash
# shellcheck disable=SC2154 # what is not assigned here is in ci/suites.sh
# Part of ci/suites.sh: where the suites' sources come from. Sets crates, the folder with the crates.

crates=$out/crates

# The crates that ship test suites, each at one version. ci/suites/Cargo.lock has their checksums; to change a version,
# change it here, run `cargo generate-lockfile` in target/suites/manifest and copy the file. Those that the crate `bench`
# measures against have the versions that they have there.
fetch_crates() {
    local manifest=$out/manifest
    [ ! -e "$out/crates.done" ] || ! cmp -s "$manifest/Cargo.lock" ci/suites/Cargo.lock || return 0
    rm -rf "$manifest" "$crates"
    mkdir -p "$manifest/src"
    : >"$manifest/src/lib.rs"
    cat >"$manifest/Cargo.toml" <<'END'
[package]
name = "suites"
version = "0.0.0"
edition = "2021"
publish = false

[dependencies]
rpmalloc-sys = "=0.2.3"
snmalloc-sys = "=0.7.6"
tikv-jemalloc-sys = "=0.7.1"

[workspace]
END
    cp ci/suites/Cargo.lock "$manifest/Cargo.lock"
    logged "$out/crates.log" cargo vendor --quiet --locked --manifest-path "$manifest/Cargo.toml" "$crates"
    touch "$out/crates.done"
}

# The folder of a crate.
crate() {
    printf '%s\n' "$crates/$1"
}

# fetch_debian RELEASE SOURCE VERSION PATH...: the upstream sources that RELEASE has of a package, of which these paths
# are unpacked into target/suites/SOURCE. apt-get checks the signature of the release and the hashes.
fetch_debian() {
    local release=$1 source=$2 version=$3 archive other_lists
    shift 3
    [ "$(cat "$out/$source.done" 2>/dev/null)" != "$release $version $*" ] || return 0
    other_lists "$out/debian-$release" "deb-src MIRROR $release main"
    rm -rf "${out:?}/$source" "$out/$source.archive"
    mkdir -p "$out/$source" "$out/$source.archive"
    (cd "$out/$source.archive" && logged "$out/$source.log" apt-get -qq "${other_lists[@]}" source --download-only --tar-only "$source")
    archive=$(find "$out/$source.archive" -name "${source}_$version*.orig.tar.*" | head -n 1)
    [ -n "$archive" ] || die "$source of $release is not version $version: $(ls "$out/$source.archive")"
    logged "$out/$source.log" tar -xf "$archive" -C "$out/$source" --strip-components=1 \
        --wildcards --no-wildcards-match-slash "${@/#/*/}"
    printf '%s %s %s' "$release" "$version" "$*" >"$out/$source.done"
}
