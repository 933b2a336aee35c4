"""What a person sees and does, in a real browser, at ten experiments and at ten thousand."""

from __future__ import annotations

import math
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from controller.store.journal import NAME
from tests.support.glovebox import PROJECT
from tests.support.hostile import TEXTS
from tests.web.browser import (
    CHROMIUM,
    DESK,
    PHONE,
    Scheme,
    Watch,
    drawn,
    is_accessible,
    is_well_laid_out,
    opened,
)
from tests.web.fabricate import REPLY, Effort, fabricate, reports, sha
from tests.web.served import SECRET, Served, served, until, write_hostile

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason="there is no Chromium: apt-get install chromium"
)

MANY = 10_000
FIRST_PAINT, UPDATE = 0.3, 1.0
"""Seconds."""
TRIES = 6
"""Another test may have both CPUs while a page is painted."""
LOOKS: tuple[tuple[tuple[int, int], Scheme], ...] = ((DESK, "light"), (PHONE, "dark"))
HOSTILE_VIEWS = ("", "progress", "experiments", "experiments/1", "experiments/5", "compare?n=1&n=4", "record")


@dataclass(frozen=True)
class Large:
    """Ten thousand experiments, served by the real command in a process of its own.

    It reads them while the first tests look at the small one.
    """

    effort: Effort
    url: str


