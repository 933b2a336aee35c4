"""`glovebox watch`: what `run` shows in its terminal, of an effort that another process works at."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from pathlib import Path
from typing import TextIO

from controller.app.home import read_standing, require_effort
from controller.core.experiment import Phase
from controller.core.state import ResearchState, apply
from controller.observers.terminal import Terminal
from controller.ports import Clock

_LOOK_SECONDS = 0.5


def watch(home: Path, stream: TextIO, stop: threading.Event, clock: Clock) -> None:
    """Show it until `stop`. Reads the home only. Raises UserError, VerificationFailed."""
    require_effort(home)
    state, archive = read_standing(home)
    with contextlib.closing(Terminal(stream, clock, state)) as terminal:
        while not stop.wait(_LOOK_SECONDS):
            for record in archive.follow():
                apply(state, record)
                archive.forget(state)
                terminal.recorded(record, state)
            _tell_progress(terminal, state, clock.now())
            terminal.alive()


def _tell_progress(terminal: Terminal, state: ResearchState, now: dt.datetime) -> None:
    """How far the trainings are, as their starts in the journal tell."""
    for experiment in state.open:
        if experiment.phase is Phase.TRAINING and experiment.started_at and experiment.budget_seconds:
            elapsed = (now - dt.datetime.fromisoformat(experiment.started_at)).total_seconds()
            limit = experiment.budget_seconds
            terminal.training(experiment.number, min(max(0.0, elapsed), limit), limit)
