from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loop.effort import Effort


@pytest.fixture
def efforts(tmp_path: Path) -> Iterator[list[Effort]]:
    made: list[Effort] = []
    yield made
    for effort in made:
        effort.close()
