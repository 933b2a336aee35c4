"""What engines say about themselves, and what follows for containers."""

from __future__ import annotations

from typing import Any

import pytest

from controller.core.containers.engine_info import (
    IdMap,
    confinement,
    id_map,
    owner_inside,
    security_options,
    unfit,
    user_ids,
)

#: As Docker 26.1 told them: root's engine on cgroup v1, the same with --userns-remap (AppArmor added), and a
#: rootless one where cgroup v2 is missing.
ALL_LIMITS = dict.fromkeys(("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota", "CPUShares"), True)
PLAIN: dict[str, Any] = {
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "DockerRootDir": "/var/lib/docker",
    **ALL_LIMITS,
}
MAPPED: dict[str, Any] = {
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=userns", "name=cgroupns"],
    "DockerRootDir": "/var/lib/docker/100000.200000",
    **ALL_LIMITS,
}
ROOTLESS: dict[str, Any] = {
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "DockerRootDir": "/home/user/.local/share/docker",
    **dict.fromkeys(ALL_LIMITS, False),
}
#: The same of Debian 13, whose systemd delegates cpu, memory and pids to users.
DELEGATED: dict[str, Any] = {
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
    "DockerRootDir": "/home/user/.local/share/docker",
    **ALL_LIMITS,
}


def test_security_options() -> None:
    assert security_options(PLAIN) == {"seccomp"}
    assert security_options(MAPPED) == {"apparmor", "seccomp", "userns", "cgroupns"}
    assert security_options({"SecurityOptions": None}) == set()


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (PLAIN, IdMap(0, 0)),
        (MAPPED, IdMap(100000, 200000)),
        ({**PLAIN, "DockerRootDir": "/srv/1.2"}, IdMap(0, 0)),  # a folder of that name, and no mapping
        ({**MAPPED, "DockerRootDir": "/srv/docker"}, None),
    ],
)
def test_where_user_ids_begin(info: dict[str, Any], expected: IdMap | None) -> None:
    assert id_map(info) == expected


@pytest.mark.parametrize(
    ("info", "users", "control"),
    [
        (PLAIN, "shared", "no AppArmor or SELinux"),
        (MAPPED, "mapped", "AppArmor"),
        (ROOTLESS, "rootless", "no AppArmor or SELinux"),
        ({**PLAIN, "SecurityOptions": ["name=selinux", "name=seccomp"]}, "shared", "SELinux"),
    ],
)
def test_who_one_would_be_outside_and_what_else_confines(
    info: dict[str, Any], users: str, control: str
) -> None:
    assert (user_ids(info), confinement(info)) == (users, control)


@pytest.mark.parametrize(
    ("info", "expected"), [(PLAIN, (1000, 100)), (MAPPED, (1000, 100)), (ROOTLESS, (0, 0))]
)
def test_the_owner_of_a_home_as_the_preparation_sees_it(
    info: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert owner_inside(user_ids(info), 1000, 100) == expected


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({**MAPPED, "SwapLimit": False}, ["swapaccount=1"]),
        ({**MAPPED, "SecurityOptions": ["name=apparmor"]}, ["seccomp"]),
        ({**MAPPED, "DockerRootDir": "/srv/docker"}, ["root folder /srv/docker"]),
        ({**PLAIN, "PidsLimit": False}, ["cannot limit processes;"]),
        ({**PLAIN, "MemoryLimit": False, "SwapLimit": False}, ["cannot limit memory and swap;"]),
        ({key: value for key, value in PLAIN.items() if key != "PidsLimit"}, ["cannot limit processes;"]),
        (ROOTLESS, ["memory, swap, processes, CPU time and shares of the CPU:", "rootless", "delegated"]),
        ({**DELEGATED, "CpuCfsQuota": False}, ["cannot limit CPU time:", "delegated"]),
    ],
)
def test_an_engine_that_is_unfit_is_told_why(info: dict[str, Any], words: list[str]) -> None:
    said = str(unfit(info))
    assert all(word in said for word in words), said
    assert said.endswith(".")


@pytest.mark.parametrize("info", [PLAIN, MAPPED, DELEGATED])
def test_an_engine_that_can_limit_everything_is_fit(info: dict[str, Any]) -> None:
    assert unfit(info) is None
