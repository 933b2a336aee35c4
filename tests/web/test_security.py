"""Who may read, and what a browser is allowed to do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.core.errors import UserError
from controller.web import token as web_token
from controller.web.security import HEADERS, host_of, is_foreign, is_loopback
from controller.web.token import NAME, Token, ensure
from tests.web.fabricate import Effort
from tests.web.served import PAGE, SECRET, Served, served


@pytest.mark.parametrize(
    ("authority", "host"),
    [("localhost:8700", "localhost"), ("[::1]:8700", "::1"), ("127.0.0.1", "127.0.0.1"), ("", ""), ("[", "")],
)
def test_the_host_of_an_authority(authority: str, host: str) -> None:
    assert host_of(authority) == host


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example", False),
        ("192.168.0.7", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_which_names_can_only_mean_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) is local


LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("method", "headers", "foreign"),
    [
        ("GET", {}, False),
        ("GET", {"sec-fetch-site": "none"}, False),
        ("POST", {"sec-fetch-site": "same-origin", "origin": "null"}, False),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, True),
        ("GET", {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, True),
        ("GET", LINK, False),
        ("POST", LINK, True),
        ("GET", LINK | {"sec-fetch-dest": "iframe"}, True),
        ("POST", {"origin": "http://localhost:8700", "host": "localhost:8700"}, False),
        ("POST", {"origin": "http://localhost:3000", "host": "localhost:8700"}, True),
        ("POST", {"origin": "null", "host": "localhost:8700"}, True),
        ("GET", {"origin": "http://evil.example", "host": "localhost:8700"}, True),
        ("GET", {"origin": "http://[", "host": "localhost:8700"}, True),
    ],
)
def test_what_a_page_of_another_site_sends(method: str, headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(method, headers) is foreign


def test_a_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    assert len(first) >= 40 and (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert ensure(tmp_path) == first != ensure(tmp_path.parent)


def test_a_token_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in ("", "short", "é" * 40):
        (tmp_path / NAME).write_text(content, encoding="utf-8")
        (tmp_path / NAME).chmod(0o600)
        with pytest.raises(UserError):
            ensure(tmp_path)
    (tmp_path / NAME).write_text(SECRET, encoding="ascii")
    (tmp_path / NAME).chmod(0o644)
    with pytest.raises(UserError, match="can be read by others"):
        ensure(tmp_path)


def test_a_link_in_the_place_of_the_token_is_not_written_through(tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", tmp_path / web_token.NAME)
    with pytest.raises(UserError):
        ensure(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture(scope="module")
def guarded(short: Effort) -> Iterator[Served]:
    """Served as beyond loopback."""
    with served(short.home, loopback=False) as site:
        site.caught_up(short.writer.head)
        yield site


PATHS = (
    "/",
    "/progress",
    "/experiments",
    "/experiments/1",
    "/record",
    "/metrics",
    "/events",
    "/data/progress.json",
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_read_without_the_token(guarded: Served, path: str) -> None:
    plain = guarded.get(path, {})
    assert plain.status == 401 and plain.headers["www-authenticate"].startswith("Bearer")
    page = guarded.get(path)
    assert (page.status, page.headers["location"]) == (303, "/sign-in")
    for wrong in (
        {"Authorization": "Bearer no"},
        {"Cookie": f"{Token(SECRET).cookie}=no"},
        {"Cookie": "a=\x01"},
    ):
        assert guarded.get(path, wrong).status == 401


def test_what_needs_no_token_tells_nothing_of_the_home(guarded: Served) -> None:
    for path in ("/health", "/sign-in", "/static/style.css"):
        answer = guarded.get(path)
        assert answer.status == 200 and "nov28" not in answer.text
    for path in (
        "/static/none",
        "/static/../",
        "/static/%2e%2e/server.py",
        "/sign-in/",
        "/sign-inn",
        "/healthy",
    ):
        for method in ("GET", "PUT", "HEAD"):
            answer = guarded.get(path, PAGE, method)
            assert (
                answer.status != 200 and "nov28" not in answer.text and str(guarded.home) not in answer.text
            )
    assert "nov28" not in guarded.get("/sign-in", PAGE, "PUT").text


def test_the_token_may_stand_in_a_header(guarded: Served) -> None:
    assert guarded.get("/metrics", {"Authorization": f"Bearer {SECRET}"}).status == 200


def test_signing_in_gives_a_cookie_that_scripts_and_other_sites_do_not_get(guarded: Served) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    wrong = guarded.get("/sign-in", form, "POST", "token=wrong")
    assert wrong.status == 403 and "set-cookie" not in wrong.headers
    right = guarded.get("/sign-in", form, "POST", f"token={SECRET}")
    cookie = right.headers["set-cookie"]
    assert right.status == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert SECRET not in cookie
    assert guarded.get("/", {"Cookie": cookie.split(";")[0]}).status == 200


def test_behind_tls_the_cookie_stays_behind_tls(guarded: Served) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Host": "box.example"}
    host = form | {"Origin": "https://box.example"}
    assert "Secure" in guarded.get("/sign-in", host, "POST", f"token={SECRET}").headers["set-cookie"]
    host = form | {"Origin": "http://box.example"}
    assert "Secure" not in guarded.get("/sign-in", host, "POST", f"token={SECRET}").headers["set-cookie"]


def test_a_form_of_another_site_signs_nobody_in(guarded: Served) -> None:
    for told in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert guarded.get("/sign-in", told, "POST", f"token={SECRET}").status == 403


def test_a_form_without_an_end_is_not_read_to_it(guarded: Served) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert guarded.get("/sign-in", form, "POST", "token=" + "a" * 100_000).status == 413


@pytest.mark.parametrize(
    "path", [*PATHS[:-2], "/experiments/999", "/nothing", "/sign-in", "/static/style.css"]
)
def test_every_answer_says_what_a_browser_may_do_with_it(small: Served, path: str) -> None:
    answer = small.get(path)
    for name in set(HEADERS) - {"cache-control", "referrer-policy"}:
        assert answer.headers[name] == HEADERS[name]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    cached = "no-cache" if path.startswith("/static") else "no-store"
    assert answer.headers["cache-control"] == cached
    referrer = "same-origin" if path == "/sign-in" else "no-referrer"
    assert answer.headers["referrer-policy"] == referrer


def test_on_loopback_a_name_of_somebody_else_is_refused(small: Served) -> None:
    for host in ("evil.example", "evil.example:8700", "localhost.evil.example", ""):
        answer = small.get("/", PAGE | {"Host": host})
        assert answer.status in (400, 403) and "nov28" not in answer.text
    for host in ("localhost:9000", "[::1]:1", "127.0.0.1"):
        assert small.get("/", PAGE | {"Host": host}).status == 200


def test_a_page_of_another_site_reads_nothing(small: Served) -> None:
    for path in PATHS:
        answer = small.get(path, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"})
        assert answer.status == 403 and "nov28" not in answer.text
