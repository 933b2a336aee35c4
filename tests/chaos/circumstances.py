"""What is done to an effort so that its controller comes to a place that is not on its usual course."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.chaos.effort import Effort
from tests.chaos.plan import PRELUDES, Kill

_NOISY = {"GLOVEBOX_NOISE__CPU_SHARE": "0.05"}


def at_place(effort: Effort, kill: Kill) -> bool:
    """One life that ends at the place; False if it did not come there. Raises Failed."""
    if prelude := PRELUDES.get(kill.place):
        at_place(effort, Kill("place", prelude))
    with _circumstances(effort, kill.place):
        more = 1 if "session_stopped" in kill.place else None
        return effort.die(f"{kill.place}:{kill.nth}", more=more)


@contextmanager
def _circumstances(effort: Effort, place: str) -> Iterator[None]:
    if "journal_repaired" in place:
        effort.tear()
        yield
    elif place.endswith("-paused"):
        if not (effort.home / "audit.jsonl").exists():
            effort.die("after-effort_started")
        effort.order("pause")
        yield
        effort.order("continue")
    elif place.endswith("-slot_disturbed"):
        with _settings(effort, _NOISY), _load():
            yield
    else:
        yield


@contextmanager
def _settings(effort: Effort, other: Mapping[str, str]) -> Iterator[None]:
    before = effort.environment
    effort.environment = {**before, **other}
    yield
    effort.environment = before


@contextmanager
def _load() -> Iterator[None]:
    """Somebody else uses every CPU of the machine."""
    command = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(command) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
