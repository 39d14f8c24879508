# CPython's own tests of json, dict and list, with every object allocated by malloc; and a program that loads extension
# modules and libraries while it runs, and hands blocks across them.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(python3.11 libpython3.11-testsuite)
needs=(/usr/bin/python3.11)
workers=("python3.11 2")

version() {
    debian_version python3.11
}

prepare() {
    cp "$programs/plugins.py" .
}

run() {
    export PYTHONMALLOC=malloc
    "$programs/python-tests.sh" test_json test_dict test_list >output/tests
    python3.11 -X dev "$input/plugins.py" >output/plugins
}
