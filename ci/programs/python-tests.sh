#!/usr/bin/env bash
# Runs modules of CPython's tests and prints, sorted, what became of each test.
#
#     python-tests.sh MODULE...
set -euo pipefail

python3.11 -m test --junit-xml results.xml "$@" >&2
python3.11 - <<'END'
import xml.etree.ElementTree

cases = list(xml.etree.ElementTree.parse("results.xml").iter("testcase"))
outcomes = sorted((case.get("name"), case.get("status"), case.get("result")) for case in cases)
assert len(outcomes) > 50, "where are the tests?"
for outcome in outcomes:
    print(*outcome)
print(len(outcomes), "tests")
END
