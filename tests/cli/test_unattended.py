"""What the real command does about trouble that is not an experiment's: it waits, says so, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controller.app.home import read_standing
from controller.observers import heartbeat
from tests.support.bench import engine as client_of_engine
from tests.support.glovebox import PROJECT, Glovebox, remove_leftovers

pytestmark = pytest.mark.engine

ROOM, NEEDED = 64 * 2**40, 16 * 2**40
"""Bytes that the home claims to have, and that a run is said to need."""


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that says it has more room than the engine's disk."""
    folder = tmp_path / "roomy"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def until(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not done():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_start_that_failed_is_made_again_and_the_engines_disk_is_waited_for(
    roomy: Path, prepared: Path
) -> None:
    with closing(client_of_engine()) as client:
        root = client.info()["DockerRootDir"]
    if not os.path.isdir(root) or shutil.disk_usage(root).free >= NEEDED:
        pytest.skip("the engine's disk is elsewhere, or larger than any")
    settings = {"GLOVEBOX_MIN_FREE_BYTES": str(NEEDED), "GLOVEBOX_RETRY__FIRST_SECONDS": "0.2"}
    settings["GLOVEBOX_NOTIFY__COMMAND"] = f"tee --append {roomy / 'heard'}"
    command = Glovebox(roomy / "home", roomy, settings)
    shutil.copytree(prepared / "data", command.home / "data")
    (command.home / "harness").write_text("in the way")

    def doing() -> str:
        sign = heartbeat.read(command.home)
        return sign.doing if sign else ""

    process = command.start("run", "--device", "cpu", "--agent", "tuner")
    try:
        until(process, lambda: doing().startswith("waiting to start again"))
        assert "harness" in doing() and command("health").status == 0
        (command.home / "harness").unlink()
        until(process, lambda: doing().startswith("waiting for room on the disk"))
        pause = read_standing(command.home)[0].pause
        assert pause is not None and pause.event.why == "disk" and f"{root} has" in pause.event.reason
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in said, said
        heard = [json.loads(line) for line in (roomy / "heard").read_text().splitlines()]
        assert [(told["event"], root in told["reason"]) for told in heard] == [
            ("stall", True),
            ("stop", False),
        ]
    finally:
        process.kill()
        process.communicate()
        remove_leftovers(command.home)


def test_a_machine_that_lacks_something_ends_it_after_three_and_trains_no_more(
    prepared: Path, with_data: Callable[[Path], None], on_engine: Glovebox
) -> None:
    ours = (PROJECT / "harness" / "train.py").read_text(encoding="utf-8")
    lacking = ours.replace("\nimport torch\n", "\nimport no_such_module\nimport torch\n", 1)
    (on_engine.folder / "train.py").write_text(lacking, encoding="utf-8")
    with_data(on_engine.home)
    run = ("run", "--device", "cpu", "--agent", "tuner", "--budget", "30", "--experiments", "7")
    train = str(on_engine.folder / "train.py")

    def finished() -> int:
        return len(read_standing(on_engine.home)[0].finished)

    for trained in (3, 3):
        said = on_engine(*run, GLOVEBOX_TRAIN=train)
        assert said.status == 3 and "lacks a module" in said.err and finished() == trained, said
    assert "no_such_module" in on_engine("status", "--json").json()["baseline_failed"]
    assert on_engine("continue").status == 0
    assert on_engine(*run, GLOVEBOX_TRAIN=train).status == 3 and finished() == 6
    assert on_engine(*run, GLOVEBOX_TRAIN=train).status == 3 and finished() == 6
