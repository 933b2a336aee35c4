"""One arena and one ground for all attacks of a test session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.core.errors import NotReady
from tests.attacks.arena import Arena
from tests.attacks.ground import Ground, grounds


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """Skips where there is no engine."""
    try:
        return Arena(tmp_path_factory.mktemp("arena") / "home")
    except NotReady as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Skips where there is no engine."""
    try:
        with grounds(tmp_path_factory.mktemp("grounds"), 1) as [made]:
            yield made
    except NotReady as error:
        pytest.skip(str(error))
