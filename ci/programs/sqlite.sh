# The shell of SQLite on a database that it fills itself: some 100000 rows, indices, joins, sorts with helper threads,
# full text, JSON, triggers, a rollback, a vacuum. The database file must be the same too.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(sqlite3)
needs=(/usr/bin/sqlite3)
workers=("sqlite3 2")

version() {
    debian_version sqlite3
}

prepare() {
    cp "$programs"/sqlite-*.sql .
}

run() {
    sqlite3 -batch -bail database <"$input/sqlite-fill.sql" >output/fill
    sqlite3 -batch -bail database <"$input/sqlite-ask.sql" >output/ask
    sha256sum database >output/sum
}
