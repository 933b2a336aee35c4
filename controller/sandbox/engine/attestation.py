"""Whether the engine created the container we asked for.

The SDK, a proxy in front of the socket, the engine's defaults and its administrators' configuration can all
change a request. Pure: compares the create request with what `inspect` returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Ways to widen a container's access that we never request; all of them must be empty.
_MUST_BE_EMPTY = (
    "Binds",
    "CapAdd",
    "CgroupParent",
    "ContainerIDFile",
    "DeviceCgroupRules",
    "Devices",
    "ExtraHosts",
    "GroupAdd",
    "Links",
    "PortBindings",
    "Sysctls",
    "VolumesFrom",
)
_SHOWN = 200
_CONFIG = ("Cmd", "Image", "User", "WorkingDir", "Tty", "OpenStdin")


def differences(asked: Mapping[str, Any], inspected: Mapping[str, Any]) -> list[str]:
    """Differences between a create body and the engine's `inspect` of the result; empty if there are none.

    What the engine adds from the image (environment, labels, entrypoint) does not count.
    """
    config, host = inspected["Config"], inspected["HostConfig"]
    return [
        *_unequal({key: asked[key] for key in _CONFIG}, config),
        *(f"Env lacks {entry}" for entry in sorted(set(asked["Env"]) - set(config["Env"] or ()))),
        *(f"Label {key}" for key, value in asked["Labels"].items() if config["Labels"].get(key) != value),
        *_unequal(asked["HostConfig"], host),
        *(f"{key} is {host[key]!r}" for key in _MUST_BE_EMPTY if host.get(key)),
        *_unequal({"mounts": _asked_mounts(asked)}, {"mounts": _actual_mounts(inspected)}),
    ]


def _unequal(asked: Mapping[str, Any], actual: Mapping[str, Any]) -> Iterator[str]:
    for key, value in asked.items():
        if _canonical(value) != _canonical(actual.get(key)):
            yield f"{key} is {_shown(actual.get(key))}, not {_shown(value)}"


def _canonical(value: Any) -> Any:
    """Drops meaningless distinctions: absent, null and empty are equal; objects in a list have no order."""
    if isinstance(value, Mapping):
        return {key: inner for key in sorted(value) if (inner := _canonical(value[key])) is not None}
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return sorted((_canonical(inner) for inner in value), key=repr)
    return value or None


def _shown(value: Any) -> str:
    """Truncated, so that a seccomp profile does not crowd out the other differences."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _asked_mounts(asked: Mapping[str, Any]) -> list[Any]:
    mounts = asked["HostConfig"]["Mounts"]
    return sorted([mount["Target"], mount["Type"], not mount["ReadOnly"]] for mount in mounts)


def _actual_mounts(inspected: Mapping[str, Any]) -> list[Any]:
    """The container's actual mounts, including any volume that the image declares."""
    return sorted([mount["Destination"], mount["Type"], mount["RW"]] for mount in inspected["Mounts"])
