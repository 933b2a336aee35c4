"""Where the time of an effort goes, out of its journal. Pure."""

from __future__ import annotations

import datetime as dt
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from controller.core.events import (
    Decided,
    Record,
    ScoringFinished,
    ScoringStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.values import Claim, Decision, RunOutcome, Score

EARNEST_SECONDS = 300.0
"""The budget that experiments an hour are reckoned for."""
_CONFIRMED = 0.2
"""Share of experiments whose score is good enough to be confirmed."""
_PACE = re.compile(r"\b(\d+(?:\.\d+)?) ?ms\b")


@dataclass(frozen=True)
class Row:
    """One experiment, the attempt that counted. Times are those of the journal, in Unix seconds."""

    number: int
    budget: float
    began: float
    """`training_started`."""
    trained: float = 0.0
    """`training_finished`."""
    outcome: RunOutcome | None = None
    scoring: float | None = None
    """`scoring_started`."""
    scored: float | None = None
    """`scoring_finished`."""
    score: Score | None = None
    decision: Decision | None = None

    @property
    def life(self) -> float:
        """Seconds that T lived."""
        return self.outcome.seconds if self.outcome else 0.0

    @property
    def before(self) -> float:
        """Seconds from `training_started` to T's start; where that is not on record, what follows T too."""
        known = self.outcome.start_seconds if self.outcome else None
        return known if known is not None else self.trained - self.began - self.life

    @property
    def after(self) -> float:
        """Seconds from T's end to `training_finished`: its output, and the slot after it."""
        return self.trained - self.began - self.life - self.before

    @property
    def scoring_seconds(self) -> float | None:
        """From the end of training to the score, or the refusal."""
        return self.scored - self.trained if self.scored is not None else None

    @property
    def confirmed(self) -> bool:
        return self.score is not None and self.score.confirmed

    @property
    def lateness(self) -> tuple[float, float] | None:
        """Seconds from the limit to our SIGKILL, from there to the end; None if it ended first."""
        if self.outcome is None or self.outcome.kill_sent_seconds is None:
            return None
        sent = self.outcome.kill_sent_seconds
        return sent - self.budget, self.life - sent


def rows(records: Iterable[Record]) -> list[Row]:
    """Of every experiment whose training has ended; of those that were repeated, the last attempt."""
    found: dict[int, Row] = {}
    for record in records:
        number, at = record.experiment, dt.datetime.fromisoformat(record.time).timestamp()
        match record.data:
            case TrainingStarted(budget_seconds=budget) as event:
                found[event.experiment] = Row(event.experiment, budget, at)
            case TrainingFinished(outcome=outcome) as event:
                found[event.experiment] = replace(found[event.experiment], trained=at, outcome=outcome)
            case ScoringStarted() as event:
                found[event.experiment] = replace(found[event.experiment], scoring=at)
            case ScoringFinished(score=score) as event:
                found[event.experiment] = replace(found[event.experiment], scored=at, score=score)
            case Decided(decision=decision) if number in found:
                found[number] = replace(found[number], decision=decision)
    return [row for row in found.values() if row.outcome is not None]


@dataclass(frozen=True)
class Pace:
    """What an hour comes to at 300 s, one score in five confirmed."""

    overhead: float
    """Seconds of an experiment in which T does not live: before it, and scoring."""
    between: float
    """What else passes from one training to the next: after T, decision, commit, the next proposal."""

    @property
    def an_hour(self) -> float:
        return 3600 / (EARNEST_SECONDS + self.overhead)

    @property
    def share(self) -> float:
        """Of the time in which a T lives."""
        return EARNEST_SECONDS / (EARNEST_SECONDS + self.overhead)

    @property
    def all_told(self) -> Pace:
        """With what lies between."""
        return Pace(self.overhead + self.between, 0.0)


def pace(experiments: Sequence[Row]) -> Pace:
    """Raises ValueError if none of them was scored."""
    times = [(row.scoring_seconds or 0.0, row.confirmed) for row in experiments if row.score is not None]
    plain = [seconds for seconds, confirmed in times if not confirmed]
    proved = [seconds for seconds, confirmed in times if confirmed]
    if not plain and not proved:
        raise ValueError("no experiment was scored")
    scoring = (1 - _CONFIRMED) * _mean(plain or proved) + _CONFIRMED * _mean(proved or plain)
    gaps = [
        max(0.0, later.began - (row.scored or row.trained)) + max(0.0, row.after)
        for row, later in pairwise(experiments)
    ]
    return Pace(_mean([row.before for row in experiments]) + scoring, _mean(gaps) if gaps else 0.0)


def tokens_per_second(claim: Claim, log: str) -> float | None:
    """At the pace of the second half of the lines that say how long a step takes; None if none do."""
    paces = [float(found) for found in _PACE.findall(log)]
    if not paces or not claim.total_tokens_M or not claim.num_steps:
        return None
    settled = statistics.median(paces[len(paces) // 2 :])
    return claim.total_tokens_M * 1e6 / claim.num_steps / settled * 1000 if settled else None


def first_step(claim: Claim) -> float | None:
    """Seconds from T's start to its first settled step, as the run itself says."""
    if claim.startup_seconds is None:
        return None
    return claim.startup_seconds + (claim.compile_seconds or 0.0)


def table(experiments: Sequence[Row]) -> Iterator[str]:
    """For people."""
    yield "  #   before T     life   kill sent   gone after   scoring   confirmed    val_bpb   verdict"
    for row in experiments:
        late = row.lateness
        sent, gone = (f"{late[0]:+.3f}", f"{late[1]:.3f}") if late else ("", "")
        scoring = "" if row.scoring_seconds is None else f"{row.scoring_seconds:.1f}"
        bpb = f"{row.score.val_bpb:.6f}" if row.score else ""
        verdict = row.decision.verdict.value if row.decision else ""
        cause = f" {row.decision.cause}" if row.decision and row.decision.cause else ""
        yield (
            f"{row.number:3d} {row.before:10.2f} {row.life:8.1f} {sent:>11} {gone:>12} {scoring:>9} "
            f"{'yes' if row.confirmed else '':>11} {bpb:>10}   {verdict}{cause}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