@pytest.fixture(scope="session", autouse=True)
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Large]:
    home = tmp_path_factory.mktemp("large")
    effort = fabricate(home, MANY)
    command = [sys.executable, "-m", "controller", "web", "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        yield Large(effort, url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@contextmanager
def at(
    browser: Browser, url: str, path: str, size: tuple[int, int] = DESK, scheme: Scheme = "light"
) -> Iterator[Page]:
    """A view, drawn; nothing may have gone wrong on it when the block ends."""
    with opened(browser, url, size, scheme) as (page, watch):
        page.goto(url + path)
        drawn(page)
        yield page
        assert watch.wrong == []


def is_read(page: Page) -> None:
    """Wait until the whole journal is."""
    expect(page.locator("#news")).to_have_text("", timeout=60_000)


def views(experiments: int) -> tuple[str, ...]:
    kept = 97 if experiments > 100 else 2
    return (
        "",
        "progress",
        "experiments",
        f"experiments/{kept}",
        f"experiments/{kept}/texts/{sha(REPLY)}",
        f"compare?n={kept}&n={kept + 1}&n={experiments}",
        "record",
        "experiments/999999",
    )


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_every_view_of_ten_experiments(
    browser: Browser, small: Served, size: tuple[int, int], scheme: Scheme
) -> None:
    with opened(browser, small.url, size, scheme) as (page, watch):
        for path in views(10):
            page.goto(small.url + path)
            drawn(page)
            is_well_laid_out(page)
            is_accessible(page)
        assert [wrong for wrong in watch.wrong if "404" not in wrong] == []


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_every_view_of_ten_thousand(
    browser: Browser, large: Large, size: tuple[int, int], scheme: Scheme
) -> None:
    with at(browser, large.url, "progress", size, scheme) as page:
        is_read(page)
        is_accessible(page)
        for path in views(MANY)[:-1]:
            page.goto(large.url + path)
            drawn(page)
            is_well_laid_out(page)


def test_the_first_paint_comes_at_once(browser: Browser, large: Large) -> None:
    with at(browser, large.url, "") as page:
        is_read(page)
    for path in ("", "progress", "experiments", "experiments/97"):
        seconds = math.inf
        for _ in range(TRIES):
            seconds = min(seconds, first_paint(browser, large.url, path))
            if seconds < FIRST_PAINT:
                break
        print(f"first paint of /{path}: {1000 * seconds:.0f} ms")
        assert seconds < FIRST_PAINT, path


def first_paint(browser: Browser, url: str, path: str) -> float:
    """Of a first visit, with nothing in the cache; that the browser makes a process for it is not counted."""
    with opened(browser, url) as (page, _):
        page.goto(url + "health")
        page.goto(url + path)
        script = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
        until(lambda: page.evaluate(script) is not None, 10)
        return float(page.evaluate(script)) / 1000


def test_an_update_comes_within_a_second_of_its_event(browser: Browser, large: Large) -> None:
    effort = large.effort
    with at(browser, large.url, "") as page, at(browser, large.url, "experiments") as table:
        is_read(page)
        expect(page.locator("#connection")).to_have_text("Live")
        expect(table.locator("#connection")).to_have_text("Live")
        took = []
        for _ in range(5):
            number = effort.number
            effort.finish()
            effort.begin_next()
            effort.think()
            effort.writer.write()
            began = time.monotonic()
            page.locator(f"#latest a[href='/experiments/{number}']").wait_for()
            took.append(time.monotonic() - began)
            table.locator(f"#open-{number + 1}").wait_for()
        print(f"updates after {', '.join(f'{1000 * seconds:.0f} ms' for seconds in took)}")
        assert statistics.median(took) < UPDATE


def test_a_running_experiment_shows_what_it_prints(browser: Browser, short: Effort, tmp_path: Path) -> None:
    effort = fabricate(tmp_path / "home", 3)
    with served(effort.home) as site, at(browser, site.url, "") as page:
        expect(page.locator("#slots .log")).to_contain_text("step=294")
        before = page.locator("#slots figure").evaluate("figure => figure.plot.points.length")
        with (effort.home / "runs" / "000003" / "run.log").open("a", encoding="utf-8") as log:
            log.writelines(reports(200.0, begin=100.0))
        expect(page.locator("#slots .log")).to_contain_text("step=594")
        count = "figure => figure.plot.points.length"
        until(lambda: page.locator("#slots figure").evaluate(count) > before, 10)
        left = page.locator(".left").inner_text()
        assert re.fullmatch(r"\d:\d\d", left)
        expect(page.locator(".left")).not_to_have_text(left)


def test_the_chart_zooms_by_wheel_mouse_buttons_and_keys(browser: Browser, large: Large) -> None:
    with at(browser, large.url, "progress") as page:
        is_read(page)
        plot, whole = page.locator("#progress-chart .plot"), f"-0.5 {large.effort.number + 0.5}"
        expect(plot).to_have_attribute("data-drawn", whole)
        box = plot.bounding_box()
        assert box is not None
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 100, middle[1])
        page.mouse.up()
        expect(plot).not_to_have_attribute("data-drawn", whole)
        page.get_by_role("button", name="Reset").first.click()
        expect(plot).to_have_attribute("data-drawn", whole)
        plot.focus()
        page.mouse.move(*middle)
        page.mouse.wheel(0, -100)
        expect(plot).not_to_have_attribute("data-drawn", whole)
        page.keyboard.press("0")
        expect(plot).to_have_attribute("data-drawn", whole)
        page.keyboard.press("+")
        expect(plot).not_to_have_attribute("data-drawn", whole)
        page.keyboard.press("Home")
        expect(page.locator("#progress-chart .readout")).to_contain_text("#0 keep 1.4")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#progress-chart .readout")).to_contain_text("#2 keep")
        page.keyboard.press("Enter")
        page.wait_for_url("**/experiments/2")


def test_a_click_on_a_point_opens_it(browser: Browser, small: Served) -> None:
    with at(browser, small.url, "progress") as page:
        place = page.locator("#progress-chart").evaluate(
            """figure => {
              const plot = figure.plot, point = plot.points.find((one) => one.x === 6);
              const { x, y } = plot.frame.getBoundingClientRect();
              return [x + plot.across(6), y + plot.height(point)];
            }"""
        )
        page.mouse.click(*place)
        page.wait_for_url("**/experiments/6")


def test_the_chart_of_ten_thousand_is_smooth(browser: Browser, large: Large) -> None:
    with at(browser, large.url, "progress") as page:
        is_read(page)
        milliseconds = page.locator("#progress-chart").evaluate(
            """figure => {
              const began = performance.now();
              for (let turn = 0; turn < 10; turn += 1) figure.plot.paint();
              return (performance.now() - began) / 10;
            }"""
        )
        print(f"the chart is painted in {milliseconds:.0f} ms")
        assert milliseconds < 50


