"""runs/000042/: one experiment for people to read: train.py as run, change.diff, run.log, experiment.json.

A projection of the journal, except run.log, which the trainer writes while the experiment runs. No experiment
can write to any of it, and nothing that an experiment wrote to its own disk ends up here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from controller.core.canonical import plain
from controller.core.errors import InfrastructureError
from controller.core.experiment import Experiment
from controller.core.scoring.runlog import excerpt, summary
from controller.core.values import Decision, Refusal, RunOutcome, Score
from controller.failpoints import reach
from controller.files import make_folder, write_atomic
from controller.ports import Attempt

#: Enough of a log's end to contain any traceback worth reading.
_EXCERPT_BYTES = 256 * 1024


class Runs:
    """The runs/ folder of one home."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "runs"

    def folder(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def attempt(self, experiment: Experiment, number: int, budget_seconds: float) -> Attempt:
        """Each with the experiment's seed: what is repeated must not become a second chance."""
        folder = self.folder(experiment.number)
        return Attempt(
            experiment=str(experiment.number),
            number=number,
            train_path=folder / "train.py",
            log_path=folder / "run.log",
            budget_seconds=budget_seconds,
            seed=experiment.seed,
        )

    def write_proposal(self, number: int, *, train_py: str, diff: str) -> None:
        """Write what is about to run. Raises InfrastructureError if it cannot be written."""
        folder = self.folder(number)
        try:
            make_folder(folder.parent)
            make_folder(folder)
            write_atomic(folder / "train.py", train_py.encode("utf-8"))
            reach("proposal-half-written")
            write_atomic(folder / "change.diff", diff.encode("utf-8"))
        except OSError as error:
            raise InfrastructureError(f"{folder} cannot be written: {error.strerror}.") from error

    def finish(self, experiment: Experiment) -> None:
        """Close the folder of a decided experiment. Idempotent.

        Raises InfrastructureError if it cannot be written.
        """
        if experiment.decision is None:
            raise ValueError(f"experiment {experiment.number} is not decided")
        folder = self.folder(experiment.number)
        try:
            make_folder(folder)
            if experiment.outcome is not None:  # a killed one has none
                self.append_summary(
                    folder / "run.log",
                    experiment.outcome,
                    experiment.judgement,
                    experiment.decision,
                    frontier_bpb=experiment.frontier_bpb,
                )
            reach("summary-appended")
            write_atomic(folder / "experiment.json", describe(experiment))
        except OSError as error:
            raise InfrastructureError(f"{folder} cannot be written: {error.strerror}.") from error
        reach("run-closed")

    def is_finished(self, experiment: Experiment) -> bool:
        """True if `finish` has completed."""
        return (self.folder(experiment.number) / "experiment.json").is_file()

    def excerpt(self, number: int) -> str:
        """A sanitised excerpt of run.log for people and LLMs; empty if there is no log."""
        try:
            with (self.folder(number) / "run.log").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _EXCERPT_BYTES))
                return excerpt(file.read(_EXCERPT_BYTES).decode("utf-8", "replace"))
        except FileNotFoundError:
            return ""

    @staticmethod
    def append_summary(
        log_path: Path,
        outcome: RunOutcome,
        judgement: Score | Refusal | None,
        decision: Decision,
        *,
        frontier_bpb: float | None = None,
    ) -> None:
        """Append the controller's own section to run.log. Idempotent. Raises OSError."""
        section = summary(outcome, judgement, decision, frontier_bpb=frontier_bpb).encode("utf-8", "replace")
        content = log_path.read_bytes() if log_path.exists() else b""
        if not content.endswith(section):
            write_atomic(log_path, content + section)


def describe(experiment: Experiment) -> bytes:
    """experiment.json. Without the hold-out score: nobody may pick experiments by it."""
    proposal, score, judgement = experiment.proposal, experiment.score, experiment.judgement
    described = {
        "experiment": experiment.number,
        "description": proposal.description,
        "hypothesis": proposal.hypothesis,
        "agent": proposal.agent,
        "parent": experiment.parent,
        "fixes": proposal.fixes,
        "parameters": proposal.parameters,
        "train_sha256": experiment.train_sha256,
        "seed": experiment.seed,
        "ran_sha256": experiment.ran_sha256,
        "diff_sha256": experiment.diff_sha256,
        "proposal": proposal.number,
        "slot": experiment.slot,
        "opened_at": experiment.opened_at,
        "started_at": experiment.started_at,
        "finished_at": experiment.finished_at,
        "attempt": experiment.attempt,
        "container": experiment.container,
        "budget_seconds": experiment.budget_seconds,
        "outcome": experiment.outcome,
        "score": score.model_dump(exclude={"holdout_bpb", "holdout_bytes", "fresh"}) if score else None,
        "quarantine": experiment.quarantine.reason if experiment.quarantine else None,
        "claim_mismatch": experiment.claim_mismatch,
        "refusal": judgement if isinstance(judgement, Refusal) else None,
        "frontier_bpb": experiment.frontier_bpb,
        "decision": experiment.decision,
        "commit": experiment.commit,
        "provenance": experiment.provenance,
    }
    return json.dumps(plain(described), indent=2, allow_nan=False).encode("ascii") + b"\n"
