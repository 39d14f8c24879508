# memcached with four threads, and a program in Python that works on it over many connections and checks every answer.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(memcached python3.11)
needs=(/usr/bin/memcached /usr/bin/python3.11)
workers=("memcached 1" "python3.11 1")

version() {
    debian_version memcached
}

prepare() {
    cp "$programs/memcached-load.py" .
}

run() {
    local user=()
    [ "$(id -u)" -ne 0 ] || user=(-u "$(id -un)")
    serve memcached -s ./socket -t 4 -m 200 -I 4m "${user[@]}"
    wait_until test -S socket
    python3.11 "$input/memcached-load.py" ./socket >output/answers
    kill -TERM "$server"
    wait_for_end
}
