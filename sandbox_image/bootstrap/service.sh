#!/usr/bin/env bash
# The controller as a service: service.sh up|down|logs|status|prepare
#
# Variables: GLOVEBOX_HOME (default ./home), GLOVEBOX_CORPUS, ANTHROPIC_API_KEY (also read from .env).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. sandbox_image/bootstrap/lib.sh
. sandbox_image/bootstrap/packages.sh

readonly SERVICE_USER=10000 # when root starts it; otherwise whoever does

# What compose.yaml asks for.
export_variables() {
    GLOVEBOX_HOME=$(realpath -m "${GLOVEBOX_HOME:-home}")
    GLOVEBOX_SOCKET=/var/run/docker.sock
    if [[ ${DOCKER_HOST:-} == unix://* ]]; then GLOVEBOX_SOCKET=${DOCKER_HOST#unix://}; fi
    GLOVEBOX_SOCKET_GID=$(stat -L -c %g "$GLOVEBOX_SOCKET" 2>/dev/null || echo 0)
    GLOVEBOX_UID=$(id -u) GLOVEBOX_GID=$(id -g)
    if is_root; then GLOVEBOX_UID=$SERVICE_USER GLOVEBOX_GID=$SERVICE_USER; fi
    export GLOVEBOX_HOME GLOVEBOX_SOCKET GLOVEBOX_SOCKET_GID GLOVEBOX_UID GLOVEBOX_GID
}

make_home() {
    mkdir -p "$GLOVEBOX_HOME"
    if is_root && [ "$(stat -c %u "$GLOVEBOX_HOME")" != "$GLOVEBOX_UID" ]; then
        chown -R "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_HOME"
    fi
}

prepare() {
    [ -e "$GLOVEBOX_HOME/data/public/manifest.json" ] && return
    say "preparing data ($(corpus)) in $GLOVEBOX_HOME"
    docker compose run --rm --no-deps -T controller prepare --corpus "$(corpus)" </dev/null
}

announce() {
    has_gpu || say "no GPU that containers can use: experiments run on the CPU, at the small scale"
    if [ -z "${ANTHROPIC_API_KEY:-}" ] && ! grep -qs '^ANTHROPIC_API_KEY=.' .env; then
        say "no ANTHROPIC_API_KEY in the environment or .env: the built-in tuner makes the proposals"
    else
        say "this version has no claude agent yet, so the key is not used: the built-in tuner makes the proposals"
    fi
}

running() { [ -n "$(docker compose ps --status running --quiet controller)" ]; }

main() {
    export_variables
    case ${1:-} in
        up)
            make_home
            announce
            prepare
            docker compose up --detach --remove-orphans
            say "the research goes on by itself in $GLOVEBOX_HOME; look at it with: make status, make logs; end it with: make down"
            ;;
        prepare) make_home && prepare ;;
        down) docker compose down --remove-orphans ;;
        logs) docker compose logs --follow --tail 200 ;;
        status)
            running || stop "the service is not running; start it with: make up"
            docker compose exec -T controller python -m controller status
            ;;
        *) stop "usage: service.sh up|down|logs|status|prepare" ;;
    esac
}

main "$@"
