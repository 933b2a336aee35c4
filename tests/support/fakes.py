"""Trainer and Judge without containers, and services without a journal, for tests of loop and agents.

tests/sandbox/test_contract.py and tests/proposals/test_services.py hold them to the contracts of the real
ones.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from controller.core.containers.config import Limits
from controller.core.containers.domains import Domain
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import VolumeSpec
from controller.core.errors import AgentExhausted, InfrastructureError, Interrupted
from controller.core.events import Record
from controller.core.program.policy import check
from controller.core.rules import Wish
from controller.core.scoring import allowance, worker_report
from controller.core.scoring.allowance import Allowance, allowances
from controller.core.scoring.curve import POINTS, CurveReader
from controller.core.scoring.runlog import claim, crash_cause
from controller.core.state import ResearchState
from controller.core.statistics.hopeless import hopeless
from controller.core.steering_request import SteeringRequest
from controller.core.values import (
    Cause,
    Conditions,
    CpuConditions,
    Curve,
    Disturbance,
    DisturbanceKind,
    Draw,
    Fresh,
    Refusal,
    RunOutcome,
    Score,
    Usage,
    Work,
)
from controller.ports import Attempt, Exit, Request

TRAIN = '''"""A train.py the fakes understand."""

WIDTH = {width}  # {note}
SALT = {salt}


def build_model():
    return WIDTH, SALT
'''


def train_py(width: float, note: str = "", salt: int = 0) -> str:
    """A proposal that the fake judge scores as `width`; `note` can make it misbehave (see FakeTrainer)."""
    return TRAIN.format(width=width, note=note, salt=salt)


class Silent:
    """An observer that looks away."""

    def recorded(self, record: Record, state: ResearchState) -> None: ...

    def training(self, experiment: int, elapsed: float, limit: float) -> None: ...

    def alive(self) -> None: ...


class HandClock:
    """Both hands move only by hand, and not always together."""

    def __init__(self) -> None:
        self.wall = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
        self.seconds = 0.0

    def now(self) -> dt.datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += dt.timedelta(seconds=seconds)


class Hasty(threading.Event):
    """A stop event; to wait for it moves the clock and takes no time. `meanwhile` is called in each wait."""

    def __init__(self, clock: HandClock, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._clock, self._meanwhile = clock, meanwhile

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._clock.sleep(timeout)
        self._meanwhile()
        return self.is_set()


@dataclass
class RoomyHome:
    """Surroundings in which nobody wishes a pause and there is room, until a test says otherwise."""

    wished: Wish = field(default_factory=lambda: Wish(paused=False))
    short: bool = False
    asked: list[SteeringRequest] = field(default_factory=list)

    def wish(self) -> Wish:
        return self.wished

    def requests(self) -> tuple[SteeringRequest, ...]:
        return tuple(self.asked)

    def answered(self, request: str) -> None:
        self.asked = [one for one in self.asked if one.id != request]

    def shortage(self, share: float = 1.0) -> str | None:
        return "The disk is full." if self.short else None


@dataclass
class FakeTrainer:
    """Runs nothing: what a run would have done stands in the comment behind WIDTH.

    `crash NAME` ends it with that exception, `stopped` behaves as if a person had pressed Ctrl-C while it
    ran, `broken` as if the engine had failed under the first attempt. `claims NUMBER` prints that as its own
    val_bpb. `disturbed NUMBER` has somebody else load the machine during so many first attempts, `occupied`
    has the GPU in use before them, `lost` loses it. `trains NUMBER` reports that loss in every part of its
    time.
    """

    finished: dict[tuple[str, int], RunOutcome] = field(default_factory=dict)
    workspaces: set[tuple[str, int]] = field(default_factory=set)
    started: list[tuple[str, int]] = field(default_factory=list)

    def spec(self, attempt: Attempt) -> ContainerSpec:
        return ContainerSpec(
            name=f"fake-{attempt.experiment}-{attempt.number}",
            domain=Domain.TRAINER,
            image="none",
            command=(),
            user="10001:10001",
            limits=Limits(),
            seccomp="{}",
            life_seconds=attempt.budget_seconds,
            log_bytes=1,
            labels={},
        )

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        key = attempt.experiment, attempt.number
        if key in self.finished:
            if key not in self.workspaces:
                raise InfrastructureError("the workspace is gone")
            return self.finished[key]
        self.started.append(key)
        note = attempt.train_path.read_text(encoding="utf-8").split("#", 1)[1].split("\n", 1)[0].strip()
        if note == "stopped":
            stop.set()
        if stop.is_set():
            raise Interrupted("asked to stop")
        if note == "broken" and attempt.number == 1:
            raise InfrastructureError("the engine went away")
        tick(0.0)
        self.workspaces.add(key)
        self.finished[key] = self._run(attempt, note)
        return self.finished[key]

    def _run(self, attempt: Attempt, note: str) -> RunOutcome:
        crashes = note.startswith("crash ")
        log = (
            f"Traceback (most recent call last):\n{note.removeprefix('crash ')}: boom\n"
            if crashes
            else f"fine\nval_bpb: {note.removeprefix('claims ')}\n"
        )
        try:
            attempt.log_path.write_text(log, encoding="utf-8")
        except OSError as error:
            raise InfrastructureError(f"run.log could not be written: {error.strerror}.") from error
        exit_code = 1 if crashes else 0
        cause, detail = crash_cause(log, exit_code=exit_code, oom_killed=False, killed_at_limit=False)
        curve = _curve(attempt.budget_seconds, note)
        if attempt.limits is not None and (reason := hopeless(curve, attempt.limits)) is not None:
            exit_code, cause, detail = 137, Cause.HOPELESS, reason
        return RunOutcome(
            seconds=attempt.budget_seconds,
            exit_code=exit_code,
            cause=cause,
            detail=detail,
            claim=claim(log),
            curve=curve,
            log_sha256=hashlib.sha256(log.encode()).hexdigest(),
            log_bytes=len(log),
            conditions=_conditions(attempt.number, note),
        )

    def discard(self, attempt: Attempt) -> None:
        self.workspaces.discard((attempt.experiment, attempt.number))


LOAD = Disturbance(kind=DisturbanceKind.CPU_LOAD, measured=0.5, limit=0.25, detail="Others were busy.")
SHARED = Disturbance(kind=DisturbanceKind.GPU_SHARED, before=True, detail="Others used the GPU.")
LOST = Disturbance(kind=DisturbanceKind.GPU_LOST, detail="The GPU was lost.")
_NOISES = {"disturbed": LOAD, "occupied": SHARED, "lost": LOST}


def _curve(budget_seconds: float, note: str) -> Curve:
    word, _, loss = note.partition(" ")
    reader = CurveReader(budget_seconds)
    for place in range(POINTS if word == "trains" else 0):
        seconds = (place + 0.5) * budget_seconds / POINTS
        reader.feed(f"report: step={place} seconds={seconds:.4f} loss={loss}\n".encode())
    return reader.curve


def _conditions(attempt: int, note: str) -> Conditions | None:
    word, _, attempts = note.partition(" ")
    if word not in _NOISES:
        return None
    cpu = CpuConditions(seconds=20.0, ours=0.5, others=0.5, contended=0.5)
    return Conditions(cpu=cpu, disturbances=(_NOISES[word],) if attempt <= int(attempts) else ())


@dataclass
class FakeMonitor:
    """Looks away while an attempt trains; later sees what it was told to see, then nothing."""

    sees: Sequence[Disturbance | None] = field(default_factory=list)
    looks: int = 0

    def ready(self, stop: threading.Event) -> None: ...

    def watch(self, attempt: Attempt, stop: threading.Event) -> FakeWatch:
        return FakeWatch()

    def vacated(self) -> None: ...

    def close(self) -> None: ...

    def look(self, stop: threading.Event) -> Disturbance | None:
        self.looks += 1
        return self.sees[self.looks - 1] if self.looks <= len(self.sees) else None


class FakeWatch:
    def conclude(self, began: float) -> Conditions | None:
        return None

    def close(self) -> None: ...


@dataclass
class FakeJudge:
    """Scores a run as the WIDTH in its train.py; a negative one is refused as non-causal.

    A note `unsteady` makes the second score of a run another one than the first; `slow` lets the worker of
    the first attempt answer too late; `knows` does far worse on fresh rows. Workers use WORK; with the note
    `heavy` more than they may, if there is a reference. `deserts` ends the second worker before it has
    confirmed anything. `lucky` scores better by the share LUCK the first time that this text is scored.
    """

    trainer: FakeTrainer
    chance: float = 0.0
    """Standard deviation of a run, as a share of its width; drawn with the attempt's seed."""
    scored: list[tuple[str, int]] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    """Texts that were scored."""
    ready: tuple[Attempt, int, Draw | None] | None = None
    """For whose scoring everything waits."""
    seeds: list[tuple[int, bool]] = field(default_factory=list)
    """Of each scoring, and whether it had been made ready."""

    def make_ready(self, attempt: Attempt, seed: int, draw: Draw | None, left: float) -> None:
        self.ready = attempt, seed, draw

    def dismiss(self) -> None:
        self.ready = None

    def specs(self, attempt: Attempt, seed: int, draw: Draw | None = None) -> list[ContainerSpec]:
        return [replace(self.trainer.spec(attempt), name="fake-judge", domain=Domain.JUDGE)]

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        if stop.is_set():
            raise Interrupted("asked to stop")
        if (attempt.experiment, attempt.number) not in self.trainer.workspaces:
            raise InfrastructureError("the workspace is gone")
        text = attempt.train_path.read_text(encoding="utf-8")
        found = re.search(r"^WIDTH = (\S+)", text, re.MULTILINE)
        assert found is not None
        width = float(found[1]) * (1.0 + self.chance * Random(attempt.seed).gauss(0.0, 1.0))
        if "# lucky" in text and text not in self.known:
            width *= 1.0 - LUCK
        self.known.add(text)
        key = attempt.experiment, attempt.number
        self.seeds.append((seed, self.ready == (attempt, seed, draw)))
        self.ready = None
        if key in self.scored and "unsteady" in text:
            width *= 1.01
        self.scored.append(key)
        if "# slow" in text and attempt.number == 1:
            return Refusal(cause=Cause.WORKER_TIMEOUT, detail="no reply in time")
        if width < 0:
            return Refusal(cause=Cause.NON_CAUSAL, detail="it saw the future")
        allowed = allowances(reference, share=0.1, budget_seconds=attempt.budget_seconds, cpus=2)
        work = [_used(limits, heavy="# heavy" in text) for limits in allowed]
        if (excess := allowance.excess(work[0])) is not None:
            return Refusal(cause=Cause.OVER_BUDGET, detail=excess, work=(work[0],))
        score = Score(
            val_bpb=width,
            holdout_bpb=width + 0.1234567,
            bytes=1000,
            tokens=400,
            holdout_bytes=500,
            fresh=Fresh(
                rows=24,
                left=100,
                gap=0.9 if "# knows" in text else 0.1234567,
                fresh_error=0.1,
                scored_error=0.02,
                p_value=2.5e-5 if "# knows" in text else 0.3,
            ),
            seconds=0.1,
            work=(work[0],),
        )
        if not contends(score):
            return score
        if "# deserts" in text:
            refusal = worker_report.doubted(worker_report.refusal(1, b"", 1))
            return refusal.model_copy(update={"work": tuple(work)})
        return score.model_copy(update={"confirmed": True, "work": tuple(work)})


