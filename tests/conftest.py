"""What every test starts from, wherever the suite is started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.core.containers.config import SandboxConfig
from controller.core.errors import NotReady
from controller.sandbox.engine import connection as engines
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from controller.sandbox.inputs import sealed
from controller.system.clock import SystemClock
from tests.loop.effort import Effort
from tests.support.forked import PRELOADED

_TELL_A_PROGRAM = (
    "GLOVEBOX_",
    "ANTHROPIC_",
    "COLUMNS",
    "FORCE_COLOR",
    "LC_",
    "NO_COLOR",
    "PYTHONWARNINGS",
    "TZ",
)
_OF_THE_SUITE = (
    "GLOVEBOX_CA_BUNDLE",
    "GLOVEBOX_FUZZ_EXAMPLES",
    "GLOVEBOX_TEST_RUNTIMES",
    "GLOVEBOX_UPSTREAM",
    "GLOVEBOX_WHEELS",
)
"""What somebody tells the tests, or the set-up scripts that some of them run, on purpose."""


def pytest_configure() -> None:
    """Nothing depends on what this process inherited.

    What is ignored in a job in the background, or under nohup, would be ignored in all its children. Other
    users, those of containers above all, read the files that tests write. And a child that is not told of
    the user's Docker context would look for another engine.
    """
    os.umask(0o022)
    for name in sorted(os.environ):
        if name.startswith(_TELL_A_PROGRAM) and name not in _OF_THE_SUITE:
            del os.environ[name]
    multiprocessing.set_forkserver_preload(PRELOADED)
    os.environ["LANG"] = "C.UTF-8"  # for children; `make test` starts this process so
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
