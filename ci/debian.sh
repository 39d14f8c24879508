# shellcheck shell=bash
# Sourced by the scripts of this folder: packages of Debian, by apt-get.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

update_lists() {
    as_root apt-get update -qq
}

# Installs those packages that are not installed. Nothing is asked of the network where all are.
install_missing() {
    local package missing=()
    for package; do
        dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    printf 'installing %s\n' "${missing[*]}" >&2
    update_lists &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
            </dev/null >/dev/null
}

# Where this machine's own Debian packages come from; fails if that is not known.
debian_mirror() {
    local mirror attempt
    for attempt in 1 2; do
        # shellcheck disable=SC2016 # apt's variables
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Created-By: Packages' |
            grep -v security | head -n 1) || true
        if [ -n "$mirror" ]; then
            printf '%s\n' "${mirror%/}"
            return 0
        fi
        # There is no answer before the first update.
        [ "$attempt" -eq 2 ] || update_lists
    done
    printf 'the mirror that this machine has its Debian packages from is not known\n' >&2
    return 1
}

# other_lists FOLDER LINE...: sets the array other_lists to options by which apt looks at other package lists than the
# machine's, which lie in FOLDER and are fetched if they are not there. LINEs are those of a sources.list, with MIRROR
# for the machine's own mirror; apt checks them against Debian's keys.
other_lists() {
    local folder=$1 mirror
    shift
    # shellcheck disable=SC2034 # for the caller
    other_lists=(-o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3)
    [ ! -e "$folder/done" ] || return 0
    mirror=$(debian_mirror)
    rm -rf "$folder"
    mkdir -p "$folder"/{lists,cache/archives}/partial
    printf '%s\n' "${@//MIRROR/$mirror}" >"$folder/sources.list"
    apt-get "${other_lists[@]}" update -qq
    touch "$folder/done"
}
