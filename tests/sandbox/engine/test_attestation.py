"""What an engine might make of a request, and whether it would be noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.core.containers import builders
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import ContainerNames
from controller.sandbox.engine.attestation import differences

ASKED = builders.trainer(
    SealedConfig(seccomp="{}"),
    ContainerNames(Path("/srv/home"), "7"),
    Files(Path("/srv/home/harness/abc"), Path("/srv/home/data")),
    train=Path("/srv/home/runs/000007/train.py"),
    budget_seconds=300.0,
    seed=42,
).to_engine()


def inspected() -> dict[str, Any]:
    """As Docker 26.1 answers: false and empty things left out or null, what it fills in by itself added."""
    config = {key: copy.deepcopy(value) for key, value in ASKED.items() if key != "HostConfig"}
    config["Env"] = [*config["Env"], "PATH=/opt/venv/bin:/usr/bin:/bin"]
    config["Labels"] = {**config["Labels"], "maintainer": "of the image"}
    host = copy.deepcopy(ASKED["HostConfig"])
    for mount in host["Mounts"]:
        if not mount["ReadOnly"]:
            del mount["ReadOnly"]
    host["Ulimits"].reverse()
    host |= {"CapAdd": None, "Binds": None, "Devices": [], "ConsoleSize": [0, 0], "Init": None}
    mounts = [
        {
            "Type": mount["Type"],
            "Destination": mount["Target"],
            "RW": not mount["ReadOnly"],
            "Source": "resolved",
        }
        for mount in reversed(ASKED["HostConfig"]["Mounts"])
    ]
    return {"Config": config, "HostConfig": host, "Mounts": mounts}


def test_an_honest_engine_passes() -> None:
    assert differences(ASKED, inspected()) == []


def _mount(body: dict[str, Any], target: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in body["HostConfig"]["Mounts"] if m["Target"] == target)
    return found


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "privileged": lambda body: body["HostConfig"].update(Privileged=True),
    "added capability": lambda body: body["HostConfig"].update(CapAdd=["SYS_ADMIN"]),
    "kept capabilities": lambda body: body["HostConfig"].update(CapDrop=None),
    "network": lambda body: body["HostConfig"].update(NetworkMode="bridge"),
    "unconfined": lambda body: body["HostConfig"].update(
        SecurityOpt=["no-new-privileges", "seccomp=unconfined"]
    ),
    "the engine's own profile": lambda body: body["HostConfig"].update(SecurityOpt=["no-new-privileges"]),
    "another profile": lambda body: body["HostConfig"]["SecurityOpt"].__setitem__(1, "seccomp={ }"),
    "no AppArmor": lambda body: body["HostConfig"]["SecurityOpt"].append("apparmor=unconfined"),
    "bare /proc and /sys": lambda body: body["HostConfig"].update(MaskedPaths=[]),
    "the host's user namespace": lambda body: body["HostConfig"].update(UsernsMode="host"),
    "writable root": lambda body: body["HostConfig"].update(ReadonlyRootfs=False),
    "swap": lambda body: body["HostConfig"].update(MemorySwap=-1),
    "no pids limit": lambda body: body["HostConfig"].update(PidsLimit=None),
    "host pid namespace": lambda body: body["HostConfig"].update(PidMode="host"),
    "another runtime": lambda body: body["HostConfig"].update(Runtime="runsc"),
    "a folder of another container": lambda body: body["HostConfig"].update(VolumesFrom=["other"]),
    "another cgroup": lambda body: body["HostConfig"].update(CgroupParent="/mine"),
    "rights to devices": lambda body: body["HostConfig"].update(DeviceCgroupRules=["c *:* rwm"]),
    "a name for another machine": lambda body: body["HostConfig"].update(ExtraHosts=["api:10.0.0.1"]),
    "another group": lambda body: body["HostConfig"].update(GroupAdd=["docker"]),
    "a port": lambda body: body["HostConfig"].update(PortBindings={"80/tcp": [{}]}),
    "a kernel setting": lambda body: body["HostConfig"].update(Sysctls={"kernel.shmmax": "1"}),
    "links": lambda body: body["HostConfig"].update(Links=["/db:/db"]),
    "a file with its id": lambda body: body["HostConfig"].update(ContainerIDFile="/run/id"),
    "a device": lambda body: body["HostConfig"].update(Devices=[{"PathOnHost": "/dev/kvm"}]),
    "a gpu": lambda body: body["HostConfig"].update(DeviceRequests=[{"Driver": "nvidia", "Count": -1}]),
    "an old-style bind": lambda body: body["HostConfig"].update(Binds=["/:/host"]),
    "an extra mount": lambda body: body["HostConfig"]["Mounts"].append({"Type": "bind", "Target": "/x"}),
    "a writable mount": lambda body: _mount(body, "/data").update(ReadOnly=False),
    "another source": lambda body: _mount(body, "/data").update(Source="/srv/home/data"),
    "a volume of the image": lambda body: body["Mounts"].append(
        {"Type": "volume", "Destination": "/y", "RW": True}
    ),
    "root": lambda body: body["Config"].update(User=""),
    "command in another order": lambda body: body["Config"]["Cmd"].reverse(),
    "lost environment": lambda body: body["Config"].update(Env=["PATH=/usr/bin"]),
    "lost label": lambda body: body["Config"]["Labels"].pop("glovebox.home"),
    "executable options": lambda body: body["HostConfig"].update(Tmpfs={"/tmp": "rw,exec,suid,dev"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wider_container_is_noticed(change: Callable[[dict[str, Any]], object]) -> None:
    body = inspected()
    change(body)
    assert differences(ASKED, body) != []
