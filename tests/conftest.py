from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.clock import SystemClock
from controller.core.model import NotReady
from controller.core.sandbox_config import SandboxConfig
from controller.sandbox import DockerSandbox
from controller.seccomp import sealed
from tests.loop.effort import Effort


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
