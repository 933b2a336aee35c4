"""A controller that cannot reach the engine, a runner that can, and a runner that is killed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.store.journal import read_records
from tests.cli.test_end_to_end import make_effort, train_py, wait_until_training
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
        if controller is not None:
            controller.kill()
            controller.communicate()
        runner.terminate()
        told = runner.communicate(timeout=20)[0]
        remove_leftovers(command.home)
    assert runner.returncode == 0 and "Traceback" not in told
    assert len(started) == 1
