"""verified.json: what `glovebox verify` last said, for views that cannot take the time to run it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.files import write_atomic

NAME = "verified.json"
_LONGEST = 4096


@dataclass(frozen=True)
class Verified:
    """The result of one examination."""

    at: str
    """UTC, ISO 8601."""
    lines: int
    """Of the journal, as it was then."""
    experiments: int
    problems: int
    first: str
    """The first problem; empty if there was none."""
    head: str
    """Hash of the last of those lines."""


def write(home: Path, problems: Sequence[str], state: ResearchState, now: dt.datetime) -> None:
    """Replace the last result. A home that cannot be written to keeps it: examining only reads."""
    result = Verified(
        at=now.isoformat(timespec="seconds"),
        lines=state.seq + 1,
        experiments=len(state.finished),
        problems=len(problems),
        first=clean_line(problems[0]) if problems else "",
        head=state.head,
    )
    with contextlib.suppress(OSError):
        write_atomic(home / NAME, json.dumps(asdict(result)).encode("ascii") + b"\n")


def read(home: Path) -> Verified | None:
    """The last result; None if there is none that can be read."""
    try:
        with (home / NAME).open("rb") as file:
            told = json.loads(file.read(_LONGEST))
        at = dt.datetime.fromisoformat(told["at"]).astimezone(dt.UTC).isoformat(timespec="seconds")
        lines, experiments, problems = (int(told[name]) for name in ("lines", "experiments", "problems"))
        first, head = clean_line(str(told["first"])), clean_line(str(told["head"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return Verified(at, lines, experiments, problems, first, head)
