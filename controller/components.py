"""What a loop acts on, put together once by `controller.app`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.core.events import AnyEvent, Record
from controller.core.rules import Rules
from controller.core.state import ResearchState
from controller.ports import (
    Agent,
    Clock,
    Journal,
    Judge,
    Monitor,
    Observer,
    Rehearsal,
    Repository,
    Surroundings,
    Trainer,
)
from controller.store.runs import Runs


@dataclass
class Slot:
    """One place where one experiment at a time can run."""

    trainer: Trainer
    judge: Judge
    monitor: Monitor | None = None
    """None: nobody looks for noise, and a disturbed run is repeated at once."""


@dataclass
class Components:
    """Everything the loop acts on."""

    journal: Journal
    repository: Repository
    agents: Sequence[Agent]
    """The agent, and its understudy if there is one."""
    slots: Sequence[Slot]
    rules: Rules
    runs: Runs
    clock: Clock
    observer: Observer
    stop: threading.Event
    """Set when a person asks to stop."""
    publish: Callable[[ResearchState], None]
    """Bring ledger and snapshot up to date with the state, which stands at the journal's last line."""
    check_inputs: Callable[[], None]
    """Raises VerificationFailed if a file that containers mount is not what it was."""
    surroundings: Surroundings
    prune: Callable[[ResearchState, Callable[[AnyEvent], Record]], None] = lambda state, record: None
    """Remove what exceeds the limits on storage, once it is on record."""
    hire: Callable[[str], Sequence[Agent]] | None = None
    """The agent of a name, and its understudy if it has one. Raises UserError. None: there is no other."""
    rehearsal: Rehearsal | None = None
    """None: nothing is rehearsed."""
