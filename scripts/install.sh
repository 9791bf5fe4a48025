#!/usr/bin/env bash
# Install Hearth: each version in its own folder, and `current`, a link to the active version.
#   scripts/install.sh                         from this checkout
#   scripts/install.sh --from hearth-1.2.whl   from a release (wheel or source archive)
#   scripts/install.sh --prefix /opt/hearth    target folder (default: /opt/hearth)
#   scripts/install.sh --dry-run               print the steps without running them
# Run it again to upgrade: `current` changes after the new version is complete, and the two previous versions are kept.
# Dependencies come from the lock file and are verified by their hashes. A running service restarts; VMs keep running.
set -euo pipefail

prefix=/opt/hearth from='' dry='' keep=3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "install: $*" >&2; }
fail() { say "$1"; exit "${2:-1}"; }
usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit "$1"; }
run() {
    if [[ $dry ]]; then say "would run: $*"; else "$@"; fi
}

while (($#)); do
    case $1 in
    --from) from=${2:?--from needs a file}; shift 2 ;;
    --prefix) prefix=${2:?--prefix needs a folder}; shift 2 ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage 0 ;;
    *) usage 2 >&2 ;;
    esac
done

find_python() {
    local python
    for python in "${HEARTH_PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    fail "needs Python 3.11 or later: on a Mac run \`brew install python@3.13\`, or set HEARTH_PYTHON"
}

# Prints the name of the version's folder: release and checksum, so that each state of a checkout has its own folder.
version_of() {
    local digest
    if [[ $from ]]; then
        digest=$(cat "$from" "$lock" | cksum | cut -d' ' -f1)
        basename "$from" | sed -E 's/^hearth-([0-9][^-]*)(-py3-none-any\.whl|\.tar\.gz)$/\1/' | tr -d '\n'
    else
        digest=$(cd "$here" && find agent launchd pyproject.toml README.md LICENSE "$lock" -type f ! -name '*.pyc' -print0 |
            LC_ALL=C sort -z | xargs -0 cat | cksum | cut -d' ' -f1)
        sed -n 's/^version = "\(.*\)"$/\1/p' "$here/pyproject.toml" | tr -d '\n'
    fi
    echo "-$digest"
}

build() {
    local folder=$1
    "$python" -m venv "$folder"
    local -a pip=("$folder/bin/python" -m pip --quiet --disable-pip-version-check --no-input install)
    "${pip[@]}" --require-hashes --requirement "$lock"
    if [[ $from == *.whl ]]; then
        "${pip[@]}" --no-deps "$from"
    else
        # The build tools come from a lock file as well, in a temporary folder.
        "$python" -m venv "$folder/build"
        awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' \
            "$build_lock" >"$folder/build/lock"
        "$folder/build/bin/python" -m pip --quiet --disable-pip-version-check --no-input install \
            --require-hashes --requirement "$folder/build/lock"
        "$folder/build/bin/python" -m pip --quiet --disable-pip-version-check --no-input wheel \
            --no-build-isolation --no-deps --wheel-dir "$folder/wheel" "${from:-$here}"
        "${pip[@]}" --no-deps "$folder"/wheel/*.whl
        rm -rf "$folder/build" "$folder/wheel"
    fi
    "$folder/bin/hearth" --version >/dev/null
    touch "$folder/complete"
}

switch_current() {
    local temporary="$prefix/.current.$$"
    ln -s "versions/$version" "$temporary"
    # A rename replaces the old link atomically; `mv` would move the new link into the folder behind the old one.
    "$python" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$temporary" "$prefix/current"
}

remove_old_versions() {
    local old
    find "$prefix/versions" -mindepth 1 -maxdepth 1 -type d ! -name "$version" -print0 | xargs -0 ls -1dt 2>/dev/null |
        tail -n "+$keep" | while IFS= read -r old; do rm -rf "$old"; done
}

lock=$here/scripts/requirements/run.lock
build_lock=$here/scripts/requirements/dev.lock
[[ -f $lock ]] || fail "$lock is missing: run this from a checkout or an unpacked release"
[[ -z $from || -f $from ]] || fail "$from does not exist" 2
python=$(find_python)
version=$(version_of)
target=$prefix/versions/$version

if [[ ! -e $prefix && ! -w $(dirname "$prefix") ]]; then fail "cannot write to $prefix: run it with sudo"; fi

if [[ -f $target/complete ]]; then
    say "$version is already installed"
else
    say "installing $version in $target, with $python"
    if [[ $dry ]]; then
        say "would run: $python -m venv, pip install --require-hashes of $lock, pip install of ${from:-$here}"
    else
        rm -rf "$target"
        mkdir -p "$prefix/versions"
        build "$target"
    fi
fi

if [[ $(readlink "$prefix/current" 2>/dev/null) == "versions/$version" ]]; then
    say "current is $version"
else
    say "switching current to $version"
    [[ $dry ]] || switch_current
    if [[ $(uname) == Darwin ]] && { [[ $dry ]] || "$prefix/current/bin/hearth" service status >/dev/null; }; then
        run "$prefix/current/bin/hearth" service restart
    fi
fi
[[ $dry ]] || remove_old_versions
say "ready: $prefix/current/bin/hearth"
