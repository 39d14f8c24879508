# shellcheck shell=bash
# shellcheck disable=SC2154 # what is not assigned here is in ci/suites.sh
# Part of ci/suites.sh: rpmalloc's tests, from the crate rpmalloc-sys, on a header that makes its functions the standard
# ones (ci/suites/rpmalloc). A test is a function of test/main.c, or test/main-override.cc as a whole.

rpmalloc_fetch() {
    fetch_crates
}

rpmalloc_folder() {
    printf '%s\n' "$(crate rpmalloc-sys)/rpmalloc/test"
}

rpmalloc_names() {
    # What test_run calls.
    sed -nE '/^test_run/,$ s/^\tif \((test_[a-z_]*)\(\)\)\r?$/main:\1/p' "$(rpmalloc_folder)/main.c"
    printf 'main-override\n'
}

rpmalloc_build() {
    local file=$1 program=$2 source=$2.c shims folder
    shims=$root/ci/suites/rpmalloc
    folder=$(rpmalloc_folder)
    gcc "${flags[@]}" -c -I"$folder" "$folder/thread.c" -o "$program.thread.o"
    case $file in
    main-override) compile_cxx "$program" -I"$shims" -I"$folder" "$folder/main-override.cc" "$program.thread.o" ;;
    *)
        # test_alloc begins with what belongs to rpmalloc's own size classes, up to its list of alignments.
        sed -E '/Query the small granularity/,/static size_t alignment\[5\]/ { /static size_t alignment\[5\]/ ! d }' \
            "$folder/main.c" | tr -d '\r' | rpmalloc_counts >"$source"
        compile "$program" -std=gnu11 -DSUITES_SOURCE="\"$source\"" -I"$shims" -I"$folder" "$shims/main.c" \
            "$program.thread.o"
        ;;
    esac
    printf '%s\n' "$program"
}

# The counts of the heavy loops: a tenth, or as they are.
rpmalloc_counts() {
    if [ "$form" = long ]; then
        cat
    else
        sed -E -e 's/iloop < 8000;/iloop < 800;/' -e 's/num_passes = 100;/num_passes = 10;/' \
            -e 's/ipass < 8; \+\+ipass/ipass < 2; ++ipass/' -e 's/iloop < (32|64|128); \+\+iloop/iloop < 8; ++iloop/' \
            -e 's/arg\.loops = 100;/arg.loops = 25;/'
    fi
}
