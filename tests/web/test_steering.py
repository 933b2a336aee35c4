"""Steering from a page: what lands in the home, and what does not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from controller.core.steering_request import SteeringRequest
from controller.store import pause, requests
from controller.web.controls import CONTROLS
from controller.web.forms import KIND
from tests.support.hostile import TEXTS, unseen
from tests.web.fabricate import TRAIN, Effort, fabricate, sha
from tests.web.served import PAGE, SECRET, SIGNED_IN, Answer, Served, served, until

OURS = SIGNED_IN | PAGE | {"Content-Type": KIND, "Sec-Fetch-Site": "same-origin"}
RUNNING = 10


@pytest.fixture(scope="module")
def site(short: Effort, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = shutil.copytree(short.home, tmp_path_factory.mktemp("steered") / "home")
    with served(home) as found:
        found.caught_up(short.writer.head)
        yield found


@pytest.fixture(autouse=True)
def nothing_asked(site: Served) -> None:
    shutil.rmtree(site.home / requests.FOLDER, ignore_errors=True)


def ask(site: Served, verb: str, headers: Mapping[str, str] = OURS, /, **fields: Any) -> Answer:
    return site.get(f"/steer/{verb}", headers, "POST", urlencode(fields))


def only(site: Served) -> SteeringRequest:
    (request,) = requests.read(site.home)
    return request


GRANTED: tuple[tuple[str, dict[str, Any], str, dict[str, Any]], ...] = (
    (
        "instruct",
        {"text": "Be brief.\r\nAnd bold."},
        "/",
        {"verb": "instruct", "text": "Be brief.\nAnd bold."},
    ),
    (
        "queue",
        {"train_py": "if 1:\r\n\tbuild_model = 1\r\n", "text": "my own"},
        "/",
        {"verb": "queue", "train_py": "if 1:\n\tbuild_model = 1\n", "text": "my own"},
    ),
    ("queue", {"train_py": TRAIN}, "/", {"text": "train.py, queued by web, 127.0.0.1"}),
    ("kill", {"experiment": RUNNING, "sure": "yes"}, f"/experiments/{RUNNING}", {"target": RUNNING}),
    ("requeue", {"experiment": 1}, "/experiments/1", {"verb": "requeue", "target": 1}),
    ("rollback", {"experiment": 2, "sure": "yes"}, "/experiments/2", {"verb": "rollback", "target": 2}),
    (
        "limit",
        {"experiments": "400", "dollars": "none", "hours": ""},
        "/",
        {"verb": "limit", "limits": {"experiments": 400.0, "dollars": None}},
    ),
    ("agent", {"agent": "tuner"}, "/", {"verb": "agent", "agent": "tuner"}),
    ("pause", {"slot": 1}, "/", {"verb": "hold", "slot": 1}),
    ("continue", {"slot": 1}, "/", {"verb": "release", "slot": 1}),
)


@pytest.mark.parametrize(("verb", "fields", "place", "lands"), GRANTED)
def test_a_form_becomes_the_request_that_the_command_makes(
    site: Served, verb: str, fields: dict[str, Any], place: str, lands: dict[str, Any]
) -> None:
    answer = ask(site, verb, **fields, reason="a \x1b[31mreason\r\nof two lines")
    assert (answer.status, answer.headers["location"]) == (303, f"{place}?asked={verb}")
    request = only(site)
    assert {name: getattr(request, name) for name in lands} == lands
    assert request.by == "web, 127.0.0.1" and request.reason == "a reason of two lines"
    shown = site.get(answer.headers["location"], SIGNED_IN | PAGE)
    assert f"{CONTROLS[verb].title}: asked for." in shown.text


def test_all_slots_are_paused_and_go_on(site: Served) -> None:
    assert ask(site, "pause", slot="all", reason="lunch").status == 303
    wish = pause.read(site.home)
    assert (wish.paused, wish.by, wish.reason) == (True, "web, 127.0.0.1", "lunch")
    assert "asked for by web, 127.0.0.1" in site.get("/").text
    assert ask(site, "continue").status == 303
    assert not pause.read(site.home).paused and requests.read(site.home) == ()


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("instruct", {"text": " "}, "The instruction is empty."),
    ("instruct", {"text": "a" * 4001}, "4000 is the most"),
    ("queue", {"train_py": "def"}, "It cannot be run"),
    ("queue", {}, "It cannot be run"),
    ("kill", {"experiment": RUNNING}, "tick that you mean it"),
    ("kill", {"experiment": RUNNING, "sure": "on"}, "tick that you mean it"),
    ("kill", {"experiment": 3, "sure": "yes"}, "Experiment 3 is not running."),
    ("kill", {"experiment": "x", "sure": "yes"}, "Name one experiment by its number."),
    ("requeue", {"experiment": "\N{SUPERSCRIPT TWO}"}, "Name one experiment by its number."),
    ("queue", {"train_py": "build_model = 1\0"}, "It cannot be run"),
    ("rollback", {"experiment": 2}, "tick that you mean it"),
    ("rollback", {"experiment": 3, "sure": "yes"}, "cannot go back to experiment 3"),
    ("requeue", {"experiment": 99}, "There is no experiment 99"),
    ("requeue", {"experiment": 8}, "Experiment 8 only repeats"),
    ("limit", {}, "No limit is named."),
    ("limit", {"hours": "many"}, "is a number or none"),
    ("limit", {"hours": "inf"}, "above 0"),
    ("agent", {"agent": " "}, "No agent is named."),
    ("pause", {"slot": 77}, "There is no slot 77"),
)


@pytest.mark.parametrize(("verb", "fields", "sentence"), REFUSED)
def test_a_refusal_is_a_sentence_beside_what_was_typed(
    site: Served, verb: str, fields: dict[str, Any], sentence: str
) -> None:
    answer = ask(site, verb, **fields, reason="my reason")
    assert answer.status == 400 and sentence in answer.text and 'value="my reason"' in answer.text
    assert not (site.home / requests.FOLDER).exists()


def test_a_program_that_is_refused_comes_back_as_it_was(site: Served) -> None:
    program = "\n\tdef </textarea><script>alert(1)</script>\n" + "# \u00e9\n" * 60_000
    answer = ask(site, "queue", train_py=program[:100_000])
    assert answer.status == 400 and "\tdef &lt;/textarea&gt;&lt;script&gt;" in answer.text
    assert answer.text.count("# é\n") > 20_000


FOREIGN: tuple[tuple[dict[str, str], int], ...] = (
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
    ({"Sec-Fetch-Site": "", "Origin": "http://evil.example"}, 403),
    ({"Host": "evil.example"}, 403),
    ({"Cookie": ""}, 401),
    ({"Cookie": SIGNED_IN["Cookie"][:-1]}, 401),
    ({"Cookie": "", "Authorization": "Bearer no"}, 401),
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ({"Content-Type": "application/json"}, 415),
)


@pytest.mark.parametrize("verb", CONTROLS)
def test_nobody_else_steers(site: Served, verb: str) -> None:
    fields = {"text": "hi", "experiment": 10, "sure": "yes", "slot": "all", "agent": "tuner", "hours": 1}
    for told, status in FOREIGN:
        answer = ask(site, verb, OURS | told | {"Accept": "*/*"}, **fields)
        assert (answer.status, answer.text.count("\n")) == (status, 1), told
    origin = {name: value for name, value in OURS.items() if name != "Sec-Fetch-Site"}
    for foreign in ("null", "http://evil.example", "http://localhost:1"):
        assert ask(site, verb, origin | {"Origin": foreign}, **fields).status == 403
    assert not (site.home / requests.FOLDER).exists()


@pytest.mark.parametrize("verb", CONTROLS)
def test_reading_the_address_of_a_form_changes_nothing(site: Served, verb: str) -> None:
    answer = site.get(f"/steer/{verb}?experiment=10&sure=yes&slot=1&text=hi&hours=2", SIGNED_IN | PAGE)
    assert answer.status == 200 and answer.headers["referrer-policy"] == "same-origin"
    for headers in (PAGE, {}):
        out = site.get(f"/steer/{verb}", headers)
        assert (out.status, out.headers["location"]) == (303, "/sign-in")
    for method in ("PUT", "DELETE", "PATCH"):
        assert site.get(f"/steer/{verb}", OURS, method).status == 405
    assert not (site.home / requests.FOLDER).exists()


def test_the_token_in_a_header_will_do(site: Served) -> None:
    told = {"Authorization": f"Bearer {SECRET}", "Content-Type": KIND}
    assert ask(site, "agent", told, agent="tuner").status == 303
    assert only(site).agent == "tuner"


def test_forms_have_an_end(site: Served) -> None:
    for verb, most in (("queue", 512), ("instruct", 64), ("agent", 16)):
        assert ask(site, verb, text="a" * most * 1024).status == 413
    assert ask(site, "agent", **{f"f{place}": 1 for place in range(30)}).status == 400
    assert ask(site, "nothing").status == 404
    assert ask(site, "instruct", text="\N{ROCKET}" * 4000).status == 303


def test_controls_are_there_for_those_who_signed_in(site: Served) -> None:
    for path in ("/", f"/experiments/{RUNNING}", "/experiments/1"):
        assert "/steer/" not in site.get(path).text and "Sign in to steer" in site.get(path).text
    assert f"/steer/kill?experiment={RUNNING}" in site.get("/", SIGNED_IN | PAGE).text
    for number, verbs in ((RUNNING, {"kill"}), (1, {"requeue"}), (2, {"requeue", "rollback"}), (8, set())):
        text = site.get(f"/experiments/{number}", SIGNED_IN | PAGE).text
        assert {verb for verb in ("kill", "requeue", "rollback") if f"/steer/{verb}?" in text} == verbs


def test_nothing_is_asked_of_a_home_without_an_effort(tmp_path: Path) -> None:
    with served(tmp_path) as site:
        for verb, fields in (("pause", {"slot": "all"}), ("agent", {"agent": "tuner"})):
            answer = ask(site, verb, **fields)
            assert answer.status == 400 and "No effort was started" in answer.text
    assert list(tmp_path.iterdir()) == []


def test_a_confirmation_comes_from_us_and_not_from_the_address(site: Served) -> None:
    for told in ("<b>x</b>", "nothing", "__class__", ""):
        assert "asked for." not in site.get(f"/?{urlencode({'asked': told})}").text


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *(name for name, _ in attrs)))


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_person_wrote_stays_text(site: Served, name: str) -> None:
    text = TEXTS[name].encode("utf-8", "replace").decode()
    plain = Elements(ask(site, "instruct", text="", reason="plain").text).found
    back = ask(site, "instruct", text=" ", reason=text)
    assert unseen(back.text) == set() and Elements(back.text).found == plain
    assert ask(site, "requeue", reason=text, experiment=1).status == 303
    shown = site.get("/").text
    assert "not answered yet" in shown and unseen(shown) == set()
    assert ("script", "type", "src") in Elements(shown).found and ("script",) not in Elements(shown).found


def test_what_waits_is_shown_and_what_cannot_be_read_is_left_alone(site: Served) -> None:
    folder = site.home / requests.FOLDER
    assert ask(site, "requeue", experiment=1, reason="luck").status == 303
    (folder / "0bad.json").write_text("{")
    (folder / "0link.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "0pipe.json")
    shown = site.get("/").text
    assert "web, 127.0.0.1: queues experiment 1 again (luck); not answered yet" in shown
    assert {path.suffix for path in folder.iterdir()} == {".json"}
    assert len(requests.read(site.home)) == 1  # a controller does not wait for the pipe, and sets all aside
    assert len(list(folder.glob("*.unreadable"))) == 3


def test_a_new_request_is_an_update_and_its_answer_is_shown(tmp_path: Path) -> None:
    effort = fabricate(tmp_path / "home", 2)
    with served(effort.home) as site:
        site.caught_up(effort.writer.head)
        before = site.follower.version
        assert ask(site, "agent", agent="tuner").status == 303
        until(lambda: site.follower.version > before)
        request = only(site)
        effort.writer.tell(request.refused("There is <b>none</b>."))
        effort.writer.tell(request.granted().model_copy(update={"agent": "tuner", "request": "r2"}))
        effort.writer.write()
        site.caught_up(effort.writer.head)
        text = site.get("/").text
        assert "asked for agent: refused: There is &lt;b&gt;none&lt;/b&gt;." in text
        assert "agent changed" in text and "not answered yet" not in text


def test_the_story_of_an_experiment_begins_with_its_request(tmp_path: Path) -> None:
    effort = fabricate(tmp_path / "home", 1)
    granted = requests.made("requeue", "ada", target=0).granted("experiment 0 again", sha(TRAIN))
    effort.writer.tell(granted)
    effort.finish()
    effort.begin_next()
    effort.finish()
    effort.begin_queued(granted.request)
    effort.writer.write()
    with served(effort.home) as site:
        site.caught_up(effort.writer.head)
        story = site.get("/experiments/3").text
        assert story.index("<h3>steered</h3>") < story.index("<h3>proposal asked</h3>")
        assert "<h3>steered</h3>" not in site.get("/experiments/2").text
