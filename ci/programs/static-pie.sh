# The program of containers, linked static-pie with librseqalloc.a, and without it: no preloading, no dynamic linker.
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
    gcc -O2 -Wall -Wextra -Werror -fPIE -DLINKED -c "$programs/witness.c"
    g++ -std=c++20 -O2 -Wall -Wextra -Werror -fPIE -pthread -c "$programs/containers.cpp"
    mkdir with without
    g++ -static-pie -pthread -o without/containers containers.o witness.o
    # The witness' references are weak, and fetch nothing from a library.
    g++ -static-pie -pthread -o with/containers containers.o witness.o \
        -Wl,--undefined=rseqalloc_mode,--undefined=rseqalloc_stats_json "$out/../release/librseqalloc.a"
    readelf --file-header with/containers | grep -q 'Type: *DYN'
    ! readelf --program-headers with/containers | grep INTERP
}

run() {
    local folder=with
    [ "$variant" != without ] || folder=without
    "$input/$folder/containers" >output/sums
}
