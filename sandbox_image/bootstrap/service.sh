#!/usr/bin/env bash
# The controller as a service: service.sh up|down|logs|status|prepare
#
# Variables: GLOVEBOX_HOME (default ./home), GLOVEBOX_CORPUS, and for the key ANTHROPIC_API_KEY or
# GLOVEBOX_ANTHROPIC_API_KEY_FILE (both also read from .env).
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
    GLOVEBOX_KEY_FILE=$PWD/.secrets/anthropic_api_key
    export GLOVEBOX_KEY_FILE
    export GLOVEBOX_HOME GLOVEBOX_SOCKET GLOVEBOX_SOCKET_GID GLOVEBOX_UID GLOVEBOX_GID
}

make_home() {
    mkdir -p "$GLOVEBOX_HOME"
    if is_root && [ "$(stat -c %u "$GLOVEBOX_HOME")" != "$GLOVEBOX_UID" ]; then
        chown -R "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_HOME"
    fi
}

# from_dotenv NAME: its value in .env, without quotes.
from_dotenv() {
    [ -r .env ] || return 0
    sed -n "s/^\(export \)\?$1=//p" .env | tail -n 1 | sed "s/^\([\"']\)\(.*\)\1\$/\2/"
}

# The key on stdout; nothing if there is none.
key() {
    local value=${ANTHROPIC_API_KEY:-} file=${GLOVEBOX_ANTHROPIC_API_KEY_FILE:-}
    [ -n "$value" ] || value=$(from_dotenv ANTHROPIC_API_KEY)
    [ -n "$file" ] || file=$(from_dotenv GLOVEBOX_ANTHROPIC_API_KEY_FILE)
    if [ -z "$value" ] && [ -n "$file" ]; then
        [ -r "$file" ] || stop "the key file $file cannot be read; mend GLOVEBOX_ANTHROPIC_API_KEY_FILE."
        value=$(<"$file")
    fi
    printf '%s' "$value"
}

# Puts the key where only the service can read it; never on a command line, never in a container's settings.
make_key_file() {
    local folder=${GLOVEBOX_KEY_FILE%/*} value
    value=$(key)
    mkdir -p -m 700 "$folder"
    (umask 077 && touch "$GLOVEBOX_KEY_FILE")
    if [ "$(<"$GLOVEBOX_KEY_FILE")" != "$value" ]; then
        # In place: a running container has this very file mounted.
        printf '%s' "$value" >"$GLOVEBOX_KEY_FILE"
        key_changed=--force-recreate
    fi
    if is_root; then chown "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_KEY_FILE"; fi
}

prepare() {
    [ -e "$GLOVEBOX_HOME/data/public/manifest.json" ] && return
    say "preparing data ($(corpus)) in $GLOVEBOX_HOME"
    docker compose run --rm --no-deps -T controller prepare --corpus "$(corpus)" </dev/null
}

announce() {
    has_gpu || say "no GPU that containers can use: experiments run on the CPU, at the small scale"
    [ -s "$GLOVEBOX_KEY_FILE" ] ||
        say "no ANTHROPIC_API_KEY in the environment or .env: the built-in tuner makes the proposals"
}

running() { [ -n "$(docker compose ps --status running --quiet controller)" ]; }

main() {
    export_variables
    case ${1:-} in
        up)
            make_home
            make_key_file
            announce
            prepare
            docker compose up --detach --remove-orphans ${key_changed:-}
            say "the research goes on by itself in $GLOVEBOX_HOME; look at it with: make status, make logs; end it with: make down"
            ;;
        prepare)
            make_home
            make_key_file
            prepare
            ;;
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
