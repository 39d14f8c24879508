# git on this repository and on a larger one that it imports: clone over a pipe, repack with threads, gc, fsck.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(git)
needs=(/usr/bin/git)
workers=("git 20")

version() {
    debian_version git
}

# What both runs start from: the commits of this checkout as they are now, and a history of 1500 commits.
prepare() {
    local git=(env HOME="$work/home" GIT_CONFIG_NOSYSTEM=1 /usr/bin/git)
    printf '[safe]\n\tdirectory = *\n[user]\n\tname = somebody\n\temail = somebody@example.org\n[gc]\n\tautoDetach = false\n' \
        >"$work/home/.gitconfig"
    "${git[@]}" clone --quiet --bare --no-local "$programs/../.." checkout.git
    awk '
        function some(below) { seed = (seed * 16807) % 2147483647; return seed % below }
        BEGIN {
            seed = 42
            for (i = 1; i <= 1500; i++) {
                text = ""
                for (n = some(200) + 1; n > 0; n--) text = text "line " some(1000) " of something\n"
                printf "commit refs/heads/main\ncommitter somebody <somebody@example.org> %d +0000\ndata 7\ncommit\n\n", 1e9 + i
                printf "M 644 inline folder%d/file%d\ndata %d\n%s\n", some(10), some(40), length(text), text
                if (i % 100 == 0) printf "reset refs/tags/t%d\nfrom refs/heads/main\n\n", i
            }
        }' >stream
}

run() {
    export GIT_CONFIG_NOSYSTEM=1
    local name
    git -c pack.threads=1 clone --quiet --no-local "file://$input/checkout.git" checkout
    git init --quiet --initial-branch=main imported
    git -C imported fast-import --quiet <"$input/stream"
    git -C imported checkout --quiet main
    for name in checkout imported; do
        git -C "$name" rev-list --all --objects | sort >output/$name.before
        # With threads the deltas that are found may vary, the objects not.
        git -C "$name" -c pack.threads=4 repack -q -a -d -f --depth=50 --window=40
        git -C "$name" fsck --full --strict >output/$name.fsck-threads 2>&1
        git -C "$name" -c pack.threads=1 repack -q -a -d -f
        git -C "$name" -c pack.threads=1 -c gc.writeCommitGraph=true gc --quiet --prune=now
        git -C "$name" fsck --full --strict >output/$name.fsck 2>&1
        git -C "$name" commit-graph verify --no-progress
        git -C "$name" rev-list --all --objects | sort >output/$name.after
        git -C "$name" rev-parse HEAD >output/$name.head
        cmp output/$name.before output/$name.after
        (cd "$name" && git verify-pack -v .git/objects/pack/*.idx) | sort >output/$name.pack
        git -C "$name" log -p --stat --find-copies-harder -n 60 | sha256sum >output/$name.log
        git -C "$name" grep -c -e '[0-9]' HEAD | sort >output/$name.grep
        git -C "$name" archive HEAD | sha256sum >output/$name.tar
    done
    git -C imported blame -s "$(git -C imported ls-files | head -n 1)" >output/blame
}
