"""What engines say about themselves, and what follows for containers."""

from __future__ import annotations

from typing import Any

import pytest

from controller.core.engine_info import IdMap, id_map, security_options, unfit

PLAIN: dict[str, Any] = {
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "DockerRootDir": "/var/lib/docker",
    "SwapLimit": True,
}
MAPPED: dict[str, Any] = {
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=userns", "name=cgroupns"],
    "DockerRootDir": "/var/lib/docker/100000.200000",
    "SwapLimit": True,
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
    ("change", "words"),
    [
        ({"SwapLimit": False}, "swapaccount=1"),
        ({"SecurityOptions": ["name=apparmor"]}, "seccomp"),
        ({"DockerRootDir": "/srv/docker"}, "root folder /srv/docker"),
    ],
)
def test_an_engine_that_is_unfit_is_told_why(change: dict[str, Any], words: str) -> None:
    assert unfit(PLAIN) is None
    assert unfit(MAPPED) is None
    assert words in str(unfit({**MAPPED, **change}))
