# The program of containers, linked static-pie with librseqalloc.a, and without it: no preloading, no dynamic linker. The
# archive is one that was built for static programs: in others, rseq-sys asks the loader for libc's registration.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(g++)
needs=(/usr/bin/g++)
workers=("containers 1")
linked=true
modes=(auto arenas)

version() {
    debian_version g++-12
}

prepare() {
    local host
    host=$(rustc --version --verbose | sed -n 's/^host: //p')
    (cd "$programs/../.." && RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --release -p alloc-c --target "$host" --target-dir "$out/crt-static")
    gcc -O2 -Wall -Wextra -Werror -fPIE -DLINKED -c "$programs/witness.c"
    g++ -std=c++20 -O2 -Wall -Wextra -Werror -fPIE -pthread -c "$programs/containers.cpp"
    mkdir with without
    g++ -static-pie -pthread -o without/containers containers.o witness.o
    # The witness' references are weak, and fetch nothing from a library.
    g++ -static-pie -pthread -o with/containers containers.o witness.o \
        -Wl,--undefined=rseqalloc_mode,--undefined=rseqalloc_stats_json "$out/crt-static/$host/release/librseqalloc.a"
    readelf --file-header with/containers | grep -q 'Type: *DYN'
    ! readelf --program-headers with/containers | grep INTERP
}

run() {
    local folder=with
    [ "$variant" != without ] || folder=without
    "$input/$folder/containers" >output/sums
}
