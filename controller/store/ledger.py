"""results.tsv: one row per finished experiment, a projection of the journal.

The first five columns are upstream's, so that notebooks written for it read this file. Deliberate
differences:

* A run without a score has an empty `val_bpb`, never 0: zero would be the best possible score.
* Only kept experiments have their own commit. The others show the commit they started from; `experiment`
  identifies the row.
* `memory_gb` is the peak memory that the run claims; empty if it claims none.

Refused proposals were never run and have no row.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from controller.core.errors import InfrastructureError
from controller.core.experiment import Experiment
from controller.core.state import ResearchState
from controller.core.untrusted import tsv_cell
from controller.failpoints import reach
from controller.files import write_atomic

NAME = "results.tsv"
COLUMNS = (
    "commit",
    "val_bpb",
    "memory_gb",
    "status",
    "description",
    "experiment",
    "timestamp",
    "seconds",
    "error",
)
_HEADER = "\t".join(COLUMNS) + "\n"
_NUMBER = COLUMNS.index("experiment")
_LONGER_THAN_A_ROW = 64 * 1024


class Ledger:
    """The results.tsv of one home."""

    def __init__(self, home: Path) -> None:
        self._path = home / NAME

    def publish(self, state: ResearchState) -> None:
        """Bring the file up to date: append missing rows, or rewrite it if it does not match the state.

        Only its first line and its end are checked, so that a row costs the same however many there are;
        changes in between are for `verify` to find. Raises InfrastructureError if it cannot be written.
        """
        path = self._path
        reach("ledger-due")
        try:
            rows = _rows_of(path, state)
            if rows is None:
                write_atomic(path, render(state).encode("utf-8"))
            elif rows < len(state.finished):
                _append(path, "".join(map(_line, state.finished[rows:])).encode("utf-8"))
        except OSError as error:
            raise InfrastructureError(f"The ledger {path} cannot be written: {error.strerror}.") from error
        reach("ledger-written")


def render(state: ResearchState) -> str:
    """The whole ledger as text."""
    return _HEADER + "".join(map(_line, state.finished))


def _rows_of(path: Path, state: ResearchState) -> int | None:
    """How many rows the file has, after removing a torn one; None if it is not a prefix of our ledger."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("r+b") as file:
        if file.read(len(_HEADER)) != _HEADER.encode("ascii"):
            return None
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LONGER_THAN_A_ROW, 0))
        end = file.read()
        whole, newline, torn = end.rpartition(b"\n")
        if torn:
            file.truncate(size - len(torn))
    last = (whole.rpartition(b"\n")[2] + newline).decode("utf-8", "replace")
    if last == _HEADER:
        return 0
    number = last.split("\t")[_NUMBER] if last.count("\t") == len(COLUMNS) - 1 else ""
    place = _place(int(number), state) if number.isdecimal() else None
    return place + 1 if place is not None and last == _line(state.finished[place]) else None


def _place(number: int, state: ResearchState) -> int | None:
    """Which row an experiment has. The last row of a ledger is among the latest to finish, as a rule."""
    latest = range(len(state.order) - 1, -1, -1)
    return next((place for place in latest if state.order[place] == number), None)


def _line(experiment: Experiment) -> str:
    return "\t".join(_row(experiment)) + "\n"


def _row(experiment: Experiment) -> tuple[str, ...]:
    score, outcome = experiment.score, experiment.outcome
    return (
        tsv_cell(experiment.commit or experiment.parent)[:7],
        f"{score.val_bpb:.6f}" if score else "",
        _memory_gb(experiment),
        str(experiment.verdict or ""),
        tsv_cell(experiment.description),
        str(experiment.number),
        experiment.finished_at or "",
        f"{outcome.seconds:.1f}" if outcome else "",
        str(experiment.cause or ""),
    )


def _memory_gb(experiment: Experiment) -> str:
    outcome = experiment.outcome
    megabytes = outcome.claim.peak_vram_mb if outcome else None
    # The claim is the run's own: it may be any float.
    if megabytes is None or not math.isfinite(megabytes) or not 0 < megabytes < 1e9:
        return ""
    return f"{megabytes / 1024:.1f}"


def _append(path: Path, content: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
