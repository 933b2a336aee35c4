# Shared by the bootstrap scripts: messages, errors and installation of packages.
# shellcheck shell=bash

readonly NOT_READY=3 # the machine is not ready; the same exit status as the glovebox command's

say() { printf '%s\n' "glovebox: $*" >&2; }

# Prints one sentence that says what to do next, and exits.
stop() {
    say "$*"
    exit "$NOT_READY"
}

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" -eq 0 ]; }

# The distribution's identifier and release name, e.g. "debian bookworm".
distribution() { (. /etc/os-release && echo "$ID" "${VERSION_CODENAME:-unknown}"); }

# wait_for SECONDS COMMAND...: repeats a command until it succeeds or the time is up.
wait_for() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || return 1
        sleep 0.2
    done
}

apt_update() {
    apt-get update -qq >/dev/null || stop "apt-get update failed; run it by hand and see which source is wrong."
}

# apt_install PACKAGE...: from the distribution, without recommended packages, non-interactively.
apt_install() {
    local log
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        stop "apt-get could not install: $*."
    fi
    rm -f "$log"
}

# "URI RELEASE" of every apt source of the distribution itself that this machine uses.
distribution_sources() {
    local id
    read -r id _ <<<"$(distribution)"
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' \
        'Created-By: Packages' "Origin: ${id^}" 'Component: main' | sort -u
}

# need COMMAND PACKAGE: installs PACKAGE if COMMAND is missing, or says what to run.
need() {
    have "$1" && return
    have apt-get || stop "$1 is missing and there is no apt here; install $1 with your package manager."
    is_root || stop "$1 is missing; run: sudo apt-get install $2"
    say "installing $2"
    apt_update
    apt_install "$2"
}
