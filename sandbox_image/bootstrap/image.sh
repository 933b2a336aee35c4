#!/usr/bin/env bash
# Builds the sandbox image as glovebox-sandbox:cpu or :cuda and tags it :latest. Does nothing if it is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. bootstrap/lib.sh
. bootstrap/packages.sh
. bootstrap/build.sh

# The base is Debian 12 with Python 3.11, except that an Ubuntu machine without a registry builds its own release.
base_python() {
    case $1 in
        *bookworm*) echo cp311 ;;
        *) python_tag ;;
    esac
}

choose() {
    kind=$(variant "$(base_python "$1")")
    lock=$(lock_file "$kind")
    inputs=$(fingerprint "$kind $(sandbox_lock "$lock" | sha256sum)" Dockerfile entrypoint.py bootstrap/base.sh)
}

main() {
    local base kind lock inputs
    choose "${GLOVEBOX_BASE_IMAGE:-bookworm}"
    if ! up_to_date "glovebox-sandbox:$kind" "$inputs"; then
        base=$(bootstrap/base.sh)
        choose "$base"
        make_scratch
        mkdir "$scratch/lock"
        sandbox_lock "$lock" >"$scratch/lock/requirements.lock"
        GLOVEBOX_TORCH=$(torch_requirement "$lock")
        build_image "glovebox-sandbox:$kind" "$inputs" "$base" Dockerfile . --build-context "lock=$scratch/lock"
    fi
    docker tag "glovebox-sandbox:$kind" glovebox-sandbox:latest
    say "sandbox image: glovebox-sandbox:$kind $(docker image inspect --format '{{.Id}}' glovebox-sandbox:latest)"
}

main "$@"