def test_the_table_finds_sorts_and_turns_pages(browser: Browser, large: Large) -> None:
    with at(browser, large.url, "experiments") as page:
        is_read(page)
        page.locator("#page-next").click()
        assert page.url.endswith("?page=2")
        page.get_by_label("Verdict").select_option("keep")
        page.wait_for_url("**verdict=keep**")
        expect(page.locator("tbody tr")).to_have_count(50)
        page.locator("#sort-val_bpb").click()
        scores = page.locator("tbody td:nth-child(3)").all_inner_texts()
        assert scores == sorted(scores)
        page.get_by_label("Text").fill("#97")
        page.get_by_label("Text").press("Enter")
        expect(page.locator("#open-97")).to_have_count(1)
        page.go_back()
        expect(page.locator("tbody tr")).to_have_count(50)


def test_experiments_are_compared_by_keyboard_alone(browser: Browser, small: Served) -> None:
    with at(browser, small.url, "experiments") as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        for number in (9, 7):
            page.locator(f"#pick-{number}").focus()
            page.keyboard.press("Space")
        page.get_by_role("button", name="Compare the marked").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/compare?n=9&n=7")
        expect(page.get_by_role("heading", level=1)).to_have_text("#9 and #7, side by side")


def test_marks_and_focus_outlive_an_update(browser: Browser, tmp_path: Path) -> None:
    effort = fabricate(tmp_path / "home", 3)
    with served(effort.home) as site, at(browser, site.url, "experiments") as page:
        expect(page.locator("#connection")).to_have_text("Live")
        page.locator("#pick-1").check()
        page.locator("#open-2").focus()
        effort.finish()
        effort.begin_next()
        effort.writer.write()
        page.locator("#open-4").wait_for()
        expect(page.locator("#pick-1")).to_be_checked()
        expect(page.locator("#open-2")).to_be_focused()


def test_signing_in(browser: Browser, short: Effort) -> None:
    with served(short.home, loopback=False) as site:
        site.caught_up(short.writer.head)
        with opened(browser, site.url, PHONE) as (page, watch):
            page.goto(site.url + "progress")
            is_accessible(page)
            page.get_by_label("Token").fill("wrong")
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_contain_text("This is not the token")
            watch.wrong.clear()  # the browser notes the refusal
            page.get_by_label("Token").fill(SECRET)
            page.get_by_label("Token").press("Enter")
            expect(page.get_by_role("heading", name="Slots")).to_be_visible()
            expect(page.locator("#connection")).to_have_text("Live")
            assert page.evaluate("document.cookie") == "" and SECRET not in page.url
            assert watch.wrong == []


@pytest.fixture(scope="module")
def spoiled(
    tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> Iterator[tuple[Served, Page, Watch]]:
    home = tmp_path_factory.mktemp("spoiled")
    with served(home) as site, opened(browser, site.url) as (page, watch):
        yield site, page, watch


def together(texts: Iterable[str], limit: int = 180) -> Iterator[str]:
    """Short texts are shown side by side: each would take a second."""
    joined = ""
    for text in sorted(texts, key=len):
        if joined and len(joined) + len(text) > limit:
            yield joined
            joined = ""
        joined += text
    yield joined


@pytest.mark.parametrize("text", [*together(TEXTS.values())], ids=lambda text: f"{len(text)} characters")
def test_text_of_others_does_nothing(spoiled: tuple[Served, Page, Watch], text: str) -> None:
    site, page, watch = spoiled
    site.caught_up(write_hostile(site.home, text))
    for path in HOSTILE_VIEWS:
        page.goto(site.url + path)
        assert page.locator("script").count() == 1, path
        strange = "main :is(img, iframe, object, embed, script, style, link, b, em, table table, [onerror])"
        assert page.locator(strange).count() == 0, path
    assert watch.wrong == []
    assert (site.home / NAME).exists()
