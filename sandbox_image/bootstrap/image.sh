#!/usr/bin/env bash
# Builds the sandbox image as glovebox-sandbox:cpu or :cuda and tags it :latest. Does nothing if what it is made from
# has not changed. What it is made from: Dockerfile, entrypoint, lock file and the choice of base image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./lib.sh
. ./packages.sh

readonly CONTEXT=$PWD/..
readonly LABEL=glovebox.inputs

# The base is Debian 12 with Python 3.11, except that an Ubuntu machine without a registry builds its own release.
base_python() {
    case $1 in
        *bookworm*) echo cp311 ;;
        *) python3 -c 'import sys; print("cp%d%d" % sys.version_info[:2])' ;;
    esac
}

fingerprint() {
    {
        echo "$1" "${GLOVEBOX_BASE_IMAGE:-}"
        cat "$CONTEXT/Dockerfile" "$CONTEXT/entrypoint.py" "$CONTEXT/requirements-$1.lock" base.sh
    } | sha256sum | cut -c1-64
}

built_from() { docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$1" 2>/dev/null || true; }

# Credentials may be part of an index address, so these travel as a secret and not as build arguments.
pip_environment() {
    local name
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT; do
        [ -z "${!name:-}" ] || printf 'export %s=%q\n' "$name" "${!name}"
    done
}

build() {
    local kind=$1 inputs=$2 base=$3 secret name wheels
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    mkdir "$scratch/wheels"
    pip_environment >"$scratch/pip_environment"
    local arguments=(--secret "id=pip_environment,src=$scratch/pip_environment")
    secret=$(ca_bundle) && [ -n "$secret" ] && arguments+=(--secret "id=ca,src=$secret")
    secret=$(pip_config) && [ -n "$secret" ] && arguments+=(--secret "id=pip_config,src=$secret")
    for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name") # known to the builder; kept out of the image
    done
    wheels=$(wheels_folder)
    say "building glovebox-sandbox:$kind on $base; the first time takes a few minutes"
    # The builder called "default" is the engine's own: it knows local images. The host's network needs no bridge or NAT.
    docker buildx build --builder default --load --provenance=false --network=host --progress=plain \
        --build-arg "BASE_IMAGE=$base" --build-arg "LOCK=requirements-$kind.lock" --label "$LABEL=$inputs" \
        --build-context "wheels=${wheels:-$scratch/wheels}" "${arguments[@]}" \
        --tag "glovebox-sandbox:$kind" "$CONTEXT" >"$scratch/log" 2>&1 || {
        tail -n 30 "$scratch/log" >&2
        stop "the sandbox image could not be built; the lines above say why."
    }
}

main() {
    local base kind inputs
    base=${GLOVEBOX_BASE_IMAGE:-bookworm}
    kind=$(variant "$(base_python "$base")")
    inputs=$(fingerprint "$kind")
    if [ "$(built_from "glovebox-sandbox:$kind")" != "$inputs" ]; then
        base=$(./base.sh)
        kind=$(variant "$(base_python "$base")")
        inputs=$(fingerprint "$kind")
        build "$kind" "$inputs" "$base"
    fi
    docker tag "glovebox-sandbox:$kind" glovebox-sandbox:latest
    say "sandbox image is glovebox-sandbox:$kind $(docker image inspect --format '{{.Id}}' glovebox-sandbox:latest)"
}

main "$@"
