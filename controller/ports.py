"""What the loop needs from the world, as Protocols. All on one page: it is what an adapter has to be.

Adapters implement these; tests use the real ones. The few fakes that exist live in `tests/support/fakes.py`
and pass the same contract tests as the real adapter.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import VolumeSpec
from controller.core.events import AnyEvent, Record
from controller.core.experiment import Experiment
from controller.core.keeps import NO_KEEPS, Keeps
from controller.core.notebook import Notebook
from controller.core.proposal import Proposal
from controller.core.rules import Wish
from controller.core.state import ResearchState
from controller.core.statistics.hopeless import LossLimits
from controller.core.steering_request import SteeringRequest
from controller.core.values import (
    Change,
    Conditions,
    Disturbance,
    Draw,
    Frontier,
    Refusal,
    RehearsalResult,
    RunOutcome,
    Score,
    Usage,
    Work,
)


class Clock(Protocol):
    def now(self) -> dt.datetime:
        """Wall clock, UTC. For people and for comparing with the engine's time stamps."""

    def monotonic(self) -> float:
        """Seconds that never step. For every deadline."""


class Journal(Protocol):
    """audit.jsonl and its blobs."""

    def append(self, event: AnyEvent) -> Record:
        """Write one event durably (fsync) and return it with its place in the chain."""

    def put_blob(self, content: bytes) -> str:
        """Store content durably under its sha256 and return that."""

    def get_blob(self, sha256: str) -> bytes:
        """Raises VerificationFailed if the blob is missing or is not what its name says."""


class Repository(Protocol):
    """The research git repository; its branch `autoresearch/<tag>` is the frontier's line."""

    def begin(self, tag: str, files: Mapping[str, str]) -> str:
        """Create the branch for a new effort with these files as its first commit; return the commit.

        Idempotent.
        Raises UserError if the branch exists with other content.
        """

    def head(self) -> str:
        """Full hash of the branch's last commit."""

    def read(self, commit: str, name: str) -> str:
        """Text of one file at one commit."""

    def commit(self, train_py: str, message: str, trailers: Mapping[str, str]) -> str:
        """Commit a kept train.py on top of the branch and return the full hash.

        Doing it twice for one `Experiment` trailer returns the same commit.
        """

    def take_back(self, commit: str, message: str, trailers: Mapping[str, str]) -> str:
        """Commit the content of an earlier commit on top of the branch and return the full hash.

        Idempotent for each first trailer: the same commit is returned again.
        """

    def certify(self, commit: str, note: str) -> None:
        """Name a commit of the branch the effort's certified head, and attach a note to it. Idempotent."""

    def merge(self, base: str, ours: str, theirs: str) -> str | None:
        """Three-way merge of texts: `ours` with what `theirs` changed in `base`. None if the two conflict."""

    def reset(self) -> None:
        """Work tree and index are exactly the head of the branch afterwards, whatever they were before."""


@dataclass(frozen=True)
class Request:
    """One request to a language model, for the record and for the money."""

    mode: str
    """What the digest of history asked for."""
    model: str
    parameters: Mapping[str, JsonValue]
    """Temperature, effort, limits: what shapes the answer besides the body."""
    body: bytes
    """As sent, without the key."""
    reserve_usd: float
    """The most it can cost."""


class Services(Protocol):
    """What the controller does for an agent that is asked for one proposal. Safe to use from any thread."""

    stop: threading.Event
    """Set when the question is broken off; every wait of an agent ends then, with Interrupted."""

    def sending(self, request: Request) -> int:
        """Put a request on record before it is sent; return the number of the call.

        Raises AgentExhausted if it might exceed the money of the effort, AgentAway if that of the day; what
        is in flight counts in full.
        """

    def answered(
        self, call: int, *, reply: bytes, stop_reason: str, usage: Usage, seconds: float, cost_usd: float
    ) -> None: ...

    def failed(
        self, call: int, *, status: int | None, error: str, usage: Usage, seconds: float, cost_usd: float
    ) -> None: ...

    def objection(self, train_py: str) -> str | None:
        """Why this text would be refused before it trains, in words for the agent; None if it would not."""

    def rehearse(self, train_py: str) -> str | None:
        """Build the model and take one step in a sealed container: what went wrong, fit for an agent to read.

        None if nothing did, or if that could not be found out. Raises Interrupted.
        """


