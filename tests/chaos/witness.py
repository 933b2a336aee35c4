"""What somebody finds who reads a home's files and asks git, without any code of the controller.

`problems` names every contradiction in what the journal, git, the ledger and runs/ tell. It shares no code
with the controller, whose own `verify` would share its mistakes.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]

_ENDS = ("experiment_opened", "proposal_dropped", "proposal_refused", "agent_failed")
"""After each of these nothing more is told of a proposal."""
_TEXT_IS_DUE = {
    "proposal_made": False,
    "agent_failed": False,
    "proposal_rebased": True,
    "proposal_refused": True,
    "experiment_opened": True,
}
"""Whether a proposal has a text when this happens to it."""


@dataclass
class Asked:
    """What the journal says of one proposal."""

    agent: str
    repeats: int | None = None
    """The experiment whose program runs again."""
    made: bool = False
    end: str = ""
    """The event after which nothing more is told of it."""


@dataclass
class Told:
    """What the journal says of one experiment."""

    number: int
    opened: Line
    slot: int
    at: str = "experiment_opened"
    """Its last event."""
    attempts: int = 0
    running: bool = False
    """An attempt has begun and neither finished its training nor been voided."""
    outcome: Line | None = None
    score: float | None = None
    verdict: str | None = None
    cause: str | None = None
    commit: str | None = None
    repeats: int | None = None

    @property
    def kept(self) -> bool:
        return self.verdict == "keep"

    @property
    def closed(self) -> bool:
        return self.verdict is not None and (not self.kept or self.commit is not None)


@dataclass
class Story:
    """A journal, read line by line as if every line could be wrong."""

    told: list[Told] = field(default_factory=list)
    """By number."""
    closed: list[Told] = field(default_factory=list)
    """Those that came to their end, in that order."""
    kept: list[Told] = field(default_factory=list)
    """In the order of their verdicts, which is that of their commits."""
    branch: list[Told | Line] = field(default_factory=list)
    """What has a commit, or is about to have one: keeps, and what took keeps back."""
    killed: set[int] = field(default_factory=set)
    """Experiments that a person wanted to be ended."""
    rolled_back: list[str] = field(default_factory=list)
    """The requests of rollbacks that were carried out."""
    answered: set[str] = field(default_factory=set)
    """Requests of persons."""
    certificates: list[Line] = field(default_factory=list)
    """What was decided of each."""
    settled: list[str] = field(default_factory=list)
    """The commit of each that was settled."""
    runs: dict[int, list[float]] = field(default_factory=dict)
    """By program: scores that nothing was selected by."""
    latest: dict[int, Told] = field(default_factory=dict)
    """By slot: the experiment that was opened on it last."""
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)
    trained: set[tuple[int, int]] = field(default_factory=set)
    """(experiment, attempt) of every training that came to its end."""
    reasons: list[str] = field(default_factory=list)
    """Why attempts are void."""
    phase: str = "nothing"
    """The last event."""
    torn: bool = False
    _frontier: str = ""
    _incumbent: int | None = None
    _selected_at: float = math.inf

    @property
    def _best(self) -> float:
        """What has to be beaten."""
        runs = self.runs.get(self._incumbent, []) if self._incumbent is not None else []
        return math.fsum(runs) / len(runs) if len(runs) > 1 else self._selected_at

    @property
    def open(self) -> list[Told]:
        return [told for told in self.told if not told.closed]

    @property
    def voided(self) -> int:
        return len(self.reasons)

    @classmethod
    def of(cls, home: Path) -> Story:
        story, prev = cls(), "0" * 64
        *lines, last = (home / "audit.jsonl").read_bytes().split(b"\n")
        story.torn = bool(last)
        for seq, text in enumerate(lines):
            line = json.loads(text)
            if line["seq"] != seq or line["prev"] != prev:
                story.wrong.append(f"line {seq + 1} does not follow the one before")
            prev = line["hash"]
            story.hashes.add(prev)
            story._hear(line)
        return story

    def _hear(self, line: Line) -> None:
        data, event = line["data"], line["event"]
        self.phase, number = event, line["experiment"]
        if event == "effort_started":
            self._frontier = data["base_commit"]
        if data.get("proposal") is not None:
            self._propose(event, data)
        if event in ("steered", "steering_refused", "rolled_back"):
            self._steer(event, data)
        elif event.startswith("certificate_"):
            self._certify(event, data)
        elif event == "experiment_opened":
            self._open(data)
        elif number is not None:
            if not 0 <= number < len(self.told) or self.told[number].closed:
                self.wrong.append(f"{event} of experiment {number}, which is not open")
            else:
                self._advance(self.told[number], event, data)

    def _propose(self, event: str, data: Line) -> None:
        number = data["proposal"]
        if event == "proposal_asked":
            if number != len(self.asked):
                self.wrong.append(f"proposal {number} was asked for where {len(self.asked)} was due")
            self.asked.append(Asked(data["agent"], data["repeats"]))
            return
        known = self.asked[number] if 0 <= number < len(self.asked) else None
        if known is None or known.end:
            self.wrong.append(f"{event} of proposal {number}, which is not open")
            return
        if event in _TEXT_IS_DUE and known.made is not _TEXT_IS_DUE[event]:
            self.wrong.append(f"{event} of proposal {number}, which has {'a' if known.made else 'no'} text")
        known.made = known.made or event == "proposal_made"
        if event in _ENDS:
            known.end = event

    def _open(self, data: Line) -> None:
        number, slot = data["experiment"], data["slot"]
        if number != len(self.told):
            self.wrong.append(f"experiment {number} was opened where {len(self.told)} was due")
        repeats = self.asked[data["proposal"]].repeats
        if repeats is None and data["parent"] != self._frontier:
            self.wrong.append(f"experiment {number} does not start from the frontier")
        if repeats is not None and data["train_sha256"] != self.told[repeats].opened["train_sha256"]:
            self.wrong.append(f"experiment {number} is not the program of {repeats} again")
        self.told.append(Told(number, data, slot, repeats=repeats))
        self._occupy(slot, self.told[-1])

    def _certify(self, event: str, data: Line) -> None:
        number = data["certificate"]
        if event == "certificate_opened":
            due = len(self.settled) == len(self.certificates) == number
        elif event == "certificate_decided":
            due = len(self.settled) == len(self.certificates) == number
            self.certificates.append(data)
            if data["outcome"] != "certified":
                self.branch.append(data)
        else:
            due = len(self.settled) + 1 == len(self.certificates) == number + 1
            self.settled.append(data["commit"])
            if due and self.certificates[number]["outcome"] != "certified":
                self._go_back(self.certificates[number]["base"], data["commit"])
        if not due:
            self.wrong.append(f"{event} of certificate {number} out of turn")

    def _steer(self, event: str, data: Line) -> None:
        if event == "rolled_back":
            asked = self.branch[-1] if self.branch else None
            if not isinstance(asked, dict) or asked.get("request") != data["request"]:
                self.wrong.append(f"a rollback to {data['target']} that nobody asked for")
            self.rolled_back.append(data["request"])
            self._go_back(data["target"], data["commit"])
            self.killed |= {told.number for told in self.open if told.repeats is None}
            return
        if data["request"] in self.answered:
            self.wrong.append(f"the request {data['request']} was answered twice")
        self.answered.add(data["request"])
        if event == "steered" and data["verb"] == "rollback":
            self.branch.append(data)
        if event == "steered" and data["verb"] == "kill":
            self.killed.add(data["target"])

    def _go_back(self, target: int, commit: str) -> None:
        base = self.told[target]
        self._frontier, self._incumbent = commit, base.number
        self._selected_at = base.score if base.score is not None else math.inf

    def _occupy(self, slot: int, told: Told) -> None:
        before = self.latest.get(slot)
        if before is not None and before.slot == slot and not before.closed:
            self.wrong.append(f"experiment {told.number} was given slot {slot}, which {before.number} has")
        told.slot, self.latest[slot] = slot, told

    def _advance(self, told: Told, event: str, data: Line) -> None:
        where = f"experiment {told.number}"
        told.at = event
        match event:
            case "training_started":
                if told.running or data["attempt"] != told.attempts + 1:
                    self.wrong.append(f"{where}: attempt {data['attempt']} began after {told.attempts}")
                told.attempts, told.running, told.outcome, told.score = data["attempt"], True, None, None
            case "training_finished":
                if not told.running or data["attempt"] != told.attempts:
                    self.wrong.append(f"{where}: attempt {data['attempt']} finished and did not run")
                told.running, told.outcome = False, data["outcome"]
                self.trained.add((told.number, told.attempts))
            case "voided":
                self.reasons.append(data["reason"])
                told.running, told.outcome, told.score = False, None, None
            case "scoring_finished":
                told.score = data["score"]["val_bpb"] if data["score"] else None
            case "experiment_moved":
                if told.running or told.outcome is not None:
                    self.wrong.append(f"{where} was moved while it was under way")
                self._occupy(data["slot"], told)
            case "decided":
                self._decide(told, data["decision"])
            case "committed":
                if not told.kept or told.commit is not None:
                    self.wrong.append(f"{where} was committed and may not be")
                told.commit = self._frontier = data["commit"]
        if told.closed:
            self.closed.append(told)

    def _decide(self, told: Told, decision: Line) -> None:
        where = f"experiment {told.number}"
        killed = decision["cause"] == "killed"
        if killed and (told.number not in self.killed or told.running):
            self.wrong.append(f"{where} was killed while it ran, or nobody asked for that")
        if told.verdict is not None or (told.outcome is None and not killed):
            self.wrong.append(f"{where} was decided twice, or before it ran")
        if told.score is not None and any(known.kept for known in self.open):
            self.wrong.append(f"{where} was decided while the frontier was about to move")
        told.verdict, told.cause = decision["verdict"], decision["cause"]
        if (
            told.score is not None
            and told.cause in (None, "replicate")
            and (told.repeats is not None or told.number == 0)
        ):
            self.runs.setdefault(told.repeats or 0, []).append(told.score)
        if told.repeats is not None:
            if told.kept:
                self.wrong.append(f"{where} is a replicate and was kept")
            return
        better = told.score is not None and told.score < self._best
        if (told.kept and not better) or (told.cause in ("worse", "equal") and better):
            self.wrong.append(f"{where}: {told.verdict} with {told.score} against {self._best}")
        if told.kept and told.score is not None:
            self._selected_at, self._incumbent = told.score, told.number
            self.kept.append(told)
            self.branch.append(told)


def problems(home: Path, *, at_rest: bool) -> list[str]:
    """Every contradiction; while a controller lies dead, what its successor mends is none."""
    story = Story.of(home)
    found = [*story.wrong]
    if at_rest and (story.torn or story.open):
        found.append("the journal ends in the middle of something")
    found += [f"git: {wrong}" for wrong in _git(home, story, at_rest)]
    found += [f"results.tsv: {wrong}" for wrong in _ledger(home, story, at_rest)]
    found += [f"runs: {wrong}" for wrong in _runs(home, story, at_rest)]
    return found


def _git(home: Path, story: Story, at_rest: bool) -> Iterator[str]:
    if not story.hashes:
        return
    if damage := git(home, "fsck", "--full", "--strict", "--no-dangling", "--no-progress"):
        yield f"fsck says {damage[:200]!r}"
    branches = git(home, "for-each-ref", "--format=%(refname)", "refs/heads").split()
    form = "%H|%(trailers:key=Experiment,valueonly,separator=)|%(trailers:key=Val-Bpb,valueonly,separator=)|"
    form += "%(trailers:key=Journal,valueonly,separator=)|%(trailers:key=Certificate,valueonly,separator=)|"
    form += "%(trailers:key=Rollback,valueonly,separator=)"
    log = git(home, "log", "--reverse", f"--format={form}", *branches).split()[1:]
    kept = story.branch
    committed = sum(_is_done(story, what) for what in kept)
    # The last may be committed and not journalled as such yet, or the other way about never.
    if len(branches) != 1 or not committed <= len(log) <= (committed if at_rest else len(kept)):
        yield f"{len(log)} commits on {branches}, and {committed} in the journal"
    for told, line in zip(kept, log, strict=False):
        commit, number, score, head, certificate, rollback = line.split("|")
        if isinstance(told, dict) and "request" in told:
            if rollback != told["request"] or head not in story.hashes:
                yield f"commit {line} is not what the journal says of the rollback to {told['target']}"
            continue
        if not isinstance(told, Told):
            if certificate != str(told["certificate"]) or head not in story.hashes:
                yield f"commit {line} is not what the journal says of certificate {told['certificate']}"
            continue
        same = told.commit in (None, commit) and number == str(told.number) and score == f"{told.score:.6f}"
        if not same or head not in story.hashes:
            yield f"commit {line} is not what the journal says of experiment {told.number}"
        if at_rest or line is log[-1]:
            text = git(home, "show", f"{commit}:train.py", strip=False).encode()
            if sha256(text) != told.opened["train_sha256"]:
                yield f"commit {line} holds another train.py than the one that was opened"
    certified = [data["head"] for data in story.certificates if data["outcome"] == "certified"]
    named = git(home, "for-each-ref", "--format=%(objectname)", "refs/glovebox").split()
    if at_rest and named != [story.told[head].commit for head in certified[-1:]]:
        yield f"{named} is named certified, and experiments {certified} are"
    if at_rest and (dirt := git(home, "status", "--porcelain", "--ignored")):
        yield f"the work tree is not the frontier: {dirt}"


def _is_done(story: Story, what: Told | Line) -> bool:
    """Whether the journal has heard of its commit."""
    if not isinstance(what, Told) and "request" in what:
        return what["request"] in story.rolled_back
    return what.commit is not None if isinstance(what, Told) else what["certificate"] < len(story.settled)


def _ledger(home: Path, story: Story, at_rest: bool) -> Iterator[str]:
    path = home / "results.tsv"
    rows = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    closed = story.closed
    behind = 0 if at_rest else len(story.latest)
    if not len(closed) - behind <= len(rows) <= len(closed):
        yield f"{len(rows)} rows for {len(closed)} experiments"
    for told, row in zip(closed, rows, strict=False):
        _, score, _, verdict, _, number, _, _, cause = row.split("\t")
        due = "" if told.score is None else f"{told.score:.6f}"
        if (number, score, verdict, cause) != (str(told.number), due, told.verdict, told.cause or ""):
            yield f"row {row!r} is not what the journal says of experiment {told.number}"


def _runs(home: Path, story: Story, at_rest: bool) -> Iterator[str]:
    folders = {path.name for path in (home / "runs").glob("*")}
    due = {f"{told.number:06d}" for told in story.told if told.attempts}
    untried = {f"{told.number:06d}" for told in story.told if told.closed} - due  # killed before they began
    # What was opened on a slot last may be about to begin, or about to be closed.
    latest = set() if at_rest else {told.number for told in story.latest.values()}
    last = {f"{number:06d}" for number in latest}
    if folders - last != (due | untried) - last or not due <= folders:
        yield f"folders {sorted(folders ^ due)} are missing or nobody's"
    for told in story.told:
        folder = home / "runs" / f"{told.number:06d}"
        if told.attempts and sha256((folder / "train.py").read_bytes()) != told.opened["ran_sha256"]:
            yield f"{folder.name}/train.py is not what was opened"
        described = (folder / "experiment.json").exists()
        if described != told.closed and told.number not in latest:
            yield f"{folder.name}/experiment.json {'is early' if described else 'is missing'}"
        if described and json.loads((folder / "experiment.json").read_bytes())["attempt"] != told.attempts:
            yield f"{folder.name}/experiment.json tells of another attempt"


def git(home: Path, *arguments: str, strip: bool = True) -> str:
    """What the git command says about the research repository."""
    command = ["git", "-c", "safe.directory=*", "-C", str(home / "repo"), *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.strip() if strip else said


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def picture(home: Path) -> dict[str, str]:
    """Hash of every file that a recovery could change, and git's idea of its branches and work tree."""
    names = [home / "audit.jsonl", home / "results.tsv", home / "snapshot.json"]
    files = [path for path in (*names, *(home / "runs").rglob("*")) if path.is_file()]
    hashes = {str(path.relative_to(home)): sha256(path.read_bytes()) for path in files}
    refs = git(home, "for-each-ref") + git(home, "status", "--porcelain", "--ignored")
    return {**hashes, "repo": refs}
