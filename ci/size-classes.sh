#!/usr/bin/env bash
# Records which sizes real programs ask for, and prints what different tables of size classes would waste inside their
# blocks. ci/size-classes/recorder.c says what is recorded, alloc-core/examples/size_classes.rs how it is judged.
#
#     ci/size-classes.sh [PROGRAM...]
#
# All of these, or those named:
#
#     index     alloc-core's example of that name, on the system's allocator, over C's headers and Python's library
#     python    imports most of Python's library, parses and compiles a part of it; every object is from malloc
#     redis     redis-server, while redis-benchmark stores and reads values of all kinds
#     compiler  cc1plus of g++ -O2 on a file that uses many containers
#
# Packages that are missing are installed by apt-get (Debian 12). What is written is below target/size-classes.
set -euo pipefail
cd "$(dirname "$0")/.."

selected=()
for argument; do
    case $argument in
    index | python | redis | compiler) selected+=("$argument") ;;
    *)
        echo 'usage: ci/size-classes.sh [index] [python] [redis] [compiler]' >&2
        exit 2
        ;;
    esac
done
[ ${#selected[@]} -gt 0 ] || selected=(index python redis compiler)

out=${CARGO_TARGET_DIR:-target}
mkdir -p "$out/size-classes"
out=$(realpath "$out")
work=$out/size-classes

# shellcheck source-path=SCRIPTDIR
. ci/debian.sh
install_missing gcc g++ python3 redis-server redis-tools
cargo build --quiet --release -p alloc-core --example index --example size_classes
gcc -O2 -Wall -Wextra -Werror -fPIC -shared -o "$work/recorder.so" ci/size-classes/recorder.c

server=
trap '[ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true' EXIT

# Runs a command under the recorder.
record() {
    env SIZES_FOLDER="$work/recorded" LD_PRELOAD="$work/recorder.so" "$@"
}

record_index() {
    record "$out/release/examples/index" --allocator system /usr/include /usr/lib/python3.11 >/dev/null
}

record_python() {
    record env PYTHONMALLOC=malloc /usr/bin/python3 ci/size-classes/library.py
}

record_compiler() {
    record g++ -std=c++20 -O2 -c -o "$work/containers.o" ci/programs/containers.cpp
}

# Debian's server is linked with jemalloc, whose malloc the recorder takes the place of.
record_redis() {
    local _
    record /usr/bin/redis-server --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >"$work/redis.log" &
    server=$!
    for _ in {1..200}; do
        ! redis-cli -s "$work/socket" ping >/dev/null 2>&1 || break
        sleep 0.05
    done
    redis-benchmark -s "$work/socket" -q -n 100000 -P 16 -r 100000 -d 100 -t set,get,incr,hset,sadd,zadd,lpush >/dev/null
    redis-benchmark -s "$work/socket" -q -n 20000 -P 16 -r 20000 -d 3000 set large:__rand_int__ __data__ >/dev/null
    redis-cli -s "$work/socket" shutdown nosave || true
    wait "$server"
    server=
}

# take PROGRAM PROCESS: keeps the file of the process of that name; of several, that of the last one to end.
take() {
    local program=$1 process=$2 newest
    newest=$(find "$work/recorded" -name "$process.*" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
    [ -n "$newest" ] || {
        echo "size-classes: no process $process was recorded" >&2
        return 1
    }
    mv "$newest" "$work/$program.sizes"
}

files=()
for program in "${selected[@]}"; do
    rm -rf "$work/recorded"
    mkdir -p "$work/recorded"
    "record_$program"
    case $program in
    index) process=index align=8 ;;
    python) process=python3 align=16 ;;
    redis) process=redis-server align=16 ;;
    compiler) process=cc1plus align=16 ;;
    esac
    take "$program" "$process"
    files+=("$work/$program.sizes:$align")
done
"$out/release/examples/size_classes" "${files[@]}"
