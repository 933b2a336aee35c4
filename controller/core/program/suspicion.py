"""A rejected program is not run again, from any frontier. Pure.

Otherwise a program that cheats, and is caught or ends itself first, could try again after every keep until it
gets lucky.
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
    """Why not to run the same program again from another frontier; None if there is no reason.

    A crash while its score was being confirmed counts, even if out of memory: the same checkpoint was served
    before.
    """
    verdict, cause, judgement = finished.verdict, finished.cause, finished.judgement
    served = finished.quarantine is not None or (isinstance(judgement, Refusal) and judgement.confirming)
    deserted = served and verdict is Verdict.CRASH
    if verdict is None or cause is None or not (verdict is Verdict.REJECT or deserted):
        return None
    return Suspicion(finished.number, verdict, cause)


def suspected(train_py: str, suspects: Mapping[str, Suspicion]) -> Objection | None:
    """The objection to a program that is among `suspects`, keyed by digest."""
    if (found := suspects.get(digest(train_py))) is None:
        return None
    ended = "was rejected" if found.verdict is Verdict.REJECT else "failed when its score was to be confirmed"
    return Objection(
        "suspect",
        f"the same program {ended} in experiment {found.experiment} ({found.cause}) and is not run again",
    )
