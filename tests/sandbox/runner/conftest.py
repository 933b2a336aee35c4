"""Runners in a thread of the test, on a socket of their own."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.app.device import Device
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.templates import Templates
from controller.core.hardware.gpu_probe import Gpu
from controller.core.scoring.config import JudgeConfig
from controller.ports import Sandbox
from controller.sandbox.runner.client import RunnerSandbox
from controller.sandbox.runner.server import Runner
from controller.sandbox.runner.specs import SpecBuilder
from controller.system.clock import SystemClock

BUDGET = 30.0
GPU = Gpu(
    name="NVIDIA L4",
    driver="580.65.06",
    cuda="13.0",
    capability="8.9",
    total_bytes=24_000_000_000,
    free_bytes=23_000_000_000,
    devices=1,
    bf16=True,
)
DEVICE = Device("gpu", SealedConfig(seccomp="{}", gpu=("1",)), GPU, ("2 GPUs of a kind",))


def make_templates(home: Path, config: SealedConfig, harness: Path) -> Templates:
    return Templates(
        (config,),
        home,
        Files(harness, home / "data", home / "runner" / "train"),
        JudgeConfig(),
        BUDGET,
        120.0,
    )


@contextmanager
def serving(sandbox: Sandbox, templates: Templates, path: Path) -> Iterator[RunnerSandbox]:
    """A client of a runner that serves in a thread. What the runner itself raises fails the test."""
    stop, ended = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            Runner(sandbox, SpecBuilder(templates), [DEVICE.told()]).serve(path, stop)
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    client = RunnerSandbox(path, SystemClock())
    try:
        client.ping()
        yield client
    finally:
        stop.set()
        thread.join(10)
    assert ended.is_set() and not failures


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Short enough for a socket's address, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="glovebox-"))
    yield folder / "runner.sock"
    shutil.rmtree(folder)