@dataclass(frozen=True)
class Context:
    """All an agent is told before it proposes."""

    program: str
    """program.md, verbatim."""
    interface: str
    """The public part of prepare.py."""
    frontier: Frontier
    train_py: str
    """The frontier's train.py; every proposal starts from it."""
    history: Sequence[Experiment]
    """Every finished experiment in the order in which they finished, without its hold-out score. Old ones lie
    on the disk."""
    finished: Callable[[int], Experiment]
    """The same by number. Raises LookupError for one that is not finished."""
    notebook: Notebook
    """What is worth remembering of them."""
    running: Sequence[Experiment]
    """The experiments that are on their way while this proposal is made; their verdicts are open."""
    waiting: Sequence[Proposal]
    """Other proposals that are ready and wait for a slot."""
    scale: str
    """`cpu` or `gpu`."""
    source: Callable[[int], str]
    """train.py of an earlier experiment, by number, as it ran."""
    diff: Callable[[int], str]
    """The change of an earlier experiment against its parent, by number, as `diff -u` writes it."""
    excerpt: Callable[[int], str]
    """A safe excerpt of an earlier experiment's run.log, by number."""
    services: Services
    keeps: Keeps = NO_KEEPS
    """What the keeps so far are worth."""
    instructions: Sequence[str] = ()
    """What a person wants to be considered this time, in that person's words."""


class Agent(Protocol):
    name: str
    asks_ahead: bool
    """True if it is a language model: slow, not free, and it reads a person's instructions. Then it is asked
    while experiments train; with several slots, several threads ask it at once.
    """

    def propose(self, context: Context) -> Change:
        """Raises AgentError (try again), AgentAway, AgentExhausted (never again), Interrupted."""

    def fix(self, context: Context, crashed: Experiment) -> Change | None:
        """One repair of a trivial crash, or None if this agent cannot. Raises what `propose` does."""

    def combine(self, context: Context, behind: Experiment) -> Change | None:
        """The frontier with the change of an experiment that it lacks; a merge of the two texts conflicts.

        None if this agent cannot. Raises what `propose` does.
        """


@dataclass(frozen=True)
class Exit:
    """How a container ended, in the engine's words."""

    exit_code: int | None
    oom_killed: bool
    seconds: float
    """FinishedAt - StartedAt as the engine measured it."""
    killed: bool
    """True if we killed it at its deadline."""
    kill_sent_seconds: float | None = None
    """When our SIGKILL was sent, since its start; None if none went to it while it ran."""


class Leftovers(Protocol):
    """What recovery needs of a Sandbox. Both methods raise InfrastructureError when the engine fails."""

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        """Force-remove; what is gone already is fine."""

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """Names of this home's containers and volumes, except those of the experiments in `keep`."""


class Sandbox(Leftovers, Protocol):
    """Container life cycle. Every method raises InfrastructureError when the engine fails."""

    def create_volume(self, spec: VolumeSpec) -> None: ...

    def start(self, spec: ContainerSpec) -> float:
        """Create and start; return the Clock's monotonic time of the container's start.

        What the engine created is compared with `spec` before it starts.
        """

    def begin(self, name: str) -> None:
        """Give a container that waits (`ContainerSpec.waits`) the word to begin.

        What must hold when code of its domain starts is seen to first. A word that comes before its PID 1
        listens is lost: repeat it, which changes nothing otherwise.
        """

    def follow(
        self, name: str, sink: Callable[[bytes], None], since: float | None = None
    ) -> threading.Thread:
        """Stream stdout and stderr from the container's first byte into `sink` until it ends.

        `since`: only what it printed after that time, in Unix seconds.
        """

    def wait(
        self,
        name: str,
        *,
        deadline: float,
        stop: threading.Event,
        tick: Callable[[], None] | None = None,
    ) -> Exit:
        """Wait until the container ends, SIGKILL it at `deadline` (Clock.monotonic).

        `tick` is called about once a second. Raises Interrupted as soon as `stop` is set; the container
        runs on.
        """

    def running_since(self, name: str) -> float | None:
        """Clock.monotonic time of the container's start, or None if it does not exist or never started.

        Also answers for a container that has ended; `wait` then returns at once.
        """

    def alive(self, name: str) -> bool:
        """True while the container runs."""

    def output(self, name: str, limit: int) -> bytes:
        """The last `limit` bytes of a container's stdout (stderr excluded)."""

    def kill(self, name: str) -> None:
        """SIGKILL; a container that is gone or dead is fine."""

    def close(self) -> None:
        """Let go of the engine; containers run on."""

    def usage(self, names: Collection[str] = ()) -> Mapping[str, float] | None:
        """CPU seconds that these containers have used so far, by name; without names, each running container
        of this home. Those that have ended are missing.

        None if the runtime does not count them, or if the engine is on another machine than we are, so that
        our /proc says nothing about it.
        """

    def describe(self) -> Mapping[str, str]:
        """`engine`, `image` (digest), `runtime` for the provenance; `root`, the engine's own folder; `users`:
        `mapped` or `rootless` if root in a container is not root on the host, else `shared`; `confinement`:
        the kernel's access control, in words; `isolation`: `caches emptied` or `shared caches`, and for the
        latter `obstacle`, why.

        Raises NotReady if something is missing.
        """


