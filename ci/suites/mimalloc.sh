# shellcheck shell=bash
# shellcheck disable=SC2154 # what is not assigned here is in ci/suites.sh
# Part of ci/suites.sh: mimalloc's tests, from Debian's source package, on headers that make its functions the standard
# ones (ci/suites/mimalloc). A test is a part of test-api.c or test-api-fill.c that has a name there, or a program.

mimalloc_fetch() {
    fetch_debian bookworm mimalloc 2.0.9 test
}

mimalloc_names() {
    local file
    for file in "$out"/mimalloc/test/*.c "$out"/mimalloc/test/*.cpp; do
        case $file in
        *.cpp) basename "$file" ;;
        *) sed -nE "s|^ *CHECK(_BODY)?\(\"([^\"]*)\".*|$(basename "$file" .c):\2|p" "$file" | grep . || basename "$file" .c ;;
        esac
    done
}

mimalloc_build() {
    local file=$1 program=$2 source=$2.c arguments=''
    case $file in
    test-stress)
        # Threads, scale, rounds; without arguments 32, 25 and 50.
        [ "$form" = long ] || arguments='8 25 10'
        ;;
    esac
    # A copy, so that the header beside it is not found.
    cp "$out/mimalloc/test/$file.c" "$source"
    compile "$program" -std=gnu11 -D_GNU_SOURCE -DNDEBUG -I"$root/ci/suites/mimalloc" "$source"
    printf '%s %s\n' "$program" "$arguments"
}
