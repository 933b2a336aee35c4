#!/usr/bin/env bash
# Builds the sandbox image as glovebox-sandbox:cpu or :cuda and tags it :latest. Does nothing if what it is made from
# has not changed.
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
    inputs=$(fingerprint "$kind" Dockerfile entrypoint.py "requirements-$kind.lock" bootstrap/base.sh)
}

main() {
    local base kind inputs
    choose "${GLOVEBOX_BASE_IMAGE:-bookworm}"
    if ! up_to_date "glovebox-sandbox:$kind" "$inputs"; then
        base=$(bootstrap/base.sh)
        choose "$base"
        build_image "glovebox-sandbox:$kind" "$inputs" "$base" Dockerfile . --build-arg "LOCK=requirements-$kind.lock"
    fi
    docker tag "glovebox-sandbox:$kind" glovebox-sandbox:latest
    say "sandbox image: glovebox-sandbox:$kind $(docker image inspect --format '{{.Id}}' glovebox-sandbox:latest)"
}

main "$@"
