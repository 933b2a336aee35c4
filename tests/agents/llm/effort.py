"""What the tests of the `claude` agent share: a clock that waits for nobody, a context, a history."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.conversation import Claude
from controller.core.experiment import Experiment, Phase
from controller.core.notebook import Notebook
from controller.core.values import Cause, Claim, Decision, Frontier, Refusal, RunOutcome, Score, Verdict
from controller.ports import Context
from tests.support.experiments import a_proposal, an_experiment
from tests.support.fakes import FakeServices
from tests.support.messages_server import Body, MessagesServer, ScriptedResearcher, Step

KEY = "sk-test-3f9a61c0de-never-to-be-seen"
HOLDOUT = 0.123456789
TRAIN_PY = '''"""A small model."""

WIDTH = 64  # channels
DEPTH = 2  # blocks


def build_model():
    return WIDTH, DEPTH


def train():
    print("training")
    print("done")


if __name__ == "__main__":
    train()
'''


@dataclass
class FakeClock:
    """Time passes only where somebody waits for it."""

    time: dt.datetime = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)
    seconds: float = 1000.0

    def now(self) -> dt.datetime:
        return self.time

    def monotonic(self) -> float:
        return self.seconds


class Stop(threading.Event):
    """Waits by advancing the clock, and remembers for how long."""

    def __init__(self, clock: FakeClock, set_after: int | None = None) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._clock = clock
        self._set_after = set_after

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self._clock.seconds += timeout
        self._clock.time += dt.timedelta(seconds=timeout)
        if self._set_after is not None and len(self.waits) >= self._set_after:
            self.set()
        return self.is_set()


def learnt(history: Iterable[Experiment]) -> Notebook:
    """What is remembered of them."""
    notebook = Notebook()
    for finished in history:
        notebook.learn(finished)
    return notebook


@dataclass
class Bench:
    """An agent, its services and the server behind it."""

    server: MessagesServer
    config: ClaudeConfig
    clock: FakeClock
    stop: Stop
    services: FakeServices
    agent: Claude

    @classmethod
    def build(
        cls,
        server: MessagesServer,
        *,
        stop_after: int | None = None,
        refuses: Callable[[str], str | None] = lambda train_py: None,
        fails: Callable[[str], str | None] = lambda train_py: None,
        dollars: float | None = None,
        **settings: Any,
    ) -> Bench:
        config = ClaudeConfig(base_url=server.url, **settings)
        clock = FakeClock()
        stop = Stop(clock, stop_after)
        services = FakeServices(
            frontier_py=TRAIN_PY, refuses=refuses, fails=fails, dollars=dollars, stop=stop
        )
        return cls(server, config, clock, stop, services, Claude(config, SecretStr(KEY), clock))

    def context(self, history: Sequence[Experiment] = (), **changes: Any) -> Context:
        given: dict[str, Any] = {
            "program": "# The research program\n\nMake val_bpb low.",
            "interface": PREPARE_PY,
            "frontier": Frontier(commit="c" * 40, val_bpb=1.5, experiment=0),
            "train_py": TRAIN_PY,
            "history": history,
            "finished": lambda number: _at(history, number),
            "notebook": changes.get("notebook") or learnt(history),
            "running": (),
            "waiting": (),
            "scale": "cpu",
            "source": lambda number: TRAIN_PY.replace("64", str(100 + number)),
            "diff": lambda number: f"-WIDTH = 64\n+WIDTH = {100 + number}\n",
            "excerpt": lambda number: "step 10 loss 3.2",
            "services": self.services,
        }
        return Context(**{**given, **changes})

    @property
    def bodies(self) -> list[Body]:
        return [received.body for received in self.server.received]

    @property
    def spent(self) -> float:
        return sum(ended.cost_usd for ended in self.services.ended.values())


def _at(history: Sequence[Experiment], number: int) -> Experiment:
    """Here they finish in the order of their numbers. Raises LookupError."""
    if number < 0:
        raise LookupError(number)
    return history[number]


PREPARE_PY = '''"""What a train.py can rely on."""

EVAL_TOKENS = 1000  # of the dev split


def time_left() -> float:
    """Seconds until this run is killed."""
    return _secret()


def _secret() -> float:
    return 1.0
'''


def scripted(*conversations: Sequence[Step]) -> MessagesServer:
    return MessagesServer(ScriptedResearcher(conversations))


def experiment(
    number: int,
    *,
    bpb: float | None = None,
    frontier_bpb: float | None = 1.5,
    cause: Cause | None = None,
    description: str = "",
    idea: str = "",
    train_sha256: str = "0" * 64,
    parameters: dict[str, Any] | None = None,
    claim: Claim | None = None,
) -> Experiment:
    """A finished experiment: kept if it beat the frontier, else discarded, else crashed or rejected."""
    if bpb is not None:
        kept = frontier_bpb is None or bpb < frontier_bpb
        verdict = Verdict.KEEP if kept else Verdict.DISCARD
        cause = None if kept else Cause.WORSE
    else:
        verdict, cause = Verdict.CRASH, cause or Cause.EXIT
    score = None if bpb is None else Score(val_bpb=bpb, holdout_bpb=HOLDOUT, bytes=1000, tokens=400)
    return an_experiment(
        number,
        a_proposal(
            number,
            description=description or f"change {number}",
            hypothesis=f"it helps, says {number}",
            agent="claude",
            parent="c" * 40,
            idea=idea,
            parameters=parameters or {},
            train_sha256=train_sha256,
        ),
        digest=train_sha256,
        opened_at="2026-11-21T12:00:00Z",
        phase=Phase.DONE,
        outcome=RunOutcome(
            seconds=300.0, exit_code=0, detail="secret detail of the run", claim=claim or Claim(num_steps=812)
        ),
        judgement=score or Refusal(cause=cause or Cause.EXIT, detail="secret detail of the judge"),
        decision=Decision(verdict=verdict, cause=cause, rule="R7"),
        frontier_bpb=frontier_bpb,
        budget_seconds=300.0,
    )


@dataclass
class Told:
    """The texts of a request, for looking through."""

    body: Body
    texts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [text for message in self.body["messages"] for text in _texts(message["content"])]

    @property
    def opening(self) -> str:
        return "\n".join(_texts(self.body["messages"][0]["content"]))

    @property
    def last(self) -> str:
        return "\n".join(_texts(self.body["messages"][-1]["content"]))


def _texts(blocks: list[Body]) -> list[str]:
    found = []
    for block in blocks:
        if block["type"] == "text":
            found.append(str(block["text"]))
        elif block["type"] == "tool_result":
            found += _texts(block["content"])
    return found
