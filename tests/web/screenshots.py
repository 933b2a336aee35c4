"""`python -m tests.web.screenshots [FOLDER]`: pictures of the main views of a made-up effort."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.web.browser import DESK, PHONE, Scheme, chromium, drawn, opened
from tests.web.fabricate import fabricate
from tests.web.served import served

FOLDER = Path(__file__).parents[2] / "docs" / "web"
EXPERIMENTS = 1200
VIEWS: tuple[tuple[str, str, tuple[int, int], Scheme], ...] = (
    ("now", "/", DESK, "light"),
    ("now-phone", "/", PHONE, "dark"),
    ("progress", "/progress", DESK, "light"),
    ("experiment", "/experiments/970", DESK, "dark"),
    ("compare", "/compare?n=970&n=1067&n=1100", DESK, "light"),
)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, chromium() as browser:
        effort = fabricate(Path(home), EXPERIMENTS)
        with served(Path(home)) as site:
            site.caught_up(effort.writer.head)
            for name, path, size, scheme in VIEWS:
                with opened(browser, site.url, size, scheme) as (page, _):
                    page.goto(site.url.rstrip("/") + path)
                    drawn(page)
                    page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    main()
