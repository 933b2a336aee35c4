"""A command and a webhook hear what happened: a real script, a real HTTP server, a real journal."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from controller import settings
from controller.agents.replay import Replay
from controller.core.errors import UserError
from controller.core.events import (
    AgentAbsent,
    AgentReturned,
    AnyEvent,
    CertificateOpened,
    CertificateSettled,
    Paused,
    Resumed,
    SessionStopped,
)
from controller.core.state import fold
from controller.core.values import Cause
from controller.observers.channels import to_command, to_webhook
from controller.observers.notices import Context, Notice, follow
from controller.observers.notify import Notifier, NotifyConfig, Undelivered
from controller.observers.terminal import ObserverGroup
from controller.store.journal import read_records
from controller.system.clock import SystemClock
from tests.core.statistics.test_certificate import decided
from tests.core.telling import Told
from tests.loop.effort import Effort, start
from tests.support.efforts import Story, small
from tests.support.fakes import train_py
from tests.support.two_slots import StoryOfTwo

SECRET = "hook-0123456789-secret"
ALL = NotifyConfig(on=("keep", "discard", "crash", "reject", "stall", "stop"))


class Hook:
    """A server that takes posts; `answers` are the next statuses, then 204."""

    def __init__(self) -> None:
        self.got: queue.Queue[dict[str, Any]] = queue.Queue()
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.answers.pop(0) if outer.answers else 204
                outer.got.put({"path": self.path, "status": status, **json.loads(body)})
                self.send_response(status)
                self.send_header("content-length", "0")
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.deliver = to_webhook(SecretStr(f"http://127.0.0.1:{self._server.server_port}/{SECRET}"))

    def all(self) -> list[dict[str, Any]]:
        return [self.got.get_nowait() for _ in range(self.got.qsize())]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


@pytest.fixture
def effort(tmp_path: Path, efforts: list[Effort]) -> Effort:
    """Will keep two experiments, reject one and discard one."""
    folder = tmp_path / "proposals"
    folder.mkdir()
    for name, width in (("0 $(touch pwned) ;", 2.5), ("1", -1.0), ("2", 2.75)):
        (folder / f"{name}.py").write_text(train_py(width), encoding="utf-8")
    return start(efforts, tmp_path / "home", Replay(folder))


def told_of(story: Story) -> list[Notice]:
    context, told = Context(), []
    for record in story.records:
        context, notice = follow(context, record)
        told += [notice] if notice else []
    return told


def test_what_is_told_of_an_effort() -> None:
    told = [notice.as_json() for notice in told_of(small())]
    kinds = [notice["event"] for notice in told]
    assert kinds == ["keep", "keep", "crash", "reject", "discard", "keep"]
    assert [notice["experiment"] for notice in told] == [0, 1, 2, 3, 4, 5]
    keep, crash = told[1], told[2]
    assert (keep["verdict"], keep["cause"], keep["tag"]) == ("keep", None, "mar1")
    assert keep["val_bpb"] == keep["frontier_bpb"] and keep["commit"]
    assert (crash["cause"], crash["val_bpb"], crash["frontier_bpb"]) == ("oom", None, keep["val_bpb"])
    assert not any("holdout" in json.dumps(notice) for notice in told)


def test_what_came_of_a_chain_is_told_and_replicates_are_not() -> None:
    story = small()
    head = fold(story.records).chain[-1]
    known = len(told_of(story))
    for number, outcome in enumerate(("certified", "failed")):
        story.tell(CertificateOpened(certificate=number, base=0, head=head))
        story.tell(decided(outcome, certificate=number, head=head))
        if outcome == "certified":
            story.tell(CertificateSettled(certificate=number, commit="c"))
    told = [notice.as_json() for notice in told_of(story)][known:]
    assert [notice["event"] for notice in told] == ["certified", "taken-back"]
    assert {"certified", "taken-back"} <= {*NotifyConfig().on}
    assert "gain 0.100000 in 2 pairs" in told[0]["reason"] and told[0]["experiment"] is None
    assert "did not hold (as told)" in told[1]["reason"]


def test_a_replicate_is_not_told_of() -> None:
    told = Told().baseline(2.0)
    context, heard = Context.at(told.state), []
    for record in told.replicated(0, 2.1).records:
        context, notice = follow(context, record)
        heard += [notice.kind] if notice else []
    assert heard == ["keep"]


@pytest.mark.parametrize(
    ("cause", "detail", "reason"),
    [
        (Cause.EXIT, "KeyError: 'getpwuid(): uid not found: 10001'", "`make image`"),
        (Cause.EXIT, "RuntimeError: boom", "boom"),
        (Cause.NON_CAUSAL, "", "it cheated"),
    ],
)
def test_a_baseline_without_a_score_is_told_with_what_is_wrong(
    cause: Cause, detail: str, reason: str
) -> None:
    story = Story()
    story.run("baseline", cause, detail=detail)
    story.run("an idea", cause, detail=detail)
    first, second = (notice.as_json() for notice in told_of(story))
    assert (first["event"], first["experiment"], first["cause"]) == ("baseline", 0, str(cause))
    assert reason in first["reason"] and "baseline" in NotifyConfig().on
    assert second["event"] in ("crash", "reject")


def test_each_of_two_experiments_is_told_with_its_own_words_and_score() -> None:
    story = StoryOfTwo()
    one, other = story.open(0, "one"), story.open(1, "other")
    story.end(other, 1.9)
    third = story.open(1, "third")
    story.end(one, 1.95)
    story.end(third, Cause.NON_CAUSAL)
    told = [notice.as_json() for notice in told_of(story)][1:]
    assert [(n["event"], n["experiment"], n["description"], n["val_bpb"]) for n in told] == [
        ("keep", other, "other", 1.9),
        ("discard", one, "one", 1.95),
        ("reject", third, "third", None),
    ]
    assert [(n["cause"], n["frontier_bpb"]) for n in told] == [
        (None, 1.9),
        ("worse", 1.9),
        ("non-causal", 1.9),
    ]


def test_an_experiment_that_waits_is_not_forgotten_while_many_others_are_told() -> None:
    story = StoryOfTwo()
    waits = story.open(0, "it waits")
    for number in range(100):
        story.question()
        story.refuse("identical")
        story.end(story.open(1, f"another {number}"), Cause.OOM)
    story.end(waits, 1.9)
    context = Context()
    for record in story.records:
        context, notice = follow(context, record)
        assert len(context.others) <= 1 and len(context.proposals) <= 1, "nothing is remembered in vain"
    assert notice is not None
    assert (notice.kind, notice.context.experiment, notice.context.description) == ("keep", waits, "it waits")


def test_what_is_reported_from_some_line_on_knows_what_is_open_by_then() -> None:
    """Another process told of the lines before, or there was no channel."""
    story = StoryOfTwo()
    one, other = story.open(0, "one"), story.open(1, "other")
    story.question()
    story.answer("to come")
    context = Context.at(fold(story.records))
    before = len(story.records)
    story.end(one, 1.9)
    story.end(other, Cause.OOM)
    told = []
    for record in story.records[before:]:
        context, notice = follow(context, record)
        told += [notice.as_json()] if notice else []
    assert [(n["event"], n["experiment"], n["description"]) for n in told] == [
        ("keep", one, "one"),
        ("crash", other, "other"),
    ]
    assert [*context.proposals.values()] == ["to come"]


def test_a_stall_is_told_once_until_it_is_over() -> None:
    away = AgentAbsent(agent="a", reason="busy \x1b[31m", until=None)
    fault = Paused(why="infrastructure", reason="no engine")
    events: list[AnyEvent] = [
        fault,
        fault,
        away,
        Resumed(why="infrastructure", seconds=1),
        away,
        away,
        AgentReturned(agent="a", seconds=1),
        Paused(why="person", by="me", reason="lunch"),
        Paused(why="disk", reason="full"),
        SessionStopped(reason="a limit"),
    ]
    story = Story()
    for event in events:
        story.tell(event)
    assert [(notice.kind, notice.reason) for notice in told_of(story)] == [
        ("stall", "no engine"),
        ("stall", "busy"),
        ("stall", "full"),
        ("stop", "a limit"),
    ]


def test_both_channels_hear_of_an_effort(effort: Effort, tmp_path: Path, hook: Hook) -> None:
    script = tmp_path / "tell me.py"
    script.write_text(
        "import os, sys\n"
        f"with open({str(tmp_path / 'heard')!r}, 'a') as file: file.write(sys.stdin.read())\n"
        "sys.exit(any(name.startswith(('ANTHROPIC', 'GLOVEBOX')) for name in os.environ))\n"
    )
    config = NotifyConfig(on=("keep", "reject", "stop"))
    command = to_command(f"{sys.executable} '{script}' $(touch pwned) ';' touch pwned")
    os.environ["ANTHROPIC_API_KEY"] = "sk-test"
    try:
        with capture_logs() as lines, contextlib.ExitStack() as stack:
            told = [
                stack.enter_context(Notifier(name, effort.home, config, SystemClock(), deliver))
                for name, deliver in (("command", command), ("webhook", hook.deliver))
            ]
            effort.components.observer = ObserverGroup(told)
            effort.loop().run()
    finally:
        del os.environ["ANTHROPIC_API_KEY"]
    heard = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
    assert heard == [{name: n[name] for name in n if name not in ("path", "status")} for n in hook.all()]
    assert [n["event"] for n in heard] == ["keep", "keep", "reject", "stop"]
    assert heard[1]["description"].startswith("0 $(touch pwned) ;.py") and heard[2]["cause"] == "non-causal"
    assert all(n["home"] == str(effort.home) and n["tag"] == "t" for n in heard)
    records = list(read_records(effort.home))
    assert all(records[n["seq"]].hash == n["head"] for n in heard)
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    assert not [line for line in lines if line["event"].startswith("notify")]


def run(effort: Effort, deliver: Callable[[Mapping[str, Any]], None]) -> list[str]:
    """Run an effort to its end with one channel; what was logged of the channel."""
    notifier = Notifier("webhook", effort.home, ALL, SystemClock(), deliver)
    with capture_logs() as lines, notifier as told:
        effort.components.observer = ObserverGroup([told])
        effort.loop().run()
    return [line["error"] for line in lines if line["event"].startswith("notify")]


def test_what_one_process_could_not_tell_the_next_one_tells(
    effort: Effort, tmp_path: Path, hook: Hook
) -> None:
    def deliver(notice: Mapping[str, Any]) -> None:
        hook.deliver(notice)
        if notice["experiment"] == 1:  # it arrived, and we died before we could take note of it
            raise Undelivered("the machine lost power")

    assert run(effort, deliver) == ["the machine lost power"]
    assert [n["experiment"] for n in hook.all()][:2] == [0, 1]
    effort.agent = Replay(tmp_path / "proposals")
    effort.restart()
    run(effort, hook.deliver)
    got = hook.all()
    assert [n["experiment"] for n in got] == [1, 2, 3, None, None]  # each of the two sessions came to an end
    assert [n["event"] for n in got] == ["keep", "reject", "discard", "stop", "stop"]


def test_a_refusal_for_good_costs_one_notice(effort: Effort, hook: Hook) -> None:
    hook.answers = [404, 302]
    complaints = run(effort, hook.deliver)
    got = [(n["path"], n["status"], n["experiment"]) for n in hook.all()]
    assert [(status, number) for _, status, number in got] == [
        (404, 0),
        (302, 1),
        (204, 2),
        (204, 3),
        (204, None),
    ]
    assert complaints == ["the webhook answered with status 404"]
    assert {path for path, _, _ in got} == {f"/{SECRET}"}


@pytest.mark.parametrize(("status", "lasting"), [(500, False), (429, False), (403, True), (301, True)])
def test_which_refusals_last(hook: Hook, status: int, lasting: bool) -> None:
    hook.answers = [status]
    with pytest.raises(Undelivered) as error:
        hook.deliver({})
    assert error.value.for_good is lasting


def test_a_notice_is_repeated_while_the_loop_goes_on(effort: Effort, hook: Hook) -> None:
    hook.answers = [503]
    with Notifier("w", effort.home, NotifyConfig(), SystemClock(), hook.deliver) as told:
        effort.components.observer = ObserverGroup([told])
        effort.loop().run()
        first, again = hook.got.get(timeout=60), hook.got.get(timeout=60)
    assert [(n["status"], n["experiment"]) for n in (first, again)] == [(503, 0), (204, 0)]


def test_nobody_listens_and_nothing_is_held_up_or_given_away(effort: Effort) -> None:
    complaints = run(effort, to_webhook(SecretStr(f"http://127.0.0.1:9/{SECRET}")))
    assert complaints == ["the webhook cannot be reached: ConnectError"]
    assert len(list(read_records(effort.home))) > 20
    for path in (p for p in effort.home.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


CHILD = f'{sys.executable} -c \'import subprocess as s; s.run(["sleep", "1000"])\''


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("/nowhere/at-all", "cannot be run: No such file"),
        ("false", "ended with status 1"),
        ("sleep 1000", "did not end within"),
        (CHILD, "did not end within"),
    ],
)
def test_a_command_that_fails_is_named_and_killed(command: str, complaint: str) -> None:
    with pytest.raises(Undelivered, match=complaint):
        to_command(command, seconds=1.0)({"event": "keep", "val_bpb": float("nan")})


def test_a_command_may_ignore_what_it_is_told() -> None:
    to_command("true")({"event": "keep", "description": "x" * 100_000})


def test_silence_for_too_long_is_a_stall(tmp_path: Path) -> None:
    got: queue.Queue[Mapping[str, Any]] = queue.Queue()
    (tmp_path / "audit.jsonl").write_bytes(b"")
    records = small().records
    with Notifier("x", tmp_path, NotifyConfig(stall_seconds=0.05), SystemClock(), got.put) as told:
        told.recorded(records[-1], fold(records))
        notice = got.get(timeout=60)
    assert (notice["event"], notice["seq"]) == ("stall", None)
    assert "0.05 s" in notice["reason"] and notice["frontier_bpb"] == 1.85
    assert got.empty()


@pytest.mark.parametrize(("latest", "drifts"), [(2.004, False), (2.5, True)])
def test_a_machine_that_is_not_what_it_was_is_told_of(tmp_path: Path, latest: float, drifts: bool) -> None:
    got: queue.Queue[Mapping[str, Any]] = queue.Queue()
    (tmp_path / "audit.jsonl").write_bytes(b"")
    told = Told().baseline(2.0).replicated(0, 2.001, 1.999, 2.002, 1.998, latest)
    with Notifier("x", tmp_path, NotifyConfig(), SystemClock(), got.put) as notifier:
        notifier.recorded(told.records[-1], told.state)
        notice = got.get(timeout=60) if drifts else None
    if notice is not None:
        assert (notice["event"], notice["seq"], notice["experiment"]) == ("drift", None, None)
        assert notice["reason"].startswith("Experiment 5 repeats experiment 0 and differs")
    assert got.empty()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"webhook": f"ftp://{SECRET}"}, "http://"),
        ({"command": "say 'hello"}, "quotation"),
        ({"command": " "}, "names no command"),
        ({"on": ["lunch"]}, "keep"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        settings.load(home=tmp_path, notify=given)
    assert SECRET not in str(error.value) and "\n" not in str(error.value)


def test_the_address_is_in_no_dump_of_the_settings(tmp_path: Path) -> None:
    config = settings.load(home=tmp_path, notify={"webhook": f"https://x/{SECRET}"})
    assert SECRET not in repr(config) + config.model_dump_json()
