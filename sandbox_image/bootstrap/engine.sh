#!/usr/bin/env bash
# Makes sure a container engine with buildx and compose is running: installs it from the distribution's own packages and
# starts it if necessary, or says in one sentence what to do. Idempotent.
#
# GLOVEBOX_TEST_RUNTIMES=1 additionally registers, on an engine that has no configuration of its own, a runtime
# called "nvidia" that is plain runc (so that the GPU plumbing can be tested without a GPU) and runsc if installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./lib.sh

readonly START_SECONDS=60
readonly LOG=/var/log/glovebox-dockerd.log
readonly CONFIG=/etc/docker/daemon.json
# Only for tests: works without KVM and with any cgroups, but does not enforce memory and process limits.
readonly RUNSC_ARGUMENTS='"--platform=systrap", "--network=none", "--ignore-cgroups"'

engine_answers() { docker version >/dev/null 2>&1; }

engine_answers_or_is_gone() { engine_answers || ! pidof dockerd; }

tools_complete() { have docker && docker buildx version >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }

install_engine() {
    have apt-get || stop "there is no container engine and no apt here; install Docker with buildx and compose, then run this again."
    is_root || stop "there is no complete container engine (docker, buildx, compose); run this once as root: sudo sandbox_image/bootstrap/engine.sh"
    local id codename
    read -r id codename <<<"$(distribution)"
    say "installing the container engine from the packages of $id $codename"
    apt_update
    case "$id $codename" in
        "debian bookworm")
            add_next_release bookworm trixie
            apt_install docker.io/trixie docker-cli/trixie docker-buildx/trixie docker-compose/trixie
            ;;
        "debian "*) apt_install docker.io docker-cli docker-buildx docker-compose ;;
        "ubuntu "*) apt_install docker.io docker-buildx docker-compose-v2 ;;
        *) stop "no recipe for $id $codename; install Docker with buildx and compose, then run this again." ;;
    esac
}

# Debian 12's own engine is too old for buildx and compose v2. Its successor's packages install on it unchanged; the
# pin keeps everything else at its version. The sources are those the machine already uses, with the release replaced.
add_next_release() {
    local now=$1 next=$2 uri release
    local sources=/etc/apt/sources.list.d/glovebox-$next.sources keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    printf 'Package: *\nPin: release n=%s*\nPin-Priority: 100\n' "$next" >"/etc/apt/preferences.d/glovebox-$next"
    distribution_sources | while read -r uri release; do
        case $release in "$now" | "$now-updates" | "$now-security") ;; *) continue ;; esac
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "${release/#$now/$next}"
        if [ -f $keyring ]; then echo "Signed-By: $keyring"; fi
        echo
    done >"$sources"
    [ -s "$sources" ] || stop "no Debian source found in the apt configuration to derive $next from."
    apt_update
}

# The engine's rules need address-type matches and masquerading; which of the two iptables supports that depends on the kernel.
choose_iptables() {
    have iptables && have update-alternatives || return 0
    local candidate
    for candidate in iptables-nft iptables-legacy; do
        if have "$candidate" && iptables_works "$candidate"; then
            update-alternatives --set iptables "$(command -v "$candidate")" >/dev/null 2>&1 || true
            update-alternatives --set ip6tables "$(command -v "${candidate/#ip/ip6}")" >/dev/null 2>&1 || true
            return
        fi
    done
    say "neither iptables-nft nor iptables-legacy works with this kernel; the engine may not start."
}

iptables_works() {
    local chain=GLOVEBOX-PROBE ok=0
    "$1" -t nat -N $chain 2>/dev/null || true
    { "$1" -t nat -A $chain -m addrtype --dst-type LOCAL -j RETURN &&
        "$1" -t nat -A $chain -s 192.0.2.0/24 -j MASQUERADE; } 2>/dev/null || ok=1
    { "$1" -t nat -F $chain && "$1" -t nat -X $chain; } 2>/dev/null || true
    return $ok
}

register_test_runtimes() {
    [ "${GLOVEBOX_TEST_RUNTIMES:-}" = 1 ] && [ ! -e "$CONFIG" ] || return 0
    mkdir -p "$(dirname "$CONFIG")"
    local runsc=""
    have runsc && runsc=", \"runsc\": {\"path\": \"$(command -v runsc)\", \"runtimeArgs\": [$RUNSC_ARGUMENTS]}"
    printf '{"runtimes": {"nvidia": {"path": "%s"}%s}}\n' "$(command -v runc)" "$runsc" >"$CONFIG"
}

# A killed engine leaves its pid file behind, and refuses to start if another process now has that pid.
forget_the_dead() {
    rm -f /var/run/docker.pid
    pidof containerd >/dev/null || rm -f /var/run/docker/containerd/containerd.pid
}

start_engine() {
    is_root || stop "$(why_no_answer)"
    register_test_runtimes
    if [ "$(cat /proc/1/comm)" = systemd ]; then
        systemctl enable --now docker >/dev/null 2>&1 || true
        wait_for "$START_SECONDS" engine_answers && return
    else
        # A running engine that does not answer is starting or stopping.
        wait_for "$START_SECONDS" engine_answers_or_is_gone || true
        engine_answers && return
        if ! pidof dockerd >/dev/null; then
            choose_iptables
            forget_the_dead
            setsid dockerd >>"$LOG" 2>&1 </dev/null 9>&- &
            wait_for "$START_SECONDS" engine_answers && return
        fi
    fi
    [ -f "$LOG" ] && tail -n 8 "$LOG" >&2
    stop "the container engine did not answer within ${START_SECONDS}s; its log is $LOG (or: journalctl -u docker)."
}

why_no_answer() {
    if docker version 2>&1 | grep -qi 'permission denied'; then
        echo "you may not use the container engine; run: sudo usermod -aG docker $(id -un), then log in again."
    else
        echo "the container engine is not running; run: sudo systemctl start docker"
    fi
}

main() {
    engine_answers && tools_complete && return
    if is_root; then
        exec 9>/run/glovebox-engine.lock
        flock --timeout 600 9 || stop "another glovebox command has been setting up the container engine for ten minutes."
    fi
    if ! tools_complete || ! { have dockerd || engine_answers; }; then install_engine 9>&-; fi
    engine_answers || start_engine
    say "container engine $(docker version --format '{{.Server.Version}}') is up"
}

main "$@"
