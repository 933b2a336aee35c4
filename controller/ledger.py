"""results.tsv: one row for every finished experiment, a projection of the journal.

The first five columns are upstream's, so that notebooks made for it read this file. Differences, on purpose:

* A run without a score has an empty `val_bpb`, never 0: zero would be the best score of all.
* Only kept experiments have a commit of their own. The others show the commit they started from; `experiment`
  is what tells rows apart.
* `memory_gb` is the peak of memory the run claims, empty if it claims none.

Refused proposals are no runs and have no row.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from controller.core.model import InfrastructureError
from controller.core.state import Experiment, ResearchState
from controller.core.untrusted import tsv_cell
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


class Ledger:
    """The results.tsv of one home."""

    def __init__(self, home: Path) -> None:
        self._path = home / NAME

    def publish(self, state: ResearchState) -> None:
        """Bring the file up to date with the state: append what is missing, rewrite what is not ours.

        Raises InfrastructureError if the disk does not take it.
        """
        path, wanted = self._path, render(state).encode("utf-8")
        try:
            present = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if not present or not wanted.startswith(present):
                write_atomic(path, wanted)
            elif missing := wanted[len(present) :]:
                _append(path, missing)
        except OSError as error:
            raise InfrastructureError(f"The ledger {path} cannot be written: {error.strerror}.") from error


def render(state: ResearchState) -> str:
    """The whole ledger as text."""
    rows = [COLUMNS, *(_row(experiment) for experiment in state.finished)]
    return "".join("\t".join(row) + "\n" for row in rows)


def _row(experiment: Experiment) -> tuple[str, ...]:
    score, outcome = experiment.score, experiment.outcome
    return (
        (experiment.commit or experiment.proposal.parent)[:7],
        f"{score.val_bpb:.6f}" if score else "",
        _memory_gb(experiment),
        str(experiment.verdict or ""),
        tsv_cell(experiment.proposal.description),
        str(experiment.number),
        experiment.finished_at or "",
        f"{outcome.seconds:.1f}" if outcome else "",
        str(experiment.cause or ""),
    )


def _memory_gb(experiment: Experiment) -> str:
    outcome = experiment.outcome
    megabytes = outcome.claim.peak_vram_mb if outcome else None
    # The claim is the run's own word: it may be any float there is.
    if megabytes is None or not math.isfinite(megabytes) or not 0 < megabytes < 1e9:
        return ""
    return f"{megabytes / 1024:.1f}"


def _append(path: Path, content: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
