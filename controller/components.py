"""What a loop acts on, and when it stops of its own accord."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.core.decision import Bounds
from controller.core.events import AnyEvent, Record
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.state import ResearchState
from controller.ports import (
    Agent,
    Clock,
    Journal,
    Judge,
    Observer,
    Rehearsal,
    Repository,
    Slot,
    Surroundings,
    Trainer,
)
from controller.proposals.availability import AbsenceConfig
from controller.retry import PatienceConfig
from controller.store.runs import Runs


@dataclass(frozen=True)
class Limits:
    """When to stop without being asked (R12)."""

    experiments: int | None = None
    """Number of experiments of the effort, the baseline included."""
    hours: float | None = None
    """Hours of the effort: while a controller was at work, pauses included."""
    dollars: float | None = None
    """Spent on the effort's agent."""
    dollars_per_day: float | None = None
    """The same, on one UTC day; it is waited for the next one."""


@dataclass
class World:
    """Everything the loop acts on. Assembled once, by the composition root."""

    journal: Journal
    repository: Repository
    agent: Agent
    trainer: Trainer
    judge: Judge
    runs: Runs
    clock: Clock
    observer: Observer
    stop: threading.Event
    publish: Callable[[ResearchState], None]
    """Bring ledger and snapshot up to date with the state, which stands at the journal's last line."""
    check_inputs: Callable[[], None]
    """Raises VerificationFailed if a file that containers mount is not what it was."""
    surroundings: Surroundings
    bounds: Bounds
    """Beyond which a score is noted or measured again."""
    prune: Callable[[ResearchState, Callable[[AnyEvent], Record]], None] = lambda state, record: None
    """Remove what exceeds the limits on storage, once it is on record."""
    understudy: Agent | None = None
    """Proposes while the agent is away, if `absence` says so."""
    absence: AbsenceConfig = field(default_factory=AbsenceConfig)
    patience: PatienceConfig = field(default_factory=PatienceConfig)
    rehearsal: Rehearsal | None = None
    """None: nothing is rehearsed."""
    slot: Slot | None = None
    """None: a disturbed run is repeated at once."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