LUCK = 0.02
WORK = Work(wall_seconds=8.1, cpu_seconds=9.3)


def _used(allowed: Allowance, *, heavy: bool) -> Work:
    cpu = 1.1 * allowed.cpu if heavy and allowed.cpu is not None else WORK.cpu_seconds
    return Work(
        wall_seconds=WORK.wall_seconds,
        cpu_seconds=cpu,
        allowed_wall_seconds=allowed.wall,
        allowed_cpu_seconds=allowed.cpu,
    )


@dataclass(frozen=True)
class Ended:
    """How one call ended at the desk."""

    cost_usd: float
    usage: Usage
    reply: bytes = b""
    stop_reason: str = ""
    status: int | None = None
    error: str = ""


@dataclass
class FakeServices:
    """Remembers the calls. `refuses` and `fails` say what it answers about a text."""

    frontier_py: str | None = None
    dollars: float | None = None
    refuses: Callable[[str], str | None] = lambda train_py: None
    fails: Callable[[str], str | None] = lambda train_py: None
    requests: list[Request] = field(default_factory=list)
    ended: dict[int, Ended] = field(default_factory=dict)
    rehearsed: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def sending(self, request: Request) -> int:
        costs = [
            self.ended[call].cost_usd if call in self.ended else sent.reserve_usd
            for call, sent in enumerate(self.requests)
        ]
        if self.dollars is not None and sum(costs) + request.reserve_usd > self.dollars:
            raise AgentExhausted("no money left")
        self.requests.append(request)
        return len(self.requests) - 1

    def answered(
        self, call: int, *, reply: bytes, stop_reason: str, usage: Usage, seconds: float, cost_usd: float
    ) -> None:
        self._end(call, Ended(cost_usd, usage, reply=reply, stop_reason=stop_reason))

    def failed(
        self, call: int, *, status: int | None, error: str, usage: Usage, seconds: float, cost_usd: float
    ) -> None:
        self._end(call, Ended(cost_usd, usage, status=status, error=error))

    def objection(self, train_py: str) -> str | None:
        objection = check(train_py, self.frontier_py)
        return objection.detail if objection else self.refuses(train_py)

    def rehearse(self, train_py: str) -> str | None:
        self.rehearsed.append(train_py)
        return self.fails(train_py)

    def _end(self, call: int, ended: Ended) -> None:
        if call in self.ended or call >= len(self.requests):
            raise ValueError(f"call {call} is not on its way")
        self.ended[call] = ended


