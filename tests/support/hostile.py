"""Text that does harm where it is shown as it is, and what every place that shows text owes to people.

A channel is one way out of Glovebox: it shows an effort in which somebody else wrote every text there is,
and says what is wrong with what came out. `tests/views/test_hostile_text.py` throws random text at the
channels, `make attacks` the texts of `TEXTS`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import structlog
from markdown_it import MarkdownIt
from pydantic import BaseModel, ValidationError
from rich.console import Console, RenderableType

from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AgentReturned,
    CertificateDecided,
    CertificateOpened,
    CertificateSettled,
    ClaimMismatch,
    ExperimentMoved,
    JournalRepaired,
    Paused,
    ProposalDropped,
    ProposalRebased,
    ProposalRehearsed,
    Pruned,
    Quarantined,
    Record,
    Resumed,
    RolledBack,
    ScoringFinished,
    ScoringStarted,
    SessionStopped,
    SlotDisturbed,
    SlotReady,
    Steered,
    SteeringRefused,
    Voided,
)
from controller.core.experiment import Phase
from controller.core.scoring.runlog import summary
from controller.core.state import ResearchState, apply, fold
from controller.core.values import Cause, Disturbance, DisturbanceKind, Evidence, Score
from controller.observers.log import OperationalLog
from controller.observers.notices import Context, follow
from controller.observers.terminal import Terminal
from controller.store import ledger
from controller.store.repository import GitRepository
from controller.store.runs import describe
from controller.system import logs
from controller.system.clock import SystemClock
from controller.views import chart, html, report
from controller.views import facts as views_json
from controller.views import tables as views
from controller.views.facts import Exhibit
from controller.views.stairs import climb
from tests.support.efforts import Story, draw

TEXTS: Mapping[str, str] = {
    "colours and cursor": "\x1b[31mred\x1b[2J\x1b[1;1H\x1b[8mhidden\x1b[0m",
    "the clipboard (OSC 52)": "\x1b]52;c;cm0gLXJmIC8=\x07copied\x1b]52;c;cm0gLXJmIC8=\x1b\\",
    "a title and a link (OSC 0, 8)": "\x1b]0;mine\x07\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "8-bit controls": "\x9b31mred\x9d52;c;aGk=\x9c\x90q\x9c",
    "device control and keys": "\x1bPq#0\x1b\\\x1b[6n\x1b[?1049h\x1bc\x1b#8",
    "letters turned round": "\u202etxt.exe\u202c \u2066a\u2069 \u200fb\u061c",
    "letters nobody sees": "a\u200b\u2060\ufeff\u00ad\u034f\u3164b\U000e0041\U000e0042\ufe0f",
    "lines and tabs": "one\ttwo\nthree\r\nfour\rfive\x0bsix\x0cseven\x85eight\u2028nine\u2029ten",
    "NUL and other controls": "a\x00b\x01c\x07d\x08e\x7ff\x1ag",
    "half a surrogate pair": "a\ud800b\udfff\udcff",
    "no characters at all": "\ufffe\uffff\U0001ffff\ue000\U0010ffff",
    "a formula": "=cmd|'/c calc'!A1",
    "formulas of other kinds": "@SUM(1+1)*cmd|'/c calc'!A0",
    "a formula behind a space": ' \t=HYPERLINK("http://evil")',
    "a full-width formula": "\uff1dcmd()",
    "quotes": '"a\tb""\n\'c',
    "markup for a terminal": "[bold red]x[/] [/nothing] [link=http://evil]y[/link] \\[",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)><!-- &lt; &#60;",
    "Markdown": "](http://evil) ![x](http://evil) `code` **b** | a | b |\n\n# Head\n- item\n<http://evil>",
    "a fence": "```\nIgnore previous instructions\n`````````\n~~~",
    "formulas of TeX": "$\\frac{1}{0}$ $\\input{/etc/passwd}$ \\notacommand{",
    "trailers": "fast\n\nExperiment: 2\nVal-Bpb: 0.1\nJournal: 0\nSigned-off-by: evil <e@x>",
    "a line of the summary": "x\nval_bpb:          0.000001\nverdict:          keep",
    "more than anybody reads": "A\u0301\x1b[31m " * 500,
    "a word without an end": "x" * 5000,
}

_NEVER = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_ENOUGH = 1 << 20
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)|[\x80-\x9f]", re.DOTALL)
_LATER = "2026-03-01T09:30:00+00:00"
_KEPT = {"event", "until", "at"}
"""Fields of events that are no text but times and names of ours."""


def unseen(text: str, allowed: str = "\n") -> set[str]:
    """The characters of `text` that no terminal, file or page of ours should hold."""
    return {c for c in set(text) if c not in allowed and unicodedata.category(c) in _NEVER}


# --- an effort in which every text is somebody else's -------------------------------------------------------


_EVIDENCE = Evidence(
    pairs=3,
    gain=-0.1,
    low=-0.2,
    high=0.0,
    e_value=0.2,
    sigma=0.05,
    df=4,
    holdout_gain=None,
    holdout_low=None,
    holdout_high=None,
    holdout_e_against=1.0,
)


def effort(text: str) -> tuple[list[Record], ResearchState]:
    """Everything that can happen in an effort, each string of it `text`."""
    story = _eventful()
    records = [record.model_copy(update={"data": _spoiled(record.data, text)}) for record in story.records]
    return records, fold(records)


def _eventful() -> Story:
    story = Story(limits={"dollars": 20.0})
    story.run("baseline", 2.0, holdout=2.01)
    first = story.question()
    story.ask(0.5)
    story.tell(
        ProposalRehearsed(proposal=first, train_sha256="0" * 64, result="failed", detail="x", seconds=1)
    )
    story.tell(ProposalRebased(proposal=story.answer("stale"), parent="0" * 40, train_sha256="0" * 64))
    story.tell(ProposalDropped(proposal=first, reason="stale"))
    story.run("a keep", 1.9, holdout=1.93)
    story.refuse("identical")
    story.run("a crash", Cause.OOM)
    story.fail("overloaded")
    story.run("a reject", Cause.NON_CAUSAL)
    story.tell(AgentFailed(agent="claude", proposal=story.question(), reason="nonsense"))
    story.question()
    story.run("a near miss", 1.9005, stands_in_for="claude")
    story.propose("interrupted")
    noise = Disturbance(kind=DisturbanceKind.CPU_LOAD, detail="somebody else")
    story.tell(Voided(experiment=5, attempt=1, cause="disturbed", reason="noise", evidence=noise))
    story.tell(SlotDisturbed(experiment=5, disturbance=noise, looks=9, until=_LATER))
    story.tell(SlotReady(experiment=5, seconds=9))
    story.tell(ExperimentMoved(experiment=5, slot=1))
    asked: dict[str, Any] = {"request": "r1", "by": "ada", "at": _LATER, "reason": "why not"}
    story.tell(Steered(verb="rollback", target=0, **asked))
    story.tell(RolledBack(request="r1", target=0, commit="0" * 40))
    story.tell(CertificateOpened(certificate=0, base=0, head=1))
    story.tell(
        CertificateDecided(
            certificate=0,
            base=0,
            head=1,
            outcome="failed",
            rule="hopeless",
            evidence=_EVIDENCE,
            most_pairs=12,
        )
    )
    story.tell(CertificateSettled(certificate=0, commit="0" * 40))
    story.tell(JournalRepaired(removed="torn"))
    _train_again(story)
    story.answer("next")
    story.question("fix", fixes=2)
    story.tell(AgentAbsent(agent="claude", reason="outage", until=_LATER))
    story.tell(AgentReturned(agent="claude", seconds=3))
    story.tell(AgentAbsent(agent="claude", reason="outage", until=None))
    story.tell(Paused(why="disk", reason="no room", until=_LATER))
    story.tell(Resumed(why="disk", seconds=3))
    story.tell(Paused(why="infrastructure", slot=0, reason="no engine", until=_LATER))
    story.tell(Steered(verb="instruct", text="be brief", **asked))
    story.tell(Steered(verb="queue", text="mine", train_sha256="0" * 64, **asked))
    story.tell(Steered(verb="hold", slot=0, **asked))
    story.tell(Steered(verb="limit", limits={"hours": 3.0}, **asked))
    story.tell(Steered(verb="agent", agent="tuner", **asked))
    story.tell(SteeringRefused(verb="kill", because="it is not running", **asked))
    story.tell(Pruned(what="logs", before=2, bytes=3))
    story.tell(Paused(why="person", reason="asked to", by="somebody"))
    story.tell(SessionStopped(reason="a person"))
    return story


def _train_again(story: Story) -> None:
    """The second attempt of a voided experiment ends with a score that is put into quarantine."""
    started = next(r.data for r in reversed(story.records) if r.data.event == "training_started")
    story.tell(started.model_copy(update={"attempt": 2}))
    finished = next(r.data for r in story.records if r.data.event == "training_finished")
    story.tell(finished.model_copy(update={"experiment": 5, "attempt": 2}))
    score = Score(val_bpb=0.5, bytes=1000, tokens=300, probes={"twins": 5, "note": "x"})
    story.tell(ScoringStarted(experiment=5, attempt=2, seed=1, draw=draw(5), specs={"w": "0" * 64}))
    story.tell(ScoringFinished(experiment=5, attempt=2, score=score))
    story.tell(ClaimMismatch(experiment=5, attempt=2, claim=9.0, score=0.5, bound=0.1))
    story.tell(Quarantined(experiment=5, attempt=2, reason="too good", score=score))


def _spoiled(value: Any, text: str) -> Any:
    """The same event with `text` in place of every string that is not one of a few words."""
    for name in type(value).model_fields:
        old = getattr(value, name)
        if isinstance(old, BaseModel):
            new: Any = _spoiled(old, text)
        elif type(old) is str and name not in _KEPT:
            new = text or "x"
        elif isinstance(old, dict):
            new = {**old, text: text, "inner": {text: [text]}} if name != "specs" else {text: text}
        else:
            continue
        try:
            type(value).model_validate({**value.model_dump(), name: new})
        except ValidationError:
            continue
        value = value.model_copy(update={name: new})
    return value


# --- the channels -------------------------------------------------------------------------------------------


def printed(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def terminal(text: str) -> Iterator[str]:
    """status, log, show and show --audit, for people."""
    records, state = effort(text)
    shown: dict[str, RenderableType] = {"status": views.status(state, "2026-03-01"), "log": views.log(state)}
    for number in range(len(state.experiments)):
        audited = number % 2 == 1
        shown[f"show {number}"] = views.show(
            Exhibit(state, number, records=records, diff=text, log_excerpt=text, audited=audited)
        )
    for name, renderable in shown.items():
        if found := unseen(said := printed(renderable)):
            yield f"{name} shows {sorted(found)!r}"
        if len(said) > 4 * _ENOUGH:
            yield f"{name} has {len(said)} characters"
    if len(printed(views.log(state), 10_000).splitlines()) != 1 + len(state.experiments):
        yield "log has not one line for each experiment"


def as_json(text: str) -> Iterator[str]:
    """status, log, show and show --audit, with --json."""
    records, state = effort(text)
    values = [views_json.status(state, "2026-03-01"), views_json.log(state)]
    for number in range(len(state.experiments)):
        values.append(
            views_json.show(
                Exhibit(state, number, records=records, diff=text, log_excerpt=text, audited=True)
            )
        )
    for value in values:
        written = json.dumps(value, indent=2, allow_nan=False, default=str)
        for string in _strings(json.loads(written)):
            if found := unseen(string):
                yield f"a string holds {sorted(found)!r}"


def tsv(text: str) -> Iterator[str]:
    """results.tsv."""
    _, state = effort(text)
    written = ledger.render(state)
    lines = written.split("\n")
    if unseen(written, "\n\t"):
        yield "control characters"
    if lines.pop() != "" or len(lines) != 1 + len(state.finished):
        yield f"{len(lines)} lines for {len(state.finished)} experiments"
    wide = len(ledger.COLUMNS)
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != wide or next(csv.reader(io.StringIO(line + "\n"), delimiter="\t")) != cells:
            yield f"a row reads as {len(cells)} cells"
        if any(cell[:1] in tuple("=+-@\t\r＝＋－＠") and not _is_number(cell) for cell in cells if cell):
            yield "a cell is a formula"
        if len(line) > 1000:
            yield "a row is longer than anybody wants to read"


def page(text: str) -> Iterator[str]:
    """report.md, as text and as the page that it is rendered to."""
    records, state = effort(text)
    written, plain = report.render(records, state), report.render(*effort("plain"))
    if found := unseen(written):
        yield f"report.md holds {sorted(found)!r}"
    if elements(written) != elements(plain):
        yield f"the page has other elements: {sorted(set(elements(written)) - set(elements(plain)))[:3]}"


def published(text: str) -> Iterator[str]:
    """report.html: its elements are those of a page about nothing in particular."""
    pages = []
    for written in (text, "plain"):
        account = report.render(*effort(written))
        pages.append(html.page(account, {"progress.svg": b"<svg/>"}, written))
    if found := unseen(pages[0]):
        yield f"report.html holds {sorted(found)!r}"
    if elements_of(pages[0]) != elements_of(pages[1]):
        yield "report.html has other elements"


def pictures(text: str) -> Iterator[str]:
    """progress.svg: drawing it must not fail, and not take long."""
    state, stairs = climb(effort(text)[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "progress.svg"
        chart.draw(state, stairs, path)
        if not path.read_bytes().startswith(b"<?xml"):
            yield "no picture"


def files(text: str) -> Iterator[str]:
    """experiment.json and the section at the end of run.log."""
    _, state = effort(text)
    for experiment in state.finished:
        content = describe(experiment)
        json.loads(content)
        if found := unseen(content.decode("ascii")):
            yield f"experiment.json holds {sorted(found)!r}"
        assert experiment.outcome is not None and experiment.decision is not None
        section = summary(experiment.outcome, experiment.judgement, experiment.decision)
        if len(section.splitlines()) != 11 or unseen(section):
            yield "the section in run.log is not what it should be"


def log_lines(text: str) -> Iterator[str]:
    """What `run` logs for a collector: one JSON object a line."""
    stream = io.StringIO()
    logs.configure(stream)
    try:
        trained = _watch(OperationalLog(), text)
        structlog.get_logger().warning("agent_failed", error=text)
    finally:
        structlog.reset_defaults()
    for line in stream.getvalue().split("\n")[:-1]:
        if unseen(line, "") or not line.isascii():
            yield "a line holds what a terminal may obey"
        if not isinstance(json.loads(line), dict):
            yield "a line is no JSON object"
    if stream.getvalue().count("\n") != 1 + trained + len(effort(text)[0]):
        yield "not one line for each event"


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def live_view(text: str) -> Iterator[str]:
    """What `run` shows in a terminal. Its own escape sequences are the same whatever the texts are."""
    seen = []
    for told in (text, "plain"):
        stream = _Tty()
        view = Terminal(stream, SystemClock())
        _watch(view, told)
        view.close()
        seen.append(stream.getvalue())
    strange = set(_ESCAPE.findall(seen[0])) - set(_ESCAPE.findall(seen[1]))
    if strange:
        yield f"escape sequences {sorted(strange)[:3]!r}"
    if found := unseen(_ESCAPE.sub("", seen[0]), "\n\r"):
        yield f"the view shows {sorted(found)!r}"


def _watch(watcher: Any, text: str) -> int:
    """Let an observer hear of everything; how many experiments it saw in training."""
    records, _ = effort(text)
    state, trained = ResearchState(), set()
    for record in records:
        apply(state, record)
        watcher.recorded(record, state)
        for experiment in state.open:
            if experiment.phase is Phase.TRAINING:
                watcher.training(experiment.number, 10.0, 300.0)
                trained.add(experiment.number)
    return len(trained)


def notices(text: str) -> Iterator[str]:
    """What a command or a webhook is told."""
    records, _ = effort(text)
    context, told = Context(), 0
    for record in records:
        context, notice = follow(context, record)
        if notice is not None:
            told += 1
            for string in _strings(json.loads(json.dumps(notice.as_json(), allow_nan=False))):
                if found := unseen(string, ""):
                    yield f"a notice of a {notice.kind} holds {sorted(found)!r}"
    if told < 6:
        yield f"only {told} notices were made"


def commits(text: str) -> Iterator[str]:
    """Subject and trailers of a kept commit, as git itself reads them."""
    with tempfile.TemporaryDirectory() as folder:
        repository = GitRepository(Path(folder) / "repo")
        repository.begin("t", {"train.py": "A = 1\n"})
        trailers = {"Experiment": "7", "Val-Bpb": "1.500000", "Engine": text or "x", "Journal": "f" * 64}
        commit = repository.commit("A = 2\n", text, trailers)
        message = repository._git.run("log", "-1", "--format=%B", commit).decode("utf-8")
        names = repository._git.run("log", "-1", "--format=%(trailers:only,unfold)", commit).decode("utf-8")
        if found := unseen(message):
            yield f"the message holds {sorted(found)!r}"
        read = dict(repository.history())[commit]
        if [read.get(name) for name in ("Experiment", "Val-Bpb", "Journal")] != ["7", "1.500000", "f" * 64]:
            yield "the trailers read differently"
        keys = [line.split(":")[0] for line in names.splitlines() if line]
        if [key for key in keys if key != "Engine"] != ["Experiment", "Val-Bpb", "Journal"]:
            yield f"git reads the trailers {keys}"


CHANNELS: Mapping[str, Callable[[str], Iterator[str]]] = {
    "the terminal": terminal,
    "JSON": as_json,
    "the ledger": tsv,
    "the report": page,
    "the published page": published,
    "the picture": pictures,
    "experiment.json": files,
    "log lines": log_lines,
    "the live view": live_view,
    "notices": notices,
    "commits": commits,
}


def complaints(channel: str, texts: Iterable[str]) -> list[str]:
    """What is wrong with a channel for some of the texts."""
    return [wrong for text in texts for wrong in CHANNELS[channel](text)]


# --- what a page consists of --------------------------------------------------------------------------------


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(f"{name}={value}" for name, value in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment",))

    def handle_decl(self, decl: str) -> None:
        self.found.append(("declaration",))

    def unknown_decl(self, data: str) -> None:
        self.found.append(("declaration",))

    def handle_pi(self, data: str) -> None:
        self.found.append(("instruction",))


def elements(markdown: str) -> list[tuple[str, ...]]:
    """Every element of the page that a renderer makes of it, in order, with its attributes."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return elements_of(renderer.render(markdown))


def elements_of(page: str) -> list[tuple[str, ...]]:
    """Every element of a page, in order, with its attributes."""
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser.found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", cell) is not None
