"""The heartbeat of a running effort: what it is doing, and when the next beat is due.

Health checks read it from another process. Times are on the monotonic clock, which all processes of a machine
share. It is one small block written in place, so that it works on a full disk.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from controller.core.events import Record
from controller.core.experiment import Phase
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.ports import Clock
from controller.views.conditions import paused, waiting

NAME = "heartbeat"
ENDED = "ended: "
"""Prefix of the last beat of a process that could still report why it ended."""
_BYTES = 512
#: Longer than any engine request, git, fsync or check of the data's hashes should take.
_USUAL_SECONDS = 300.0


@dataclass(frozen=True)
class Beat:
    """The last heartbeat of one process."""

    process: int
    due: float
    """Clock.monotonic time by which the next one is due."""
    doing: str


class Heartbeat:
    """Implements `ports.Observer`. Write errors are ignored."""

    def __init__(self, home: Path, clock: Clock, *, scoring_seconds: float, asking_seconds: float) -> None:
        """Scoring, and waiting for an agent, may be silent for this long. The home's lock must be held."""
        self._path = home / NAME
        self._clock = clock
        self._scoring_seconds, self._asking_seconds = scoring_seconds, asking_seconds
        self._state = ResearchState()
        self._due: dict[int, float] = {}
        """By experiment under way: when the next thing is to be heard of it, Clock.monotonic."""
        self.show("starting")

    def show(self, doing: str, seconds: float = 0.0) -> None:
        """Write a beat; the next follows within `seconds` plus the usual time."""
        due = min([self._clock.monotonic() + seconds + _USUAL_SECONDS, *self._due.values()])
        sign = f"{os.getpid()} {due:.0f} {clean_line(doing, _BYTES)}".encode("ascii", "replace")
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(descriptor, sign.ljust(_BYTES)[:_BYTES], 0)
            finally:
                os.close(descriptor)

    def recorded(self, record: Record, state: ResearchState) -> None:
        self._state = state
        under_way = {known.number for known in state.open if known.under_way}
        self._due = {number: due for number, due in self._due.items() if number in under_way}
        for number in under_way:  # one that an earlier process left under way has to be heard of, too
            if number == record.experiment or number not in self._due:
                self._expect(number, state.experiments[number].phase)
        self.alive()

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        self._expect(experiment, Phase.TRAINING)
        self.show(f"training experiment {experiment}, {elapsed:.0f} of {limit:.0f} s")

    def alive(self) -> None:
        state, under_way = self._state, [known for known in self._state.open if known.under_way]
        noises = [slot.noise for slot in state.slots.values() if slot.noise is not None]
        pauses = [pause for pause in (state.pause, *(slot.pause for slot in state.slots.values())) if pause]
        if under_way:
            seconds = max(self._seconds(known.phase) for known in under_way)
            self.show("; ".join(f"experiment {known.number}: {known.phase}" for known in under_way), seconds)
        elif pauses:
            self.show(paused(pauses[0]))
        elif state.steering.held and not state.open and state.slots.keys() <= state.steering.held.keys():
            self.show(f"waiting: slot {min(state.steering.held)} is paused by a person")
        elif noises:
            self.show(f"waiting {waiting(noises[0])}")
        elif not state.open:
            away = "; the agent is absent" if state.absence else ""
            self.show(f"waiting for a proposal{away}", self._asking_seconds)
        else:
            self.show(f"experiment {state.open[0].number}: {state.open[0].phase}")

    def _expect(self, experiment: int, phase: Phase) -> None:
        self._due[experiment] = self._clock.monotonic() + self._seconds(phase) + _USUAL_SECONDS

    def _seconds(self, phase: Phase) -> float:
        return self._scoring_seconds if phase is Phase.SCORING else 0.0


def read(home: Path) -> Beat | None:
    """The last heartbeat, if there is one that can be read."""
    try:
        with (home / NAME).open("rb") as file:
            process, due, *words = file.read(_BYTES).decode("ascii").split()
        return Beat(int(process), float(due), clean_line(" ".join(words)))
    except (OSError, ValueError):
        return None
