# Builds an image unless it was already built from the same files.
# shellcheck shell=bash

readonly LABEL=glovebox.inputs

# fingerprint WORD FILE...: hash of everything an image is built from; folders recursively.
fingerprint() {
    local word=$1
    shift
    {
        echo "$word" "${GLOVEBOX_BASE_IMAGE:-}"
        find "$@" -type f -not -path '*_cache*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c1-64
}

# up_to_date IMAGE FINGERPRINT
up_to_date() { [ "$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$1" 2>/dev/null)" = "$2" ]; }

# Creates a temporary folder, $scratch, removed when the script ends.
make_scratch() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
}

# build_image IMAGE FINGERPRINT BASE DOCKERFILE CONTEXT [ARGUMENT...]
build_image() {
    local image=$1 inputs=$2 base=$3 dockerfile=$4 context=$5 name file wheels
    shift 5
    [ -n "${scratch:-}" ] || make_scratch
    mkdir "$scratch/wheels"
    wheels=$(wheels_folder)
    pip_environment >"$scratch/pip_environment"
    local arguments=(--secret "id=pip_environment,src=$scratch/pip_environment")
    file=$(ca_bundle) && [ -n "$file" ] && arguments+=(--secret "id=ca,src=$file")
    file=$(pip_config) && [ -n "$file" ] && arguments+=(--secret "id=pip_config,src=$file")
    for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name") # predefined in the builder, which keeps them out of the image
    done
    say "building $image on $base; the first time takes a few minutes"
    # The builder called "default" is the engine's own: it sees local images. The host's network needs neither bridge nor NAT.
    docker buildx build --builder default --load --provenance=false --network=host --progress=plain \
        --build-arg "BASE_IMAGE=$base" --build-context "wheels=${wheels:-$scratch/wheels}" --label "$LABEL=$inputs" \
        "${arguments[@]}" "$@" --file "$dockerfile" --tag "$image" "$context" >"$scratch/log" 2>&1 || {
        tail -n 30 "$scratch/log" >&2
        stop "$image could not be built; the lines above say why."
    }
}

# Index URLs may contain credentials, so these are passed as a secret, not as build arguments.
pip_environment() {
    local name
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT \
        GLOVEBOX_TORCH GLOVEBOX_TORCH_INDEX; do
        [ -z "${!name:-}" ] || printf 'export %s=%q\n' "$name" "${!name}"
    done
}
