#!/usr/bin/env bash
# Controller, runner, reaper and web server as a service: service.sh up|down|logs|status|prepare
#
# Variables in addition to those of packages.sh, also read from .env: ANTHROPIC_API_KEY or
# GLOVEBOX_ANTHROPIC_API_KEY_FILE, for the key.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. sandbox_image/bootstrap/lib.sh
. sandbox_image/bootstrap/packages.sh

# If root starts the service, each part has its own user; otherwise all run as the user who starts it.
readonly SERVICE_USER=10000 RUNNER_USER=10010 REAPER_USER=10011

is_rootless() { docker info --format '{{.SecurityOptions}}' 2>/dev/null | grep -q name=rootless; }

# The variables in compose.yaml.
export_variables() {
    GLOVEBOX_HOME=$(realpath -m "${GLOVEBOX_HOME:-home}")
    local host
    # Follows DOCKER_HOST, if set.
    host=$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) || host=
    GLOVEBOX_SOCKET=/var/run/docker.sock
    if [[ $host == unix://* ]]; then GLOVEBOX_SOCKET=${host#unix://}; fi
    GLOVEBOX_SOCKET_GID=$(stat -L -c %g "$GLOVEBOX_SOCKET" 2>/dev/null || echo 0)
    GLOVEBOX_UID=$(id -u) GLOVEBOX_GID=$(id -g)
    GLOVEBOX_RUNNER_UID=$GLOVEBOX_UID GLOVEBOX_REAPER_UID=$GLOVEBOX_UID
    if is_root; then
        GLOVEBOX_UID=$SERVICE_USER GLOVEBOX_GID=$SERVICE_USER
        GLOVEBOX_RUNNER_UID=$RUNNER_USER GLOVEBOX_REAPER_UID=$REAPER_USER
    elif is_rootless; then # root in a container is the user who started the engine, and the only usable one
        GLOVEBOX_UID=0 GLOVEBOX_GID=0 GLOVEBOX_RUNNER_UID=0 GLOVEBOX_REAPER_UID=0 GLOVEBOX_SOCKET_GID=0
    fi
    host=$(from_settings GLOVEBOX_WEB__HOST GLOVEBOX_WEB__PORT) || exit
    eval "$host"
    export GLOVEBOX_WEB__HOST=${GLOVEBOX_WEB__HOST:-127.0.0.1} GLOVEBOX_WEB__PORT=${GLOVEBOX_WEB__PORT:-8700}
    GLOVEBOX_KEY_FILE=$PWD/.secrets/anthropic_api_key
    GLOVEBOX_DOTENV=$PWD/.secrets/settings.env
    service_settings=$(from_settings --service)
    GLOVEBOX_SETTINGS=$({ cat "$GLOVEBOX_HOME/glovebox.toml" 2>/dev/null || true; echo "$service_settings"; } | sha256sum | cut -c1-16)
    export GLOVEBOX_KEY_FILE GLOVEBOX_DOTENV GLOVEBOX_SETTINGS GLOVEBOX_RUNNER_UID GLOVEBOX_REAPER_UID
    export GLOVEBOX_HOME GLOVEBOX_SOCKET GLOVEBOX_SOCKET_GID GLOVEBOX_UID GLOVEBOX_GID
}

# Only a home may be given to the service's user: a typo in GLOVEBOX_HOME could name any folder.
require_home() {
    local name
    for name in glovebox.toml lock audit.jsonl data/public/manifest.json; do
        if [ -e "$GLOVEBOX_HOME/$name" ]; then return; fi
    done
    [ -z "$(ls -A "$GLOVEBOX_HOME" 2>/dev/null)" ] ||
        stop "$GLOVEBOX_HOME is not empty and no home of Glovebox; name another folder in GLOVEBOX_HOME."
}

make_home() {
    require_home
    mkdir -p "$GLOVEBOX_HOME"
    if is_root && [ "$(stat -c %u "$GLOVEBOX_HOME")" != "$GLOVEBOX_UID" ]; then
        chown -R "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_HOME"
    fi
    # Each of these is mounted separately, so it must exist.
    mkdir -p "$GLOVEBOX_HOME"/data "$GLOVEBOX_HOME"/harness "$GLOVEBOX_HOME"/requests "$GLOVEBOX_HOME"/runner/socket
    touch "$GLOVEBOX_HOME/glovebox.toml"
    if is_root; then
        chown -h "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_HOME"/{data,harness,requests,glovebox.toml}
        if [ "$(stat -c %u "$GLOVEBOX_HOME/runner")" != "$GLOVEBOX_RUNNER_UID" ]; then
            chown -hR "$GLOVEBOX_RUNNER_UID:$GLOVEBOX_GID" "$GLOVEBOX_HOME/runner"
        fi
    fi
    # The socket that the runner creates here belongs to the folder's group, which is the controller's.
    chmod 2750 "$GLOVEBOX_HOME/runner/socket"
}

# What a browser has to show; the server itself cannot write there. Never through a link.
make_web_token() {
    local token=$GLOVEBOX_HOME/web-token
    if [ ! -e "$token" ] && [ ! -L "$token" ]; then
        (umask 077 && set -o noclobber && python3 -c 'import secrets; print(secrets.token_urlsafe(32))' >"$token")
    fi
    if is_root; then chown -h "$GLOVEBOX_UID:$GLOVEBOX_GID" "$token"; fi
}

# The part of .env for the service's containers, mounted where they read .env, with the same syntax.
make_settings_file() {
    mkdir -p -m 700 "${GLOVEBOX_DOTENV%/*}"
    (umask 077 && touch "$GLOVEBOX_DOTENV")
    (umask 022 && : >"${GLOVEBOX_DOTENV%/*}/empty") # the web server's settings
    printf '%s\n' "$service_settings" >"$GLOVEBOX_DOTENV" # in place, because it is mounted
    if is_root; then chown "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_DOTENV"; fi
}

# The settings for the runner: those that affect containers, from any source.
make_runner_settings() {
    local told
    told=$(compose run --rm --no-deps -T --entrypoint python operator -m controller.app.runner_settings </dev/null)
    printf '%s\n' "$told" >.secrets/runner.env
}

# compose parses .env differently, and must not read it: everything it needs is exported here.
compose() { docker compose --env-file /dev/null "$@"; }

# The key on stdout; nothing if there is none.
key() {
    local told value file
    told=$(from_settings ANTHROPIC_API_KEY GLOVEBOX_ANTHROPIC_API_KEY_FILE) || exit
    local ANTHROPIC_API_KEY='' GLOVEBOX_ANTHROPIC_API_KEY_FILE=''
    eval "$told"
    value=$ANTHROPIC_API_KEY file=$GLOVEBOX_ANTHROPIC_API_KEY_FILE
    if [ -z "$value" ] && [ -n "$file" ]; then
        [ -r "$file" ] || stop "the key file $file cannot be read; fix GLOVEBOX_ANTHROPIC_API_KEY_FILE."
        value=$(<"$file")
    fi
    printf '%s' "$value"
}

# Stores the key where only the service can read it; never on a command line or in a container's settings.
make_key_file() {
    local folder=${GLOVEBOX_KEY_FILE%/*} value
    value=$(key)
    mkdir -p -m 700 "$folder"
    (umask 077 && touch "$GLOVEBOX_KEY_FILE")
    if [ "$(<"$GLOVEBOX_KEY_FILE")" != "$value" ]; then
        # In place, because a running container has this file mounted.
        printf '%s' "$value" >"$GLOVEBOX_KEY_FILE"
        key_changed=--force-recreate
    fi
    if is_root; then chown "$GLOVEBOX_UID:$GLOVEBOX_GID" "$GLOVEBOX_KEY_FILE"; fi
}

prepare() {
    [ -e "$GLOVEBOX_HOME/data/public/manifest.json" ] && return
    local corpus mounts=()
    corpus=$(corpus)
    case $corpus in
        stdlib | climbmix) ;;
        *)
            corpus=$(realpath -ms "$corpus")
            [ -e "$corpus" ] || stop "there is no $corpus; GLOVEBOX_CORPUS is stdlib, climbmix, a folder or a file."
            # A model hub's snapshot contains links to files next to it.
            mounts=(--volume "${corpus%%/snapshots/*}:${corpus%%/snapshots/*}:ro")
            ;;
    esac
    say "preparing data ($corpus) in $GLOVEBOX_HOME"
    compose run --rm --no-deps -T "${mounts[@]}" operator prepare --corpus "$corpus" \
        ${GLOVEBOX_SCALE:+--scale "$GLOVEBOX_SCALE"} \
        ${GLOVEBOX_SEPARATOR:+--separator "$GLOVEBOX_SEPARATOR"} </dev/null
}

announce() {
    has_gpu || say "no GPU that containers can use: experiments run on the CPU, at its scale"
    [ -s "$GLOVEBOX_KEY_FILE" ] ||
        say "no ANTHROPIC_API_KEY in the environment or .env: the built-in tuner makes the proposals"
}

# True if the runner will be recreated because settings, image or key changed.
renews_runner() {
    local plan
    plan=$(compose up --detach --dry-run ${key_changed:-} 2>&1) && [[ $plan == *-runner-1*Recreate* ]]
}

# The state of the research, even if the service is down.
status() {
    local state terminal=(-T)
    if [ -t 0 ] && [ -t 1 ]; then terminal=(); fi # use the width of the terminal
    state=$(compose ps --all --format '{{.State}}' controller)
    case $state in
        running)
            compose exec "${terminal[@]}" controller python -m controller status
            return
            ;;
        restarting) state="the service cannot start; make logs says why." ;;
        *) state="the service is not running; start it with: make up" ;;
    esac
    if [ -s "$GLOVEBOX_HOME/audit.jsonl" ]; then
        make_settings_file
        compose --progress quiet run --rm --no-deps -T operator status </dev/null || true
    fi
    stop "$state"
}

# The homes that the service's containers were created for, and the current one.
homes() {
    local ids
    ids=$(compose ps --all --quiet)
    {
        # shellcheck disable=SC2086 # one word for each container
        [ -z "$ids" ] || docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' $ids
        echo "GLOVEBOX_HOME=$GLOVEBOX_HOME"
    } | sed -n 's/^GLOVEBOX_HOME=//p' | sort -u
}

# end_experiments HOME: a controller ends its experiment when it is stopped, unless it was already dead or has no runner.
# The label is defined in controller/core/containers/names.py.
end_experiments() {
    local label
    if [ -e "$1/lock" ] && ! flock --shared --nonblock "$1/lock" true; then
        say "a controller that is not the service's is at work in $1; what it runs goes on"
        return
    fi
    label=glovebox.home=$(printf '%s' "$1" | sha256sum | cut -c1-16)
    docker ps --all --quiet --filter "label=$label" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
    docker volume ls --quiet --filter "label=$label" | xargs --no-run-if-empty docker volume rm --force >/dev/null
}

down() {
    local home found
    found=$(homes)
    compose down --remove-orphans
    while read -r home; do end_experiments "$home"; done <<<"$found"
}

main() {
    export_variables
    case ${1:-} in
        up)
            make_home
            make_web_token
            make_key_file
            make_settings_file
            make_runner_settings
            announce
            prepare
            # It cleans up through the runner.
            if renews_runner; then compose stop controller; fi
            compose up --detach --remove-orphans ${key_changed:-}
            say "the research goes on by itself in $GLOVEBOX_HOME; look at it with: make status, make logs; end it with: make down"
            say "in a browser: http://$GLOVEBOX_WEB__HOST:$GLOVEBOX_WEB__PORT/ with the token in $GLOVEBOX_HOME/web-token"
            ;;
        prepare)
            make_home
            make_key_file
            make_settings_file
            prepare
            ;;
        down) down ;;
        logs) compose logs --follow --tail 200 ;;
        status) status ;;
        *) stop "usage: service.sh up|down|logs|status|prepare" ;;
    esac
}

main "$@"
