"""Reads what we need out of an engine's description of itself (`docker info`). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class IdMap:
    """Offset of container ids on the host: user id n inside is `uid` + n outside."""

    uid: int = 0
    gid: int = 0


NOT_MAPPED = IdMap()

#: The limits we set, by the key under which an engine says that it supports them.
_LIMITS = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU time",
    "CPUShares": "shares of the CPU",
}
_ACCESS_CONTROL = {"apparmor": "AppArmor", "selinux": "SELinux"}


def id_map(info: Mapping[str, Any]) -> IdMap | None:
    """The engine's user-namespace remapping; None if it has one that cannot be determined.

    An engine reports that it maps ids, but the mapping shows only in the name of its root folder:
    `<data-root>/<first uid>.<first gid>`.
    """
    if "userns" not in security_options(info):
        return NOT_MAPPED
    found = re.search(r"/(\d+)\.(\d+)/?$", str(info.get("DockerRootDir", "")))
    return IdMap(int(found[1]), int(found[2])) if found else None


def user_ids(info: Mapping[str, Any]) -> Literal["rootless", "mapped", "shared"]:
    """How a user id in a container relates to the host's; `shared`: a process that escapes keeps its id."""
    options = security_options(info)
    if "rootless" in options:
        return "rootless"
    return "mapped" if "userns" in options else "shared"


def owner_inside(users: str, uid: int, gid: int) -> tuple[int, int]:
    """Owner, as seen in a container without id mapping, of files that `uid` and `gid` own on the host.

    `users` is the result of `user_ids`. In a container of a rootless engine root stands for the user who runs
    the engine, who also has to be the owner of a home that the engine can write to.
    """
    return (0, 0) if users == "rootless" else (uid, gid)


def confinement(info: Mapping[str, Any]) -> str:
    """The kernel's mandatory access control that applies to the engine's containers."""
    found = security_options(info) & {"apparmor", "selinux"}
    return " and ".join(_ACCESS_CONTROL[name] for name in sorted(found)) or "no AppArmor or SELinux"


def unfit(info: Mapping[str, Any]) -> str | None:
    """Why no experiment may run on this engine, as a sentence; None if it is fit.

    An engine without cgroups creates containers anyway, and describes them as if they were limited.
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
            "The engine maps user ids, but to which ones does not show in the name of its root folder "
            f"{info.get('DockerRootDir')}; let the engine name that folder."
        )
    return None


def security_options(info: Mapping[str, Any]) -> set[str]:
    """The security features that the engine reports: `seccomp`, `apparmor`, `selinux`, `userns`,
    `rootless`..."""
    fields = (field for option in info.get("SecurityOptions") or () for field in option.split(","))
    return {field.removeprefix("name=") for field in fields if field.startswith("name=")}


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