class EmptyEngine:
    """A Sandbox on an engine that holds and starts nothing; see tests/sandbox/runner/test_contract.py."""

    def create_volume(self, spec: VolumeSpec) -> None:
        raise InfrastructureError("no volume can be made")

    def start(self, spec: ContainerSpec) -> float:
        raise InfrastructureError("no container can be made")

    def begin(self, name: str) -> None:
        raise InfrastructureError(f"no container {name}")

    def follow(
        self, name: str, sink: Callable[[bytes], None], since: float | None = None
    ) -> threading.Thread:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        return thread

    def wait(
        self,
        name: str,
        *,
        deadline: float,
        stop: threading.Event,
        tick: Callable[[], None] | None = None,
    ) -> Exit:
        raise InfrastructureError(f"no container {name}")

    def running_since(self, name: str) -> float | None:
        return None

    def alive(self, name: str) -> bool:
        return False

    def output(self, name: str, limit: int) -> bytes:
        raise InfrastructureError(f"no container {name}")

    def kill(self, name: str) -> None: ...

    def usage(self, names: Collection[str] = ()) -> Mapping[str, float] | None:
        return {}

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None: ...

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        return [], []

    def close(self) -> None: ...

    def describe(self) -> Mapping[str, str]:
        return {
            "engine": "none",
            "image": "sha256:0",
            "runtime": "runc",
            "root": "",
            "users": "shared",
            "confinement": "none",
            "isolation": "shared caches",
            "obstacle": "there is no engine",
        }
