# Perl: hashes, sorting, regular expressions, closures, deep structures, pack, and interpreters in threads.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(perl)
needs=(/usr/bin/perl)
workers=("perl 1")

version() {
    debian_version perl
}

prepare() {
    cp "$programs/perl.pl" .
}

run() {
    perl -Mthreads -e 1 || fail 'this perl has no threads'
    perl "$input/perl.pl" >output/text
}
