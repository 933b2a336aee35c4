"""What every test starts from, wherever the suite is started."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import engine as engines
from controller.clock import SystemClock
from controller.core.model import NotReady
from controller.core.sandbox_config import SandboxConfig
from controller.sandbox import DockerSandbox
from controller.seccomp import sealed
from tests.loop.effort import Effort


def pytest_configure() -> None:
    """What is ignored in a job in the background, or under nohup, would be ignored in all its children; and
    a child that is not told of the user's Docker context would look for another engine.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with contextlib.suppress(engines.NoAddress):  # then tests that need an engine skip, and say so
        if engines.address().named_by.startswith("Docker context"):
            os.environ["DOCKER_HOST"] = engines.address().url


@pytest.fixture
def efforts(tmp_path: Path) -> Iterator[list[Effort]]:
    made: list[Effort] = []
    yield made
    for effort in made:
        effort.close()


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips where there is no engine with the sandbox image."""
    try:
        sandbox = DockerSandbox(sealed(SandboxConfig()), Path("home"), SystemClock())
        sandbox.describe()
    except NotReady as error:
        pytest.skip(str(error))
    sandbox.close()
