"""Steering as a person does it, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from controller.store import pause, requests
from tests.web.browser import (
    CHROMIUM,
    DESK,
    PHONE,
    Scheme,
    Watch,
    is_accessible,
    is_well_laid_out,
    opened,
)
from tests.web.fabricate import Effort, fabricate
from tests.web.served import SECRET, Served, served

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason="there is no Chromium: apt-get install chromium"
)
LOOKS: tuple[tuple[tuple[int, int], Scheme, tuple[str, ...]], ...] = (
    (DESK, "light", ("", "steer/limit", "steer/rollback?experiment=2")),
    (PHONE, "dark", ("", "steer/queue", "steer/kill?experiment=10")),
)


@pytest.fixture(scope="module")
def effort(tmp_path_factory: pytest.TempPathFactory) -> Effort:
    return fabricate(tmp_path_factory.mktemp("steered"), 10)


@pytest.fixture(scope="module")
def site(effort: Effort) -> Iterator[Served]:
    with served(effort.home) as found:
        found.caught_up(effort.writer.head)
        yield found


@pytest.fixture(scope="module")
def opened_once(browser: Browser, site: Served) -> Iterator[tuple[Page, Watch]]:
    with opened(browser, site.url) as (page, watch):
        sign_in(page, site)
        yield page, watch


@pytest.fixture
def signed_in(opened_once: tuple[Page, Watch], site: Served) -> Iterator[tuple[Page, Watch]]:
    shutil.rmtree(site.home / requests.FOLDER, ignore_errors=True)
    page, watch = opened_once
    page.goto(site.url)
    yield page, watch
    assert watch.wrong == []


def sign_in(page: Page, site: Served) -> None:
    page.goto(site.url)
    page.get_by_role("link", name="Sign in to steer").click()
    page.get_by_label("Token").fill(SECRET)
    page.get_by_label("Token").press("Enter")
    page.get_by_role("link", name="Instruct the agent").wait_for()


def asks(page: Page, link: str, button: str) -> None:
    """By keyboard alone."""
    page.get_by_role("link", name=link).focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name=button).wait_for()


def test_an_instruction_is_shown_until_it_is_answered(
    signed_in: tuple[Page, Watch], site: Served, effort: Effort
) -> None:
    page, _ = signed_in
    asks(page, "Instruct the agent", "Instruct")
    page.get_by_label("Instruction").fill("Try larger batches.")
    page.get_by_label("Reason").fill("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    expect(page.locator("#steering")).to_contain_text("instructs the agent: Try larger batches. (<img src=x")
    expect(page.get_by_text("Instruct the agent: asked for.")).to_be_visible()
    (request,) = requests.read(site.home)
    effort.writer.tell(request.granted(request.text))
    effort.writer.write()
    requests.remove(site.home, request.id)
    expect(page.locator("#steering")).to_contain_text("for the next question, by web, 127.0.0.1")
    expect(page.locator("#steering")).not_to_contain_text("not answered yet")
    assert page.locator("main img").count() == 0


def test_a_kill_takes_a_second_step(signed_in: tuple[Page, Watch], site: Served, effort: Effort) -> None:
    page, _ = signed_in
    asks(page, f"Kill #{effort.number}", "Kill")
    page.get_by_role("button", name="Kill").click()  # the browser asks for the tick
    assert "/steer/kill" in page.url and requests.read(site.home) == ()
    page.get_by_label("I mean it").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/experiments/{effort.number}?asked=kill")
    (request,) = requests.read(site.home)
    assert (request.verb, request.target) == ("kill", effort.number)


def test_a_slot_is_paused_and_all_are(signed_in: tuple[Page, Watch], site: Served) -> None:
    page, _ = signed_in
    asks(page, "Pause slot 0", "Pause")
    expect(page.get_by_label("Slot")).to_have_value("0")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#steering")).to_contain_text("pauses slot 0")
    (request,) = requests.read(site.home)
    assert (request.verb, request.slot) == ("hold", 0)
    page.locator("main").get_by_role("link", name="Pause", exact=True).click()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#waits")).to_contain_text("asked for by web, 127.0.0.1")
    assert pause.read(site.home).paused


def test_a_file_is_read_into_the_form_and_a_refusal_loses_nothing(
    signed_in: tuple[Page, Watch], site: Served, tmp_path: Path
) -> None:
    page, watch = signed_in
    program = "\nif 1:\n\tbuild_model = 1  # \u00e9\n"
    (tmp_path / "mine.py").write_text(program + "def", encoding="utf-8")
    asks(page, "Queue a train.py", "Queue")
    page.get_by_label("From a file").set_input_files(tmp_path / "mine.py")
    expect(page.get_by_label("train.py")).to_have_value(program + "def")
    page.get_by_label("Description").fill("mine")
    page.get_by_role("button", name="Queue").click()
    expect(page.get_by_role("alert")).to_contain_text("It cannot be run")
    watch.wrong.clear()  # the browser notes the refusal
    is_accessible(page)
    assert page.get_by_label("train.py").input_value() == program + "def"
    page.get_by_label("train.py").fill(program)
    page.get_by_role("button", name="Queue").click()
    expect(page.locator("#steering")).to_contain_text("queues mine")
    assert requests.read(site.home)[0].train_py == program


def test_an_update_leaves_what_is_typed(signed_in: tuple[Page, Watch], effort: Effort) -> None:
    page, _ = signed_in
    asks(page, "Instruct the agent", "Instruct")
    expect(page.locator("#connection")).to_have_text("Live")
    page.get_by_label("Instruction").fill("half a sen")
    version = page.locator("body").get_attribute("data-version") or ""
    effort.finish()
    effort.begin_next()
    effort.writer.write()
    expect(page.locator("body")).not_to_have_attribute("data-version", version)
    page.keyboard.type("tence")
    expect(page.get_by_label("Instruction")).to_have_value("half a sentence")


@pytest.mark.parametrize(("size", "scheme", "paths"), LOOKS)
def test_every_form_can_be_used_by_all(
    browser: Browser, site: Served, size: tuple[int, int], scheme: Scheme, paths: tuple[str, ...]
) -> None:
    with opened(browser, site.url, size, scheme) as (page, watch):
        sign_in(page, site)
        for path in paths:
            page.goto(site.url + path)
            is_well_laid_out(page)
            is_accessible(page)
        assert watch.wrong == []
