#!/usr/bin/env bash
# Fails if a test binary that should exist ran no test, or if any test failed.
#
# Usage: ci/tests-ran.sh LOG      LOG is the output of `cargo test`, both streams, for the default members
#
# What should exist is read from the sources, not from cargo: every tests/*.rs and tests/*/main.rs of a default member,
# and the unit tests of every library in which a #[test] stands. What ran is read from the log: cargo announces each
# binary, and each binary prints how many tests passed, as libtest does or as the line "N passed, N failed".
set -euo pipefail
cd "$(dirname "$0")/.."

log=${1:?usage: ci/tests-ran.sh LOG}

# The default members, one a line.
members() {
    sed -n '/^default-members *=/,/\]/p' Cargo.toml | grep -o '"[^"]*"' | tr -d '"'
}

# What should have run: the source as cargo names it, and the package.
expected() {
    local member package file
    for member in $(members); do
        package=$(sed -n 's/^name *= *"\([^"]*\)".*/\1/p' "$member/Cargo.toml" | head -n 1)
        for file in "$member"/tests/*.rs "$member"/tests/*/main.rs; do
            if [ -f "$file" ]; then
                printf '%s %s\n' "$package" "${file#"$member"/}"
            fi
        done
        if grep -rqE '^\s*#\[test\]' "$member/src" --include='*.rs' --exclude-dir=bin; then
            printf '%s %s\n' "$package" src/lib.rs
        fi
    done
}

# What ran: source, name of the binary without its hash, tests passed, tests failed.
ran() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        function finish() { if (source != "") print source, binary, passed, failed }
        / Running / && /\(.*\)$/ {
            finish()
            source = ($2 == "unittests") ? $3 : $2
            binary = $NF
            gsub(/.*\/|\)$/, "", binary)
            sub(/-[0-9a-f]+$/, "", binary)
            passed = failed = 0
            next
        }
        / Doc-tests / { finish(); source = ""; next }
        /^test result: / || /^[0-9]+ passed, [0-9]+ failed/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^failed/) failed += $(i - 1)
            }
        }
        END { finish() }'
}

table=$(ran "$log")
status=0
binaries=0
tests=0
while read -r package source; do
    binaries=$((binaries + 1))
    # A library is named after its package, a test after its file or folder.
    name=$source
    name=${name#tests/}
    name=${name%/main.rs}
    name=${name%.rs}
    if [ "$source" = src/lib.rs ]; then
        name=${package//-/_}
    fi
    # Cargo does not name the package, and two packages may have a test of one name: every line counts once.
    number=$(awk -v source="$source" -v name="$name" '$1 == source && $2 == name { print NR; exit }' <<<"$table")
    if [ -z "$number" ]; then
        printf 'tests-ran: %s of %s was not run\n' "$source" "$package"
        status=1
        continue
    fi
    read -r _ _ passed failed < <(sed -n "${number}p" <<<"$table")
    table=$(sed "${number}d" <<<"$table")
    tests=$((tests + passed))
    if [ "$passed" -eq 0 ]; then
        printf 'tests-ran: %s of %s ran no test\n' "$source" "$package"
        status=1
    fi
    if [ "$failed" -ne 0 ]; then
        printf 'tests-ran: %s of %s: %d failed\n' "$source" "$package" "$failed"
        status=1
    fi
done < <(expected)
if [ "$binaries" -eq 0 ]; then
    printf 'tests-ran: no test binaries are expected, which cannot be\n'
    status=1
fi
printf 'tests-ran: %d tests passed in %d binaries that should exist\n' "$tests" "$binaries"
exit $status
