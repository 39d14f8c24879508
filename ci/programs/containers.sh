# A C++ program with the standard containers in many threads, in each mode.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(g++)
needs=(/usr/bin/g++)
workers=("containers 1")
modes=(auto cpu_id arenas)

version() {
    debian_version g++-12
}

prepare() {
    g++ -std=c++20 -O2 -Wall -Wextra -Werror -pthread -o containers "$programs/containers.cpp"
}

run() {
    "$input/containers" >output/sums
}
