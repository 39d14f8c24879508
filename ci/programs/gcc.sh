# GCC at -O2 on the 9 MB file that SQLite is published as, and the link of a library from it. The objects are the same
# to the byte. The source is fetched with cargo, from the package of crates.io that carries it.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(gcc)
needs=(/usr/bin/gcc)
workers=("cc1 1" "$(uname -m)-linux-gnu-as 1" "$(uname -m)-linux-gnu-gcc-12 2" "$(uname -m)-linux-gnu-ld.bfd 1")

version() {
    debian_version gcc-12
}

prepare() {
    local sources=$out/gcc-sources
    if [ ! -e "$sources/done" ]; then
        rm -rf "$sources"
        mkdir -p "$sources/src"
        : >"$sources/src/lib.rs"
        printf '%s\n' '[package]' 'name = "sources"' '[dependencies]' '[dependencies.libsqlite3-sys]' 'version = "=0.30.1"' \
            'features = ["bundled"]' '[workspace]' >"$sources/Cargo.toml"
        (cd "$sources" && cargo vendor --quiet)
        touch "$sources/done"
    fi
    cp "$sources/vendor/libsqlite3-sys/sqlite3/sqlite3.c" .
}

run() {
    gcc -O2 -fPIC -o output/sqlite3.o -c "$input/sqlite3.c"
    gcc -shared -o output/libsqlite3.so output/sqlite3.o
}
