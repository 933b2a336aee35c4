#!/usr/bin/env bash
# Creates .venv: "run" installs the controller and its `glovebox` command, "dev" also everything the tests need.
# Packages come from the lock files, by hash. Does nothing if the lock files have not changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. sandbox_image/bootstrap/lib.sh
. sandbox_image/bootstrap/packages.sh

# Python 3.11 or newer that can make virtual environments, and git.
usable_python() { python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

need_python() {
    usable_python && return
    have apt-get || stop "Python 3.11 or newer with venv is missing; install it, then run this again."
    is_root || stop "Python 3.11 or newer with venv is missing; run: sudo apt-get install python3 python3-venv"
    say "installing python3 and python3-venv"
    apt_update
    apt_install python3 python3-venv
    usable_python || stop "this release's $(python3 --version) is too old; Glovebox needs Python 3.11 or newer."
}

lock_files() {
    echo requirements.lock
    if [ "$1" = dev ]; then
        echo requirements-dev.lock
        echo "sandbox_image/requirements-$(variant "$(python_tag)").lock"
    fi
}

main() {
    local level=${1:?run or dev} stamp locks arguments
    need git git
    need_python
    mapfile -t locks < <(lock_files "$level")
    mapfile -t arguments < <(printf -- '--requirement=%s\n' "${locks[@]}")
    stamp=$(python3 --version; pwd; cat pyproject.toml "${locks[@]}")
    stamp=.venv/.glovebox-$level-$(sha256sum <<<"$stamp" | cut -c1-16)
    [ -e "$stamp" ] && return
    say "installing the Python environment ($level) into .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    if [ -n "${GLOVEBOX_WHEELS:-}" ]; then arguments+=("--find-links=$GLOVEBOX_WHEELS"); fi
    if [ -n "${GLOVEBOX_CA_BUNDLE:-}" ]; then export PIP_CERT=$GLOVEBOX_CA_BUNDLE; fi
    .venv/bin/python -m pip install -qq --only-binary=:all: --require-hashes "${arguments[@]}" ||
        stop "pip could not install the locked packages; the lines above say why."
    .venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable . ||
        stop "pip could not install the glovebox command; the lines above say why."
    touch "$stamp"
}

main "$@"