@dataclass(frozen=True)
class Attempt:
    """One try at running one experiment. Names every container and volume of it."""

    experiment: str
    """Its number, or `try` for one outside the frontier."""
    number: int
    train_path: Path
    """The proposal as it runs, read-only for everybody."""
    log_path: Path
    """run.log, written by us alone."""
    budget_seconds: float
    seed: int = 42
    """What the run and its workers find as `prepare.SEED`; by default what it is outside a sandbox."""
    limits: LossLimits | None = None
    """Of its training loss: a run that is `hopeless` by them is ended. None: none is."""


class Watch(Protocol):
    """Looks at the slot while one attempt trains."""

    def conclude(self, began: float) -> Conditions | None:
        """To be called right after T's end; `began` is its start, Clock.monotonic.

        None if nothing could be measured. Never raises: a run is not worse for not having been watched.
        """

    def close(self) -> None:
        """Stop looking. Idempotent."""


class Monitor(Protocol):
    """Looks at a slot for noisy neighbours. No method fails when something cannot be found out."""

    def ready(self, stop: threading.Event) -> None:
        """To be called when a training is due and nothing of ours is on the slot. It returns at once, but for
        the first time in hours, when it takes until the slot has been looked at."""

    def watch(self, attempt: Attempt, stop: threading.Event) -> Watch:
        """Begin to look, before T is started or when it is adopted. T waits for nothing."""

    def vacated(self) -> None:
        """The last container of ours that could use the slot is gone."""

    def look(self, stop: threading.Event) -> Disturbance | None:
        """What disturbs the slot while no T runs; None if nothing does. Takes some seconds, unless `stop` is
        set."""

    def close(self) -> None:
        """Look no more. Idempotent."""


class Trainer(Protocol):
    """Runs T for one attempt."""

    def spec(self, attempt: Attempt) -> ContainerSpec: ...

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        """Start T, or adopt it if it is running or has ended already, and see it through to its end.

        The workspace survives until `discard`. `tick` gets the seconds since the container's start.
        Raises InfrastructureError, Interrupted.
        """

    def discard(self, attempt: Attempt) -> None:
        """Remove every container and volume of the attempt. Idempotent."""


class Judge(Protocol):
    """Runs W and J for the checkpoint T left in its workspace."""

    def specs(self, attempt: Attempt, seed: int, draw: Draw | None = None) -> Sequence[ContainerSpec]:
        """Every container that `score` may start. Raises InfrastructureError."""

    def make_ready(self, attempt: Attempt, seed: int, draw: Draw | None, left: float) -> None:
        """Start what the scoring of an attempt will need, if it ends within `left` seconds and that is soon.

        It waits until `score` is called with the same arguments. Returns at once and never fails.
        """

    def dismiss(self) -> None:
        """End what was made ready and is not needed. Never fails."""

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        """A score for which `contends` is true comes back confirmed, or as a refusal; others unconfirmed.

        `draw` gives it rows that no other scoring of its effort got; None: it is of no effort, as a try, and
        gets rows that are set aside for those. `reference` is what the baseline's workers used; with it, each
        worker may use so much and a share of the budget, and is refused as over-budget beyond that
        (core/scoring/allowance.py). What was used is in the result, refused or not.

        Raises InfrastructureError, Interrupted. Leaves no container or exchange volume behind.
        """


class Rehearsal(Protocol):
    """Builds the model of a text that may become an experiment and takes one step with it, sealed off.

    One at a time for each home; any thread may ask, also while T, W and J of an experiment run. The caller
    journals the result, and tells the agent about `failed` alone, its detail fenced.
    """

    def rehearse(self, train_py: str, stop: threading.Event) -> RehearsalResult:
        """Raises Interrupted. Trouble with engine or disk is a result, `inconclusive`: nobody has to wait
        for a rehearsal. Leaves no container and no file behind.
        """


class Surroundings(Protocol):
    """What must be right before an experiment begins, besides the engine. It is asked about once a second."""

    def wish(self) -> Wish: ...

    def requests(self) -> tuple[SteeringRequest, ...]:
        """What persons have asked for, oldest first, until it is `answered`."""

    def answered(self, request: str) -> None:
        """Forget a request whose answer is on record. Idempotent. Raises InfrastructureError."""

    def shortage(self, share: float = 1.0) -> str | None:
        """A sentence if there is less disk space than `share` of what a run should find; None if there is."""


class Observer(Protocol):
    """Hears of events while they happen: the terminal's live view, the JSON log, the heartbeat."""

    def recorded(self, record: Record, state: ResearchState) -> None: ...

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        """Said about once a second while an experiment trains."""

    def alive(self) -> None:
        """Said between two actions of the loop, and at least every 30 s while it waits for something."""
