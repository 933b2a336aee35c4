"""A real browser: Chromium of the distribution, driven by Playwright."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
DESK, PHONE = (1280, 900), (390, 844)
Scheme = Literal["light", "dark"]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Without its sandbox, because tests run as root in a container; it only sees pages of ours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """What a page does that no page of ours should do."""

    def __init__(self, page: Page, url: str) -> None:
        self.wrong: list[str] = []
        self._url = url
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        page.on("dialog", lambda dialog: self._asked(dialog.message))
        page.on("request", self._requested)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type} {message.text}")

    def _asked(self, message: str) -> None:
        self.wrong.append(f"dialog {message}")

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(self._url):
            self.wrong.append(f"request to {request.url}")


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, size: tuple[int, int] = DESK, scheme: Scheme = "light"
) -> Iterator[tuple[Page, Watch]]:
    """A page in a context of its own: no cookie, no cache."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 600
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    yield page, Watch(page, url)
    context.close()


def drawn(page: Page) -> None:
    """Wait until every chart of the page has its numbers and is painted."""
    expect(page.locator("[data-chart] .plot:not([data-drawn])")).to_have_count(0)


def is_well_laid_out(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url


def is_accessible(page: Page) -> None:
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert serious == [], json.dumps(serious, indent=1)[:3000]
