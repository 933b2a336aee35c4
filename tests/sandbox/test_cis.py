"""Section 5 of the CIS Docker Benchmark on live containers; `tests.sandbox.cis` prints it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.cis import SECTION_5, Item, Live, table, witnessed
from tests.support.bench import require_runtime

pytestmark = [pytest.mark.engine, pytest.mark.slow]

APPLICABLE = [item for item in SECTION_5 if item.met is not None]


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Live]:
    found = witnessed(tmp_path_factory.mktemp("home"))
    print(table(found))
    return found


def test_the_whole_section_is_covered_and_every_container_seen(containers: dict[str, Live]) -> None:
    assert [item.number for item in SECTION_5] == [f"5.{number}" for number in range(1, 33)]
    assert {"holder", "trainer", "worker", "judge", "telemetry"} < set(containers)
    assert all((item.met is None) == bool(item.not_applicable) for item in SECTION_5)


def test_gvisor_trains_and_scores_too(tmp_path: Path) -> None:
    require_runtime("runsc")
    found = witnessed(tmp_path, runtime="runsc")
    assert {live.host["Runtime"] for live in found.values()} == {"runsc"}
    assert "NOT MET" not in table(found)


@pytest.mark.parametrize("item", APPLICABLE, ids=lambda item: f"{item.number} {item.about}")
def test_it_is_met(item: Item, containers: dict[str, Live]) -> None:
    assert item.met is not None
    if all(item.absent(live) for live in containers.values()):
        pytest.skip(f"the engine has no {item.about}")
    assert [name for name, live in containers.items() if not item.met(live)] == []


Change = Callable[[dict[str, Any]], object]
SPOILED: dict[str, Change] = {
    "5.4": lambda seen: seen["HostConfig"].update(CapAdd=["SYS_PTRACE"]),
    "5.5": lambda seen: seen["HostConfig"].update(Privileged=True),
    "5.6": lambda seen: seen["Mounts"].append({"Type": "bind", "Source": "/etc", "Propagation": ""}),
    "5.8": lambda seen: seen["HostConfig"].update(PortBindings={"80/tcp": [{}]}),
    "5.9": lambda seen: seen["Config"].update(ExposedPorts={"8080/tcp": {}}),
    "5.10": lambda seen: seen["HostConfig"].update(NetworkMode="host"),
    "5.11": lambda seen: seen["HostConfig"].update(Memory=0, MemorySwap=0),
    "5.13": lambda seen: seen["HostConfig"].update(ReadonlyRootfs=False),
    "5.14": lambda seen: seen["NetworkSettings"].update(Ports={"80/tcp": [{"HostIp": "0.0.0.0"}]}),
    "5.15": lambda seen: seen["HostConfig"].update(RestartPolicy={"Name": "always"}),
    "5.16": lambda seen: seen["HostConfig"].update(PidMode="host"),
    "5.17": lambda seen: seen["HostConfig"].update(IpcMode="host"),
    "5.18": lambda seen: seen["HostConfig"].update(Devices=[{"PathOnHost": "/dev/sda"}]),
    "5.19": lambda seen: seen["HostConfig"].update(Ulimits=[]),
    "5.20": lambda seen: seen["Mounts"].append({"Type": "bind", "Source": "/x", "Propagation": "rshared"}),
    "5.21": lambda seen: seen["HostConfig"].update(UTSMode="host"),
    "5.22": lambda seen: seen["HostConfig"].update(SecurityOpt=["no-new-privileges", "seccomp=unconfined"]),
    "5.23": lambda seen: seen.update(ExecIDs=["abc"]),
    "5.24": lambda seen: seen.update(ExecIDs=["abc"]),
    "5.25": lambda seen: seen["HostConfig"].update(CgroupParent="/mine"),
    "5.26": lambda seen: seen["HostConfig"].update(SecurityOpt=[]),
    "5.28": lambda seen: seen.update(Image="sha256:older"),
    "5.29": lambda seen: seen["HostConfig"].update(PidsLimit=0),
    "5.30": lambda seen: seen["NetworkSettings"].update(Networks={"bridge": {}}),
    "5.31": lambda seen: seen["HostConfig"].update(UsernsMode="host"),
    "5.32": lambda seen: seen["Mounts"].append(
        {"Type": "bind", "Source": "/var/run/docker.sock", "Propagation": ""}
    ),
}


@pytest.mark.parametrize("number", SPOILED)
def test_what_breaks_it_is_noticed(number: str, containers: dict[str, Live]) -> None:
    inspected = copy.deepcopy(dict(containers["trainer"].inspected))
    SPOILED[number](inspected)
    assert _met(number, replace(containers["trainer"], inspected=inspected)) is False


def test_what_breaks_it_elsewhere_is_noticed(containers: dict[str, Live]) -> None:
    """In the engine, the security modules or the processes: the rest."""
    trainer = containers["trainer"]
    inspected = copy.deepcopy(dict(trainer.inspected))
    inspected["HostConfig"]["SecurityOpt"].append("label=disable")
    for profile, met in (("", False), ("unconfined", False), ("docker-default", True)):
        assert _met("5.2", replace(trainer, inspected={**inspected, "AppArmorProfile": profile})) is met
    assert not _met("5.3", replace(trainer, inspected=inspected))
    assert not _met("5.1", replace(trainer, info={**trainer.info, "Swarm": {"LocalNodeState": "active"}}))
    assert not _met("5.7", replace(trainer, processes="/usr/sbin/sshd -D"))


def _met(number: str, live: Live) -> bool:
    [item] = [item for item in APPLICABLE if item.number == number]
    assert item.met is not None
    return item.met(live)
