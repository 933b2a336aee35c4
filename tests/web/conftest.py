"""Homes that are made once and served to every test that only looks at them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.glovebox import glovebox
from tests.web.fabricate import Effort, fabricate
from tests.web.served import Served, served

__all__ = ["glovebox"]


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Effort:
    return fabricate(tmp_path_factory.mktemp("short"), 10)


@pytest.fixture(scope="session")
def small(short: Effort) -> Iterator[Served]:
    """Ten experiments, and one that trains."""
    with served(short.home) as site:
        site.caught_up(short.writer.head)
        yield site
