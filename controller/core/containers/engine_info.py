"""What an engine's description of itself (`docker info`) means to us. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class IdMap:
    """Where the user and group ids of containers begin on the host: id n inside is `uid` + n outside."""

    uid: int = 0
    gid: int = 0


NOT_MAPPED = IdMap()

#: What we limit, by the name under which an engine says that it can.
_LIMITS = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU time",
    "CPUShares": "shares of the CPU",
}
_ACCESS_CONTROL = {"apparmor": "AppArmor", "selinux": "SELinux"}


def id_map(info: Mapping[str, Any]) -> IdMap | None:
    """The engine's user-namespace remapping; None if it has one that it does not tell.

    An engine says that it maps ids, but not where to, other than by the folder it keeps the images of that
    mapping in: `<data-root>/<first uid>.<first gid>`.
    """
    if "userns" not in security_options(info):
        return NOT_MAPPED
    found = re.search(r"/(\d+)\.(\d+)/?$", str(info.get("DockerRootDir", "")))
    return IdMap(int(found[1]), int(found[2])) if found else None


def user_ids(info: Mapping[str, Any]) -> Literal["rootless", "mapped", "shared"]:
    """Whom somebody who broke out of a container would be on the host: `shared` means the same user id."""
    options = security_options(info)
    if "rootless" in options:
        return "rootless"
    return "mapped" if "userns" in options else "shared"


def owner_inside(users: str, uid: int, gid: int) -> tuple[int, int]:
    """Who owns, in a container outside of any mapping, what `uid` and `gid` own on the host.

    `users` is what `user_ids` says. Root in a container of a rootless engine is the one who runs it, and the
    owner of a home that such an engine can write to is no other.
    """
    return (0, 0) if users == "rootless" else (uid, gid)


def confinement(info: Mapping[str, Any]) -> str:
    """The kernel's access control that the engine's containers are under, besides its system call filter."""
    found = security_options(info) & {"apparmor", "selinux"}
    return " and ".join(_ACCESS_CONTROL[name] for name in sorted(found)) or "no AppArmor or SELinux"


def unfit(info: Mapping[str, Any]) -> str | None:
    """Why no experiment may run on this engine, as a sentence; None if nothing speaks against it.

    An engine without cgroups makes containers all the same, and describes them as if they were limited.
    """
    unlimited = [what for key, what in _LIMITS.items() if not info.get(key)]
    if unlimited and user_ids(info) == "rootless":
        return (
            f"This rootless engine cannot limit {_listed(unlimited)}: it needs cgroup v2 and the controllers "
            "cpu, memory and pids delegated to its user; docs/sandbox.md says how."
        )
    if unlimited == [_LIMITS["SwapLimit"]]:
        return "The kernel cannot keep containers from swapping; boot it with swapaccount=1 or cgroup v2."
    if unlimited:
        return (
            f"The engine cannot limit {_listed(unlimited)}; "
            "`docker info` says what its kernel or its cgroups lack."
        )
    if "seccomp" not in security_options(info):
        return "The engine cannot filter system calls; its kernel or its build lacks seccomp."
    if id_map(info) is None:
        return (
            "The engine maps user ids, and where to does not show in the name of its root folder "
            f"{info.get('DockerRootDir')}; let the engine name that folder."
        )
    return None


def security_options(info: Mapping[str, Any]) -> set[str]:
    """`seccomp`, `apparmor`, `selinux`, `userns`, `rootless`, `cgroupns`: those the engine says it has."""
    fields = (field for option in info.get("SecurityOptions") or () for field in option.split(","))
    return {field.removeprefix("name=") for field in fields if field.startswith("name=")}


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
