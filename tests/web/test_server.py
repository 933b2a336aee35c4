"""Every address answers, with what the other views say and no more."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from controller.core.state import fold
from controller.store import pause, verified
from controller.store.journal import GENESIS, NAME, read_records
from controller.web.stream import MOST
from tests.support.hostile import TEXTS, unseen
from tests.web.fabricate import REPLY, REQUEST, TRAIN, Effort, fabricate, sha
from tests.web.served import SIGNED_IN, Served, served, until, write_hostile

HOLDOUT = "1.4"
VIEWS = (
    "/",
    "/progress",
    "/experiments",
    "/experiments?verdict=keep&sort=val_bpb&order=asc",
    "/experiments/2",
    "/experiments/10",
    f"/experiments/2/texts/{sha(REPLY)}",
    "/compare?n=2&n=3&n=10",
    "/record",
    "/data/progress.json",
    "/data/losses.json?n=2&n=10",
    "/metrics",
)


@pytest.mark.parametrize("path", VIEWS)
def test_every_view_answers(small: Served, path: str) -> None:
    answer = small.get(path)
    assert answer.status == 200, answer.text
    assert "�" not in answer.text


def test_now_says_what_happens(small: Served) -> None:
    text = small.get("/").text
    assert 'href="/experiments/10"' in text and "left of 5:00" in text
    assert "step   294 | loss" in text and "proposal 11" in text
    assert "1905 MHz (at least 1830)" in text and "0.4 GiB used by others" in text
    assert "A controller is at work." in text


def test_an_experiment_tells_its_story_in_order(small: Served) -> None:
    text = small.get("/experiments/2").text
    names = re.findall(r"<h3>([a-z ]+)</h3>", text)
    assert names == [
        "proposal asked",
        "api requested",
        "api answered",
        "proposal made",
        "proposal rehearsed",
        "experiment opened",
        "training started",
        "training finished",
        "scoring started",
        "scoring finished",
        "decided",
        "committed",
    ]
    assert '<span class="add">+CONSTANT_7 = 9' in text and '<span class="delete">-CONSTANT_7 = 7' in text
    assert "NVIDIA H200" in text and "provisional" in text


def test_requests_and_replies_can_be_read_and_other_blobs_cannot(small: Served) -> None:
    assert "Propose\na change." in small.get(f"/experiments/2/texts/{sha(REQUEST)}").text
    assert small.get(f"/experiments/2/texts/{sha(TRAIN)}").status == 404
    assert small.get("/experiments/2/texts/..%2f..%2faudit.jsonl").status == 404


def test_experiments_side_by_side(small: Served) -> None:
    text = small.get("/compare?n=2&n=3").text
    assert text.count("<thead>") == 1 and "What #3 has in place of #2" in text


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/experiments/11", 404, "There is no experiment 11."),
        ("/experiments/99999999999999999999", 404, "There is no experiment"),
        ("/compare?n=1&n=99", 404, "There is no experiment 99."),
        ("/compare", 400, "Name one to 6 experiments"),
        ("/compare?n=x", 400, "n is the number of an experiment."),
        ("/data/losses.json?n=1&n=2&n=3&n=4&n=5&n=6&n=7", 400, "Name one to 6"),
        ("/experiments?sort=holdout", 400, "sort is one of"),
        ("/nothing", 404, "There is no such page."),
    ],
)
def test_bad_input_is_one_sentence(small: Served, path: str, status: int, sentence: str) -> None:
    page, plain = small.get(path), small.get(path, {})
    assert page.status == plain.status == status
    assert sentence in page.text and "<h1>" in page.text
    assert sentence in plain.text and plain.text.count("\n") == 1


def test_a_file_is_sent_once_for_each_content(small: Served) -> None:
    address = re.search(r'href="(/static/style\.css\?\w+)"', small.get("/").text)
    assert address is not None
    first = small.get(address[1], {})
    assert first.headers["content-type"] == "text/css; charset=utf-8" and b"--ink" in first.body
    assert "immutable" in first.headers["cache-control"]
    for path in ("/static/style.css", "/static/style.css?other"):
        assert small.get(path, {}).headers["cache-control"] == "no-cache"
    again = small.get("/static/style.css", {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert small.get("/static/page.js", {}).headers["content-type"].startswith("text/javascript")


def test_another_method_is_refused(small: Served) -> None:
    assert small.get("/", SIGNED_IN, "POST").status == 405


def holdouts(effort: Effort) -> list[str]:
    """The hold-out scores of everything, as they stand in the journal."""
    state = fold(read_records(effort.home))
    return [str(e.score.holdout_bpb) for e in state.experiments if e.score and e.score.holdout_bpb]


@pytest.mark.parametrize("path", [*(path for path in VIEWS if "progress" not in path), "/experiments/1"])
def test_the_holdout_is_in_no_view_of_experiments(small: Served, short: Effort, path: str) -> None:
    text, secret = small.get(path).text, holdouts(short)
    assert len(secret) > 5
    assert [score for score in secret if score in text] == [] and "holdout_bpb" not in text


def test_the_holdout_of_keeps_is_where_the_report_has_it(small: Served) -> None:
    told = json.loads(small.get("/data/progress.json").body)
    assert [row[0] for row in told["both"]] == [0, 2, 6]
    assert "on fresh rows" in small.get("/progress").text


def test_the_points_of_the_chart_are_those_of_the_journal(small: Served, short: Effort) -> None:
    told = json.loads(small.get("/data/progress.json").body)
    state = fold(read_records(short.home))
    assert told["bpb"] == [e.score.val_bpb if e.score else None for e in state.experiments]
    assert [told["kinds"][int(kind)] for kind in told["kind"]][-2:] == ["discard", "open"]
    first = state.experiments[0].score
    assert first is not None and told["frontier"][0] == [0, first.val_bpb]


def test_what_verify_said_last(short: Effort, tmp_path: Path) -> None:
    home = shutil.copytree(short.home, tmp_path / "home")
    with served(home) as site:
        site.caught_up(short.writer.head)
        assert "It was not run yet." in site.get("/record").text
        state = fold(read_records(home))
        verified.write(home, ["the ledger <b>lies</b>"], state, short.writer.now)
        text = site.get("/record").text
        assert "1 contradictions." in text and "the ledger &lt;b&gt;lies&lt;/b&gt;" in text
        assert "glovebox_verified_problems 1.0" in site.get("/metrics").text
        verified.write(home, [], state, short.writer.now)
        assert "All agree." in site.get("/record").text


def test_a_pause_that_is_asked_for_shows_at_once(short: Effort, tmp_path: Path) -> None:
    home = shutil.copytree(short.home, tmp_path / "home")
    with served(home) as site:
        site.caught_up(short.writer.head)
        pause.write(home, paused=True)
        assert "it begins when nothing runs" in site.get("/").text


def test_a_home_without_an_effort_says_so_and_then_shows_it(tmp_path: Path) -> None:
    with served(tmp_path / "home") as site:
        site.caught_up(GENESIS)
        for path in ("/", "/progress", "/experiments", "/record", "/metrics"):
            assert site.get(path).status == 200
        assert "No effort was started in" in site.get("/").text
        made = fabricate(tmp_path / "home", 1)
        site.caught_up(made.writer.head)
        assert "No effort was started" not in site.get("/").text


def test_a_broken_journal_is_a_sentence_on_every_page(short: Effort, tmp_path: Path) -> None:
    home = shutil.copytree(short.home, tmp_path / "home")
    content = bytearray((home / NAME).read_bytes())
    content[-300] ^= 1
    (home / NAME).write_bytes(content)
    with served(home) as site:
        until(lambda: "The journal was not read to its end." in site.get("/").text)
        assert site.get("/experiments/3").status == 200
        assert "glovebox_journal_intact 0.0" in site.get("/metrics").text


def test_what_is_gone_from_the_disk_is_a_sentence(short: Effort, tmp_path: Path) -> None:
    home = shutil.copytree(short.home, tmp_path / "home")
    with served(home) as site:
        site.caught_up(short.writer.head)
        (home / "runs" / "000003").mkdir(parents=True)
        (home / "runs" / "000003" / "run.log").mkdir()
        answer = site.get("/experiments/3", {})
        assert (answer.status, answer.text) == (503, "The home cannot be read: Is a directory.\n")


# --- the stream ---------------------------------------------------------------------------------------------


def listen(site: Served, heard: list[bytes]) -> None:
    import urllib.request

    with urllib.request.urlopen(site.url + "events", timeout=20) as stream:
        for line in stream:
            if line.strip():
                heard.append(line)


def test_the_stream_tells_of_a_change_and_ends_with_the_server(short: Effort, tmp_path: Path) -> None:
    home, heard = shutil.copytree(short.home, tmp_path / "home"), list[bytes]()
    with served(home) as site:
        site.caught_up(short.writer.head)
        thread = threading.Thread(target=listen, args=(site, heard))
        thread.start()
        until(lambda: len(heard) > 0)
        first = json.loads(heard[-1].removeprefix(b"data: "))
        pause.write(home, paused=True)
        until(lambda: json.loads(heard[-1].removeprefix(b"data: "))["version"] != first["version"])
    thread.join(10)
    assert not thread.is_alive()


def test_so_many_pages_may_listen(small: Served) -> None:
    import http.client
    from urllib.parse import urlsplit

    where = urlsplit(small.url)
    open_ = [http.client.HTTPConnection(where.hostname or "", where.port, timeout=20) for _ in range(MOST)]
    try:
        for one in open_:
            one.request("GET", "/events")
            assert one.getresponse().status == 200
        assert small.get("/events", {}).status == 503
        assert f"glovebox_web_streams {MOST}.0" in small.get("/metrics").text
    finally:
        for one in open_:
            one.close()
    until(lambda: "glovebox_web_streams 0.0" in small.get("/metrics").text)


# --- text of others -----------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, without what lists grow by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.add(("comment",))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("spoiled")
    with served(home) as site:
        yield site


HOSTILE_VIEWS = (
    "/",
    "/progress",
    "/experiments",
    *(f"/experiments/{n}" for n in range(6)),
    "/compare?n=1&n=4",
    "/record",
)


def pages(site: Served, text: str) -> dict[str, str]:
    site.caught_up(write_hostile(site.home, text))
    return {path: site.get(path).text for path in HOSTILE_VIEWS}


@pytest.fixture(scope="module")
def plain(spoiled: Served) -> dict[str, set[tuple[str, ...]]]:
    """The elements of each view where all texts are harmless."""
    return {path: Elements(text).found for path, text in pages(spoiled, "plain").items()}


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_others_stays_text(
    spoiled: Served, plain: dict[str, set[tuple[str, ...]]], name: str
) -> None:
    for path, text in pages(spoiled, TEXTS[name]).items():
        assert unseen(text) == set(), path
        assert Elements(text).found <= plain[path] | OPTIONAL, path
    metrics = spoiled.get("/metrics")
    assert metrics.status == 200 and unseen(metrics.text) == set()


OPTIONAL = {("dd", "class"), ("span", "class"), ("p", "class"), ("details", "id"), ("summary",)}
"""Elements of ours that long or multi-line texts get and short ones do not."""
