"""A real effort on real containers, whose controller is started and killed from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dataset
from corpus import Request, open_corpus

from controller.failpoints import VARIABLE
from controller.files import PARTIAL
from controller.store.verify import verify
from tests.chaos.engine import Watchman
from tests.chaos.texts import BUDGET_SECONDS, Researcher, Texts
from tests.chaos.victims import Runner
from tests.chaos.witness import Story, picture, problems
from tests.cli.corpus import write_corpus
from tests.support.messages_server import MessagesServer

PROJECT = Path(__file__).parents[2]
FILES = 400
"""Proposals of the `replay` agent; no effort lasts so long."""
ENDS_SECONDS = 600.0
FAR_AWAY = 100_000
_NOWHERE = "unix:///nowhere/engine.sock"

#: Short rows and a small vocabulary: scoring takes little longer than importing torch.
SCALE = dataset.Scale(
    max_seq_len=64,
    vocab_size=512,
    eval_tokens=1 << 11,
    score_tokens=1 << 11,
    holdout_score_tokens=1 << 10,
    max_corpus_bytes=None,
    tokenizer_chars=300_000,
)
SETTINGS = {
    "GLOVEBOX_MIN_FREE_BYTES": "0",
    "GLOVEBOX_NOISE__ENABLED": "false",  # others may well be at work on the machine
    "GLOVEBOX_JUDGE__BATCH_TOKENS": "4096",
    "GLOVEBOX_JUDGE__FIRST_BATCH_SECONDS": "900",  # nor does it matter how long they let a worker wait
    "GLOVEBOX_JUDGE__BATCH_SECONDS": "900",
    "GLOVEBOX_JUDGE__TOTAL_SECONDS": "3000",
    "GLOVEBOX_JUDGE__WORK_SHARE": "1000",  # nor how much it uses
    "GLOVEBOX_JUDGE__LEAK_FRACTION": "0.05",  # honest models: few twins will do
    "GLOVEBOX_JUDGE__MAX_GAIN": "0.015",  # so that the first steps are measured twice
    "GLOVEBOX_REPLICATES": '{"baseline": 2, "every": 4}',
    "GLOVEBOX_CERTIFY": '{"share": 0.5, "keeps": 2, "pairs": 3}',
    "GLOVEBOX_STORAGE__LOG_BYTES": "2000",
    "GLOVEBOX_STORAGE__CALL_BYTES": "60000",
    "GLOVEBOX_CLAUDE__MAX_TURNS": "4",
    "GLOVEBOX_CLAUDE__ANSWER_SECONDS": "4",
    "GLOVEBOX_CLAUDE__PATIENCE_SECONDS": "1",
    "GLOVEBOX_ABSENCE__RETRY_SECONDS": "0.5",
    "GLOVEBOX_ABSENCE__MAX_RETRY_SECONDS": "1",
    "GLOVEBOX_REHEARSAL__SECONDS": "20",
}
KEY = "sk-test-never-to-be-seen"

#: What `verify` says of a home whose controller died while it was closing an experiment.
_MENDED_BY_A_START = re.compile(
    r"results\.tsv lacks \d lines; the next start adds them"
    r"|runs/(\d+)/(?:experiment\.json is missing|run\.log is not what the run printed and the judge found)"
)


def prepare(data: Path) -> None:
    """Small data, made as `glovebox prepare` makes it but for the scale."""
    write_corpus(data.parent / "corpus")
    opened = open_corpus(Request(str(data.parent / "corpus")), data.parent / "downloads", 1, None)
    dataset.build(data, opened, "cpu", SCALE, 1)


@dataclass
class Effort:
    """One home, the command that begins and continues its effort, and what has become of it so far."""

    home: Path
    agent: str
    watchman: Watchman
    environment: Mapping[str, str]
    budget_seconds: float
    patience_seconds: float
    runner: Runner | None = None
    """By way of which the controller works; it has no engine then. It is not alive yet."""
    lives: int = 0
    _journal: bytes = b""
    output: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        data: Path,
        agent: str,
        *,
        slots: int = 1,
        sound: bool = False,
        through_runner: bool = False,
        answer_seconds: float = 0.2,
        training_seconds: float | None = None,
        budget_seconds: float = BUDGET_SECONDS,
        patience_seconds: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Effort]:
        """`agent` is `replay` or `claude`. Removes what is left in the engine at the end.

        Several `slots` have one CPU each. `sound`: nothing that `claude` proposes crashes. It answers after
        `answer_seconds`. With `training_seconds` all that `replay` proposes trains for so long.
        `patience_seconds`: a controller that has not come to its place by then is killed where it is.
        """
        home, texts = folder / "home", Texts(data)
        for source in (path for path in data.rglob("*") if path.is_file()):
            target = home / "data" / source.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        (folder / "baseline.py").write_text(texts.baseline, encoding="utf-8")
        environment = {"GLOVEBOX_TRAIN": str(folder / "baseline.py"), **(environment or {})}
        if slots > 1:
            cpus = sorted(os.sched_getaffinity(0))[:slots]
            environment["GLOVEBOX_SLOTS"] = json.dumps([{"cpus": str(cpu)} for cpu in cpus])
        with ExitStack() as stack:
            if agent == "replay":
                texts.write(folder / "ideas", FILES, training_seconds)
            else:
                server = stack.enter_context(MessagesServer(Researcher(sound, answer_seconds)))
                environment |= {"ANTHROPIC_API_KEY": KEY, "GLOVEBOX_CLAUDE__BASE_URL": server.url}
            watchman = stack.enter_context(Watchman(home, budget_seconds, environment.get("DOCKER_HOST")))
            effort = cls(home, agent, watchman, environment, budget_seconds, patience_seconds)
            if through_runner:
                effort._work_through(stack)
            try:
                yield effort
            finally:
                watchman.remove_leftovers()

    def _work_through(self, stack: ExitStack) -> None:
        told = {"GLOVEBOX_BUDGET__WALL_SECONDS": f"{self.budget_seconds:g}", "GLOVEBOX_DEVICE": "cpu"}
        self.environment = {**self.environment, **told}
        self.runner = stack.enter_context(Runner.open(self.home, self.variables()))
        without = {"GLOVEBOX_RUNNER": str(self.runner.socket), "DOCKER_HOST": _NOWHERE}
        self.environment = {**self.environment, **without}

    # --- lives of the controller ----------------------------------------------------------------

    def start(self, place: str | None = None, experiments: int = FAR_AWAY) -> subprocess.Popen[bytes]:
        """The command, left running; it dies at `place` if one is given."""
        self.lives += 1
        agent = "replay:ideas" if self.agent == "replay" else self.agent
        command = [sys.executable, "-m", "controller", "run", "--home", str(self.home), "--tag", "chaos"]
        command += ["--agent", agent, "--device", "cpu", "--budget", f"{self.budget_seconds:g}"]
        armed = {} if place is None else {VARIABLE: place}
        with (self.home.parent / "glovebox.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--experiments", str(experiments)],
                env={**self.variables(), **armed},
                cwd=self.home.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def variables(self) -> dict[str, str]:
        """The environment of every process of ours, with nothing of this machine's settings or keys."""
        ours = {name: os.environ[name] for name in ("PATH", "LANG", "DOCKER_HOST") if name in os.environ}
        return {**ours, "PYTHONPATH": str(PROJECT), **SETTINGS, **self.environment}

    def die(self, place: str | None, after: float | None = None, more: int | None = None) -> bool:
        """One life that ends with a SIGKILL, after so many seconds at the latest; True if it was at `place`.

        With `more`, it would also end after so many experiments. Raises Failed if it ends by itself.
        """
        told = len(self.story().told) if more is not None else 0
        process = self.start(place, FAR_AWAY if more is None else told + more)
        try:
            status = process.wait(self.patience_seconds if after is None else after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        if status != -signal.SIGKILL:
            raise Failed(f"the controller ended with status {status}: {self.last_words()}")
        return True

    def finish(self, more: int = 0) -> None:
        """Go on to the end of the open experiment, and so many further ones. Raises Failed."""
        limit = len(self.story().told) + more
        with self.start(experiments=limit) as process:
            try:
                status = process.wait(ENDS_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Failed(f"the controller does not end: {self.last_words()}") from None
        if status != 0:
            raise Failed(f"the controller ended with status {status}: {self.last_words()}")

    def order(self, verb: str) -> None:
        """What a person types beside the controller. Raises Failed."""
        command = [sys.executable, "-m", "controller", verb, "--home", str(self.home)]
        said = subprocess.run(command, env=self.variables(), capture_output=True, text=True, check=False)
        if said.returncode != 0:
            raise Failed(f"`glovebox {verb}` ended with status {said.returncode}: {said.stderr}")

    def tear(self) -> None:
        """What a process leaves that dies in the middle of a line."""
        with (self.home / "audit.jsonl").open("ab") as journal:
            journal.write(b'{"data":{"experiment":')

    def last_words(self) -> str:
        return (self.home.parent / "glovebox.log").read_text(errors="replace")[-1500:]

    # --- what is to be seen from outside --------------------------------------------------------

    def wrong(self) -> list[str]:
        """Every contradiction while no controller is alive."""
        if not (self.home / "audit.jsonl").exists():
            return []
        found = self.wrong_alive()
        story = Story.of(self.home)
        latest = {f"{told.number:06d}" for told in story.latest.values()}
        for problem in verify(self.home):
            mended = _MENDED_BY_A_START.fullmatch(problem)
            mine = mended is not None and mended[1] in (None, *latest)
            if not mine and not (story.torn and "is torn after" in problem):
                found.append(f"verify: {problem}")
        return [*found, *problems(self.home, at_rest=False)]

    def wrong_alive(self) -> list[str]:
        """What can be said while a controller is at work."""
        if not (self.home / "audit.jsonl").exists():
            return []
        journal = (self.home / "audit.jsonl").read_bytes()
        found = [] if journal.startswith(self._journal) else ["lines of the journal changed or vanished"]
        self._journal = journal[: journal.rfind(b"\n") + 1]
        return [*found, *self.watchman.overdue()]

    def wrong_at_rest(self, *, sound_machine: bool = True) -> list[str]:
        """The same after a controller has come to the end that it was told.

        On a machine that was not sound, a training may be void; and what its engine did not live to tell of
        the deaths of containers is for others to find out.
        """
        found = [f"verify: {problem}" for problem in verify(self.home)]
        found += problems(self.home, at_rest=True)
        if sound_machine:
            found += [*self.watchman.overdue(), *self.watchman.doubled()]
            found += self.watchman.phantoms(Story.of(self.home).trained)
        found += [f"{name} was left in the engine" for name in self.watchman.leftovers()]
        partial = [path for path in self.home.rglob(f".*{PARTIAL}") if ".git" not in path.parts]
        return found + [f"{path} was left half written" for path in partial]

    def story(self) -> Story:
        """An empty one before the effort has begun."""
        return Story.of(self.home) if (self.home / "audit.jsonl").exists() else Story()

    def picture(self) -> dict[str, str]:
        return picture(self.home)


class Failed(Exception):
    """A controller that did not do what it was started for."""


def until_overdue() -> None:
    """Longer than any trainer may live."""
    time.sleep(BUDGET_SECONDS + 3.0)
