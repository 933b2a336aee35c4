"""One arena for all attacks of a test session."""

from __future__ import annotations

import pytest

from controller.core.model import NotReady
from tests.attacks.arena import Arena


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """Skips where there is no engine."""
    try:
        return Arena(tmp_path_factory.mktemp("arena") / "home")
    except NotReady as error:
        pytest.skip(str(error))
