"""A controller that cannot reach the engine, a runner that can, and a runner that is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.core.containers.domains import Domain
from controller.core.containers.names import LABEL_DOMAIN, LABEL_HOME, ContainerNames
from controller.store.journal import read_records
from tests.cli.test_end_to_end import make_effort, train_py, wait_until_training
from tests.support.bench import engine as engine_of_the_machine
from tests.support.glovebox import NO_ENGINE, Glovebox, no_leftovers, remove_leftovers

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SETTINGS = {"GLOVEBOX_BUDGET__WALL_SECONDS": "120", "GLOVEBOX_DEVICE": "cpu"}


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Short enough for a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="glovebox-"))
    yield folder / "runner.sock"
    shutil.rmtree(folder)


def start_runner(command: Glovebox, socket: Path) -> subprocess.Popen[str]:
    socket.unlink(missing_ok=True)
    process = command.start("runner", DOCKER_HOST="unix:///var/run/docker.sock")
    deadline = time.monotonic() + 60
    while not socket.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_an_effort_without_the_engine_survives_its_runner(
    tmp_path: Path, socket_path: Path, with_data: Callable[[Path], None], engine: None
) -> None:
    made, _ = make_effort(tmp_path, with_data, train_py(seconds=5), [train_py()])
    ours = {**made.environment, **SETTINGS, "GLOVEBOX_RUNNER": str(socket_path), "DOCKER_HOST": NO_ENGINE}
    command = replace(made, environment=ours)
    run = ["run", "--agent", "replay:ideas", "--experiments", "1"]
    runner, controller = start_runner(command, socket_path), None
    try:
        other = command("doctor", "--json", GLOVEBOX_BUDGET__WALL_SECONDS="20").out
        assert '"engine",\n    "ok": true' in other
        command("try", str(tmp_path / "baseline.py"), "--budget", "20").refused(2, "different settings")
        command("prepare").refused(2, "make prepare")
        controller = command.start(*run)
        wait_until_training(controller, command.home, 0)
        runner.kill()
        runner.communicate()
        runner = start_runner(command, socket_path)
        said, _ = controller.communicate(timeout=240)
        assert controller.returncode == 0, said
        [row] = command("log", "--json").json()
        assert (row["attempt"], row["verdict"]) == (1, "keep")
        log = (command.home / "runs" / "000000" / "run.log").read_text()
        assert log.count("training\n") == 1 and "num_steps:" in log
        started = [r.data for r in read_records(command.home) if r.data.event == "training_started"]
        assert command("verify", "--json").json() == {"problems": []}
        assert command("reap").out == "" and no_leftovers(command.home)
        assert not any((command.home / "runner" / "train").iterdir())
    finally:
        told = end(runner, controller, command.home)
    assert runner.returncode == 0 and "Traceback" not in told
    assert len(started) == 1


def end(runner: subprocess.Popen[str], controller: subprocess.Popen[str] | None, home: Path) -> str:
    """Both of them, and what they leave in the engine; what the runner printed."""
    if controller is not None:
        controller.kill()
        controller.communicate()
    runner.terminate()
    told = runner.communicate(timeout=20)[0]
    remove_leftovers(home)
    return told


def test_two_slots_go_on_after_a_kill_and_each_keeps_its_cpu(
    tmp_path: Path, socket_path: Path, with_data: Callable[[Path], None], engine: None
) -> None:
    if len(cpus := sorted(os.sched_getaffinity(0))) < 2:
        pytest.skip("two slots of a CPU each need two CPUs")
    ideas = [train_py(seconds=25, lr=lr) for lr in (0.03, 0.02)]
    made, _ = make_effort(tmp_path, with_data, train_py(), ideas)
    slots = json.dumps([{"cpus": str(cpu)} for cpu in cpus[:2]])
    ours = {**made.environment, **SETTINGS, "GLOVEBOX_SLOTS": slots, "GLOVEBOX_RUNNER": str(socket_path)}
    command = replace(made, environment={**ours, "DOCKER_HOST": NO_ENGINE})
    run = ["run", "--agent", "replay:ideas", "--experiments", "3"]
    runner, controller = start_runner(command, socket_path), None
    try:
        [device] = [row for row in command("doctor", "--json").json() if row["check"] == "device"]
        assert device["detail"].startswith(f"2 slots (slot 0: CPUs {cpus[0]}; slot 1: CPUs {cpus[1]}), each")
        controller = command.start(*run)
        for number in (1, 2):
            wait_until_training(controller, command.home, number)
        controller.kill()
        controller.communicate()
        controller = None
        bound = {trainer["CpusetCpus"] for trainer in _trainers(command.home)}
        assert bound == {str(cpu) for cpu in cpus[:2]}, "both still train, each on its CPU"
        said = command(*run, timeout=240)
        assert said.status == 0, said
        assert command("verify", "--json").json() == {"problems": []}
        assert command("reap").out == "" and no_leftovers(command.home)
    finally:
        told = end(runner, controller, command.home)
    assert runner.returncode == 0 and "Traceback" not in told
    rows = command("log", "--json").json()
    assert {(row["slot"], row["attempt"]) for row in rows[1:]} == {(0, 1), (1, 1)}, "both were adopted"
    assert all(row["val_bpb"] is not None for row in rows)


def _trainers(home: Path) -> list[dict[str, Any]]:
    """The engine's settings of the trainers that run in a home."""
    names = ContainerNames(home.resolve(), "")
    with closing(engine_of_the_machine()) as client:
        ours = {"label": [f"{LABEL_HOME}={names.home_id}", f"{LABEL_DOMAIN}={Domain.TRAINER}"]}
        found = client.containers(filters=ours)
        return [client.inspect_container(one["Id"])["HostConfig"] for one in found]
