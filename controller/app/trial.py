"""`glovebox try`: one train.py, run and scored exactly like an experiment, outside the frontier."""

from __future__ import annotations

import datetime as dt
import secrets
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.app.home import read_standing
from controller.app.machine import Machine
from controller.app.run import read_train
from controller.core.decision import Bounds, claim_bound, decide
from controller.core.errors import InfrastructureError
from controller.core.hardware.disturbance import spoiling
from controller.core.program.seeding import SEED_BITS, seeded
from controller.core.values import Decision, Frontier, Refusal, RunOutcome, Score, Verdict, Work
from controller.files import write_atomic
from controller.ports import Attempt
from controller.settings import Settings
from controller.store import worker_log
from controller.store.runs import Runs

KEPT_TRIALS = 20
"""Folders of earlier tries that stay in the home; older ones are removed."""


@dataclass(frozen=True)
class Trial:
    """What one try came to."""

    folder: Path
    seed: int
    outcome: RunOutcome
    judgement: Score | Refusal | None
    bounds: Bounds

    @property
    def decision(self) -> Decision:
        """As if it were a baseline: `keep` means it was scored."""
        return decide(Frontier(commit=""), self.outcome, self.judgement)

    def as_json(self) -> dict[str, Any]:
        """The hold-out score stays out: what a person tunes on must not be it either."""
        score = self.judgement if isinstance(self.judgement, Score) else None
        refusal = self.judgement if isinstance(self.judgement, Refusal) else None
        disturbed = spoiling(self.outcome)
        failed = self.decision.verdict is not Verdict.KEEP
        return {
            "val_bpb": score.val_bpb if score else None,
            "verdict": self.decision.verdict.value if failed else "scored",
            "cause": self.decision.cause.value if self.decision.cause else None,
            "detail": refusal.detail if refusal else self.outcome.detail,
            "seed": self.seed,
            "seconds": self.outcome.seconds,
            "scoring_seconds": score.seconds if score else None,
            "work": [work.model_dump() for work in self.judgement.work] if self.judgement else [],
            "disturbed": disturbed.detail if disturbed else None,
            "claim": self.outcome.claim.model_dump(exclude_none=True),
            "claim_mismatch": bool(
                score and claim_bound(self.outcome.claim.val_bpb, score, self.bounds) is not None
            ),
            "log": str(self.folder / "run.log"),
        }

    def as_text(self) -> str:
        result = self.as_json()
        log = f"log: {result['log']}"
        if result["disturbed"]:
            log = f"disturbed, so try again: {result['disturbed']}\n{log}"
        if (words := self.folder / worker_log.NAME).exists():
            log = f"{log}\nwhat its workers printed, for you alone: {words}"
        if result["val_bpb"] is None:
            return f"{result['verdict']} ({result['cause']}): {result['detail']}\n{log}"
        odd = "; the run itself claimed something else" if result["claim_mismatch"] else ""
        return (
            f"val_bpb {result['val_bpb']:.6f} after {result['seconds']:.1f} s, "
            f"scored in {result['scoring_seconds']:.1f} s, seed {self.seed}{odd}\n{log}"
        )


def run(
    config: Settings,
    file: Path,
    stop: threading.Event,
    reference: Sequence[Work] | None = None,
    seed: int | None = None,
) -> Trial:
    """Run `file` once, with a seed that is drawn unless one is given.

    Its workers may use what those of an experiment may: `reference` is what the baseline's used, by default
    as the home's journal tells it, if it does.

    Raises UserError for a file that cannot be run, NotReady, InfrastructureError, Interrupted, and
    VerificationFailed if a file that containers mount was changed.
    """
    train_py = read_train(file)
    machine = Machine.assemble(config)
    slot = machine.slots[0]
    if reference is None:
        reference = read_standing(config.home)[0].reference
    folder = _new_folder(config.home)
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    write_atomic(folder / "train.py", seeded(train_py, seed).encode())  # readable for the users of containers
    attempt = Attempt(
        experiment="try",
        number=1,
        train_path=folder / "train.py",
        log_path=folder / "run.log",
        budget_seconds=config.budget.wall_seconds,
        seed=seed,
    )
    slot.trainer.discard(attempt)  # what a try that was killed left behind
    try:
        if slot.monitor is not None:
            slot.monitor.ready(stop)
        outcome = slot.trainer.train(attempt, stop, lambda elapsed: None)
        judgement = None if outcome.cause else _score(machine, attempt, stop, reference)
        machine.check_inputs()
    finally:
        slot.trainer.discard(attempt)
        machine.close_monitors()
    trial = Trial(folder, seed, outcome, judgement, config.judge.bounds)
    try:
        Runs.append_summary(folder / "run.log", outcome, judgement, trial.decision)
    except OSError as error:
        raise InfrastructureError(f"run.log could not be written: {error}.") from error
    return trial


def _score(
    machine: Machine, attempt: Attempt, stop: threading.Event, reference: Sequence[Work]
) -> Score | Refusal:
    """Every score is confirmed: a person who tries a file wants to know whether it would be believed."""
    return machine.slots[0].judge.score(
        attempt, secrets.randbits(63), lambda score: True, stop, reference=reference
    )


def _new_folder(home: Path) -> Path:
    tries = home / "tries"
    folder = tries / dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder.mkdir(parents=True)
    for old in sorted(tries.iterdir())[:-KEPT_TRIALS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
