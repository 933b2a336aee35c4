"""What a rejected program costs: it is not run again, from whatever frontier. Pure.

A file that tries something and is found out, or ends itself before it is, could otherwise try again after
every keep, until it is lucky.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.experiment import Experiment
from controller.core.program.policy import Objection, digest
from controller.core.values import Cause, Refusal, Verdict


@dataclass(frozen=True)
class Suspicion:
    """Why a program is not run again."""

    experiment: int
    verdict: Verdict
    cause: Cause


def suspicion(finished: Experiment) -> Suspicion | None:
    """None if there is nothing against running the same program once more from another frontier.

    To fail where the same checkpoint was served before, and be it for memory, is a crash once.
    """
    verdict, cause, judgement = finished.verdict, finished.cause, finished.judgement
    served = finished.quarantine is not None or (isinstance(judgement, Refusal) and judgement.confirming)
    deserted = served and verdict is Verdict.CRASH
    if verdict is None or cause is None or not (verdict is Verdict.REJECT or deserted):
        return None
    return Suspicion(finished.number, verdict, cause)


def suspected(train_py: str, suspects: Mapping[str, Suspicion]) -> Objection | None:
    """The objection to a program that is among `suspects`, which are by digest."""
    if (found := suspects.get(digest(train_py))) is None:
        return None
    ended = "was rejected" if found.verdict is Verdict.REJECT else "failed when its score was to be confirmed"
    return Objection(
        "suspect",
        f"the same program {ended} in experiment {found.experiment} ({found.cause}) and is not run again",
    )
