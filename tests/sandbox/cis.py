"""Section 5 (container runtime) of the CIS Docker Benchmark 1.6, over what the engine says of containers.

`PYTHONPATH=harness python -m tests.sandbox.cis` runs an experiment and prints the table. What an entry is
called here is our own short wording; the number is the benchmark's.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controller.core.containers import builders
from controller.core.containers.config import MIB, Limits, SandboxConfig, SealedConfig
from controller.core.containers.engine_info import security_options
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec
from controller.core.scoring.config import JudgeConfig
from controller.core.values import Score
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import sealed
from controller.sandbox.scoring import ContainerJudge
from controller.system.clock import SystemClock
from tests.harness.scoring import MODEL, make_data
from tests.support.bench import engine, open_bench

TRAINS = f"""
import torch
{MODEL}
def build_model():
    return Tiny()

if __name__ == "__main__":
    import prepare
    prepare.save_checkpoint(Tiny())
"""

SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/var", "/root", "/run")


@dataclass(frozen=True)
class Live:
    """A container while it runs: the engine's `inspect`, `top` and `info`."""

    name: str
    """`trainer`, `worker`…: what it is in its attempt."""
    inspected: Mapping[str, Any]
    processes: str
    info: Mapping[str, Any]
    image_id: str
    """What the name of the image stands for now."""

    @property
    def host(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.inspected["HostConfig"]
        return found


@dataclass(frozen=True)
class Item:
    """One entry of the benchmark: whether a live container meets it, or why it does not apply."""

    number: str
    about: str
    shown_by: str
    met: Callable[[Live], bool] | None = None
    not_applicable: str = ""
    module: str = ""
    """The security module it is about; without one in the engine's kernel there is nothing to meet."""

    def absent(self, live: Live) -> bool:
        return bool(self.module) and self.module not in security_options(live.info)


def _sources(live: Live) -> list[str]:
    return [mount["Source"] for mount in live.inspected["Mounts"] if mount["Type"] == "bind"]


def _filtered(live: Live) -> bool:
    profiles = [opt for opt in live.host["SecurityOpt"] if opt.startswith("seccomp=")]
    return len(profiles) == 1 and '"defaultAction":"SCMP_ACT_ERRNO"' in profiles[0]


def _propagation_private(live: Live) -> bool:
    return all(mount["Propagation"] in ("", "private", "rprivate") for mount in live.inspected["Mounts"])


SECTION_5 = (
    Item("5.1", "no swarm", "Swarm of info", lambda c: c.info["Swarm"]["LocalNodeState"] == "inactive"),
    Item(
        "5.2",
        "AppArmor",
        "AppArmorProfile",
        lambda c: c.inspected["AppArmorProfile"] not in ("", "unconfined"),
        module="apparmor",
    ),
    Item(
        "5.3",
        "SELinux",
        "SecurityOpt",
        lambda c: not any("label" in opt and "disable" in opt for opt in c.host["SecurityOpt"]),
        module="selinux",
    ),
    Item(
        "5.4",
        "capabilities",
        "CapDrop is ALL, CapAdd empty",
        lambda c: c.host["CapDrop"] == ["ALL"] and not c.host["CapAdd"],
    ),
    Item("5.5", "not privileged", "Privileged", lambda c: c.host["Privileged"] is False),
    Item(
        "5.6",
        "no system folder of the host",
        "sources of bind mounts",
        lambda c: not set(_sources(c)) & set(SENSITIVE),
    ),
    Item("5.7", "no sshd", "top", lambda c: "sshd" not in c.processes),
    Item("5.8", "no privileged port", "PortBindings", lambda c: not c.host["PortBindings"]),
    Item(
        "5.9",
        "only needed ports",
        "ExposedPorts, PublishAllPorts",
        lambda c: not c.inspected["Config"].get("ExposedPorts") and not c.host["PublishAllPorts"],
    ),
    Item("5.10", "not the host's network", "NetworkMode is none", lambda c: c.host["NetworkMode"] == "none"),
    Item(
        "5.11",
        "memory limited, swap too",
        "Memory, MemorySwap",
        lambda c: c.host["MemorySwap"] == c.host["Memory"] > 0,
    ),
    Item(
        "5.12",
        "CPU priority",
        "CpuShares",
        not_applicable="an experiment gets the slot to itself, and equal shares by default; "
        "sandbox.*.cpus limits it (NanoCpus)",
    ),
    Item("5.13", "read-only root", "ReadonlyRootfs", lambda c: c.host["ReadonlyRootfs"] is True),
    Item(
        "5.14", "ports bound to one interface", "Ports", lambda c: not c.inspected["NetworkSettings"]["Ports"]
    ),
    Item("5.15", "no endless restarts", "RestartPolicy", lambda c: c.host["RestartPolicy"]["Name"] == "no"),
    Item("5.16", "its own process namespace", "PidMode", lambda c: c.host["PidMode"] == ""),
    Item("5.17", "its own IPC namespace", "IpcMode", lambda c: c.host["IpcMode"] == "private"),
    Item(
        "5.18",
        "no device of the host",
        "Devices, DeviceRequests, DeviceCgroupRules",
        lambda c: not any(c.host[key] for key in ("Devices", "DeviceRequests", "DeviceCgroupRules")),
    ),
    Item(
        "5.19",
        "limits of processes set",
        "Ulimits",
        lambda c: {limit["Name"] for limit in c.host["Ulimits"]} == {"core", "fsize", "nofile"},
    ),
    Item("5.20", "mounts propagate nowhere", "Propagation of mounts", _propagation_private),
    Item("5.21", "its own UTS namespace", "UTSMode", lambda c: c.host["UTSMode"] == ""),
    Item("5.22", "seccomp is on", "SecurityOpt has our allow-list", _filtered),
    Item(
        "5.23",
        "no privileged exec",
        "ExecIDs",
        lambda c: not c.inspected["ExecIDs"],
    ),
    Item("5.24", "no exec as root", "ExecIDs", lambda c: not c.inspected["ExecIDs"]),
    Item("5.25", "the engine's own cgroup", "CgroupParent", lambda c: c.host["CgroupParent"] == ""),
    Item(
        "5.26",
        "no new privileges",
        "SecurityOpt",
        lambda c: "no-new-privileges" in c.host["SecurityOpt"],
    ),
    Item(
        "5.27",
        "health is watched",
        "Healthcheck",
        not_applicable="a run is no service: it ends by itself or at its limit, and is not restarted",
    ),
    Item(
        "5.28",
        "the current version of the image",
        "Image",
        lambda c: c.inspected["Image"] == c.image_id,
    ),
    Item("5.29", "number of processes limited", "PidsLimit", lambda c: c.host["PidsLimit"] > 0),
    Item(
        "5.30",
        "not the default bridge",
        "Networks",
        lambda c: set(c.inspected["NetworkSettings"]["Networks"]) == {"none"},
    ),
    Item(
        "5.31",
        "not the host's user namespace",
        "UsernsMode",
        lambda c: c.host["UsernsMode"] == "",
    ),
    Item(
        "5.32",
        "not the engine's socket",
        "sources of mounts",
        lambda c: not any(source.endswith(".sock") for source in _sources(c)),
    ),
)


class Witness(DockerSandbox):
    """A sandbox that looks at every container right after its start."""

    def __init__(self, config: SealedConfig, home: Path) -> None:
        super().__init__(config, home, SystemClock())
        self.seen: dict[str, Live] = {}

    def start(self, spec: ContainerSpec) -> float:
        began = super().start(spec)
        what = spec.name.split("-", 4)[4]  # glovebox-HOME-EXPERIMENT-ATTEMPT-WHAT
        with closing(engine()) as client:
            inspected = client.inspect_container(spec.name)
            assert inspected["State"]["Running"], f"{what} ended before anybody could look"
            processes = str(client.top(spec.name)["Processes"])
            images = {tag: image["Id"] for image in client.images() for tag in image["RepoTags"] or ()}
            self.seen[what] = Live(what, inspected, processes, client.info(), images[spec.image])
        return began


def witnessed(home: Path, **settings: str) -> dict[str, Live]:
    """Every container of one experiment that is trained, scored and confirmed, by name."""
    memory = Limits(memory=1024 * MIB, pids=256, tmp_bytes=64 * MIB)
    limits = {"trainer": memory, "worker": memory, "judge_memory": memory.memory, "workspace_bytes": 16 * MIB}
    # What empties the caches runs nothing of an experiment's, and is gone before anybody could look at it.
    config = sealed(SandboxConfig.model_validate({**limits, "empty_caches": False, **settings}))
    with open_bench(home, config) as bench, closing(Witness(config, home)) as witness:
        bench.sandbox = witness
        make_data(home / "data")
        attempt, stop = bench.attempt(TRAINS, budget=60.0), threading.Event()
        outcome = bench.trainer().train(attempt, stop, lambda elapsed: None)
        assert outcome.cause is None, bench.log_text
        judge = ContainerJudge(
            witness,
            bench.clock,
            config=JudgeConfig(leak_fraction=0.01, total_seconds=100),
            containers=config,
            home=home,
            files=bench.files,
        )
        score = judge.score(attempt, 1, lambda score: True, stop)
        assert isinstance(score, Score), score
        _start_telemetry(witness, config, home)
        return witness.seen


def _start_telemetry(witness: Witness, config: SealedConfig, home: Path) -> None:
    """As it stands beside T where there is a GPU, but for what it runs: there is no driver to ask."""
    spec = builders.telemetry(config, ContainerNames(home, "0"), 60.0)
    witness.start(replace(spec, command=("exec", "--limit", "60", "--", "sleep", "60")))


def table(containers: Mapping[str, Live]) -> str:
    """One line for each entry: number, subject, where it shows, and the answer for every container."""
    names = list(containers)
    rows = [["no.", "subject", "shown by", *names]]
    for item in SECTION_5:
        answers = [_answer(item, live) for live in containers.values()]
        rows.append([item.number, item.about, item.shown_by, *answers])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    notes = [f"{item.number}: {item.not_applicable}" for item in SECTION_5 if item.not_applicable]
    return "\n".join([*(line.rstrip() for line in lines), "", "n/a", *notes])


def _answer(item: Item, live: Live) -> str:
    if item.met is None:
        return "n/a"
    if item.absent(live):
        return "absent"
    return "met" if item.met(live) else "NOT MET"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(table(witnessed(Path(folder))))
