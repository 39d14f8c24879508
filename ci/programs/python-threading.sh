# CPython's own tests of threads, with every object allocated by malloc, in each mode.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(python3.11 libpython3.11-testsuite)
needs=(/usr/bin/python3.11)
# Many of these tests start an interpreter of their own.
workers=("python3.11 10")
modes=(auto cpu_id arenas)

version() {
    debian_version python3.11
}

prepare() {
    true
}

run() {
    export PYTHONMALLOC=malloc
    "$programs/python-tests.sh" test_threading >output/tests
}
