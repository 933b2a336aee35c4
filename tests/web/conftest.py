"""Homes that are made once and served to every test that only looks at them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.glovebox import glovebox
from tests.web.browser import chromium
from tests.web.fabricate import Effort, fabricate
from tests.web.served import Served, served

__all__ = ["glovebox"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one file: while it is open, no second one can be in the same thread."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Effort:
    return fabricate(tmp_path_factory.mktemp("short"), 10)


@pytest.fixture(scope="session")
def small(short: Effort) -> Iterator[Served]:
    """Ten experiments, and one that trains."""
    with served(short.home) as site:
        site.caught_up(short.writer.head)
        yield site
