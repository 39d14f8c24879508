# CPython's own tests of child processes: fork, vfork and exec with pipes and signals, some hundred times.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(python3.11 libpython3.11-testsuite)
needs=(/usr/bin/python3.11)
workers=("python3.11 100")

version() {
    debian_version python3.11
}

prepare() {
    true
}

run() {
    "$programs/python-tests.sh" test_subprocess >output/tests
}
