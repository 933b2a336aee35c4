#!/usr/bin/env bash
# Builds the controller's image for the service, glovebox-controller:latest, unless it is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. sandbox_image/bootstrap/lib.sh
. sandbox_image/bootstrap/packages.sh
. sandbox_image/bootstrap/build.sh

main() {
    local image=glovebox-controller:latest inputs base
    inputs=$(fingerprint controller controller harness program.md requirements.lock \
        sandbox_image/seccomp.json sandbox_image/bootstrap/base.sh)
    up_to_date "$image" "$inputs" && return
    base=$(sandbox_image/bootstrap/base.sh)
    build_image "$image" "$inputs" "$base" controller/Dockerfile .
}

main "$@"
