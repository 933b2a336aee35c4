#!/usr/bin/env bash
# Prints the name of a base image that the engine has: the pinned one from a registry or, if no registry answers, a
# minimal Debian (or this Ubuntu) built with debootstrap from the mirror that this machine already uses.
#
# GLOVEBOX_BASE_IMAGE=NAME uses that image; GLOVEBOX_BASE_IMAGE=debootstrap skips the registry.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./lib.sh

readonly PINNED=debian:bookworm-slim@sha256:96e378d7e6531ac9a15ad505478fcc2e69f371b10f5cdf87857c4b8188404716
readonly PULL_SECONDS=120
readonly REGISTRY_SECONDS=10 # after this long, the registry counts as unreachable

known() { docker image inspect "$1" >/dev/null 2>&1; }

pull() {
    timeout "$REGISTRY_SECONDS" docker manifest inspect "$1" >/dev/null 2>&1 &&
        timeout "$PULL_SECONDS" docker pull -q "$1" >/dev/null 2>&1
}

# Debian builds release 12, as the pinned image; an Ubuntu mirror has no Debian, so Ubuntu builds its own release.
bootstrap() {
    local id codename suite mirror log
    read -r id codename <<<"$(distribution)"
    case $id in
        debian) suite=bookworm ;;
        ubuntu) suite=$codename ;;
        *) stop "no registry answers and this is neither Debian nor Ubuntu; load a base image and name it in GLOVEBOX_BASE_IMAGE." ;;
    esac
    base=glovebox-base:$suite
    known "$base" && return
    is_root || stop "no registry answers, and building a base image needs root; run once: sudo sandbox_image/bootstrap/base.sh"
    need debootstrap debootstrap
    say "no registry answers; building a base image with debootstrap ($suite)"
    mirror=$(distribution_sources | awk -v release="$codename" '$2 == release {print $1; exit}')
    root=$(mktemp -d /var/tmp/glovebox-base.XXXXXX) log=$root.log
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        stop "debootstrap failed; its log is $log"
    }
    rm -f "$log"
    distribution_sources | sed -n "s/ $codename/ $suite/; s/^/deb /; s/\$/ main/; / $suite\(-updates\|-security\)\? main/p" \
        >"$root/etc/apt/sources.list"
    slim_down "$root"
    tar --numeric-owner -C "$root" -c . | docker import --change 'CMD ["bash"]' - "$base" >/dev/null
}

# As the official slim images: no documentation, translations or package cache.
slim_down() {
    chroot "$1" apt-get clean
    rm -rf "$1"/var/lib/apt/lists/* "$1"/usr/share/{doc,man,info,locale}/* "$1"/var/log/*.log
    mkdir -p "$1/var/lib/apt/lists/partial"
}

main() {
    local chosen=${GLOVEBOX_BASE_IMAGE:-$PINNED}
    base=$chosen
    if ! known "$chosen" && { [ "$chosen" = debootstrap ] || ! pull "$chosen"; }; then
        bootstrap
    fi
    echo "$base"
}

main "$@"
