"""Made-up efforts, as the journal would tell them: for tests of what only reads records."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from pydantic import JsonValue

from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    ProposalAsked,
    ProposalMade,
    ProposalRefused,
    Purpose,
    Record,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.values import (
    REJECT_CAUSES,
    Cause,
    Claim,
    Decision,
    Draw,
    Fresh,
    Frontier,
    Provenance,
    Refusal,
    RunOutcome,
    Score,
    Usage,
    Verdict,
)

PROVENANCE = Provenance(
    image="sha256:" + "1" * 64,
    data="2" * 64,
    prepare="3" * 64,
    program="4" * 64,
    harness="5" * 64,
    scale="cpu",
    device="cpu",
    engine="29.0",
    runtime="runc",
    controller="0.1.0",
)
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def draw(number: int) -> Draw:
    """That of an effort in which every scoring was confirmed."""
    return Draw(scoring=number, confirmation=number)


def fresh_rows(gap: float) -> Fresh:
    """What a score says about fresh rows, an honest one if the gap is no larger than its errors."""
    return Fresh(rows=24, left=6500, gap=gap, fresh_error=0.05, scored_error=0.02, p_value=0.4)


class Story:
    """Tells an effort event by event; each takes ten seconds, a training its own time."""

    def __init__(
        self,
        tag: str = "mar1",
        provenance: Provenance = PROVENANCE,
        limits: dict[str, JsonValue] | None = None,
    ) -> None:
        self.records: list[Record] = []
        self._now = START
        self._frontier = Frontier(commit="0" * 40)
        self._number = self._proposals = 0
        self._asked: int | None = None
        self._calls = 0
        self.tell(EffortStarted(tag=tag, base_commit="0" * 40))
        self.tell(
            SessionStarted(
                agent="tuner", budget_seconds=300, provenance=provenance, settings={"limits": limits or {}}
            )
        )

    def tell(self, event: AnyEvent, seconds: float = 10) -> None:
        self._now += dt.timedelta(seconds=seconds)
        seq = len(self.records)
        self.records.append(
            Record(
                seq=seq,
                time=self._now.isoformat(timespec="microseconds"),
                experiment=getattr(event, "experiment", None),
                data=event,
                prev=f"{seq:064x}",
                hash=f"{seq + 1:064x}",
            )
        )

    def question(
        self,
        purpose: Purpose | None = None,
        *,
        fixes: int | None = None,
        merges: int | None = None,
        stands_in_for: str | None = None,
    ) -> int:
        """Ask for a proposal, the next to be made; return its number."""
        self._asked = self._proposals
        self._proposals += 1
        self.tell(
            ProposalAsked(
                proposal=self._asked,
                agent="tuner",
                purpose=purpose or ("propose" if self._asked else "baseline"),
                parent=self._frontier.commit,
                fixes=fixes,
                merges=merges,
                stands_in_for=stands_in_for,
            ),
            seconds=0,
        )
        return self._asked

    def answer(self, description: str = "an idea") -> int:
        """The text of the proposal asked for last, which is asked for first if none is; return its number."""
        proposal = self.question() if self._asked is None else self._asked
        self._asked = None
        self.tell(
            ProposalMade(
                proposal=proposal, description=description, hypothesis="It helps.", train_sha256="0" * 64
            ),
            seconds=0,
        )
        return proposal

    def refuse(self, cause: str) -> None:
        self.tell(ProposalRefused(proposal=self.answer(), cause=cause, detail=""))

    def propose(self, description: str = "an idea", stands_in_for: str | None = None) -> None:
        """Begin an experiment and leave it in training."""
        if stands_in_for is not None:
            self.question(stands_in_for=stands_in_for)
        proposal = self.answer(description)
        self.tell(
            ExperimentOpened(
                experiment=self._number,
                proposal=proposal,
                slot=0,
                parent=self._frontier.commit,
                train_sha256="0" * 64,
                seed=7,
                ran_sha256="0" * 64,
                digest="",
                diff_sha256="0" * 64,
            )
        )
        self.tell(
            TrainingStarted(
                experiment=self._number,
                attempt=1,
                container="glovebox-1",
                spec_sha256="0" * 64,
                budget_seconds=300,
            )
        )

    def ask(
        self,
        usd: float | None,
        reply: str = "tool_use",
        *,
        proposal: int | None = None,
    ) -> None:
        """A request for a proposal and its answer; `usd` None: it has not come yet.

        By default the proposal asked for last, which is asked for first if none is.
        """
        if proposal is None:
            proposal = self.question() if self._asked is None else self._asked
        self.tell(
            ApiRequested(
                call=self._calls,
                proposal=proposal,
                mode="next",
                model="some-model",
                parameters={"max_tokens": 1024, "temperature": None},
                request_sha256="a" * 64,
                request_bytes=0,
                reserved_usd=2.0,
            )
        )
        if usd is not None:
            self.tell(
                ApiAnswered(
                    call=self._calls,
                    reply_sha256="b" * 64,
                    reply_bytes=0,
                    stop_reason=reply,
                    usage=Usage(input_tokens=100, cache_read_tokens=300, output_tokens=50),
                    seconds=1.5,
                    cost_usd=usd,
                )
            )
        self._calls += 1

    def fail(self, error: str) -> None:
        """A request that gets no answer and costs nothing."""
        self.ask(None)
        end = ApiFailed(call=self._calls - 1, status=529, error=error, seconds=0.5, cost_usd=0.0)
        self.tell(end)

    def run(
        self,
        description: str,
        result: float | Cause,
        holdout: float | None = None,
        stands_in_for: str | None = None,
        detail: str = "RuntimeError: it failed",
    ) -> None:
        """One whole experiment: a score, or the cause of its failure; `detail`: a crash's last line."""
        self.propose(description, stands_in_for)
        self._finish(result, holdout, detail)

    def crash(self) -> None:
        """The end of an experiment that is in training."""
        self._finish(Cause.SYNTAX, None, "RuntimeError: it failed")

    def _finish(self, result: float | Cause, holdout: float | None, detail: str) -> None:
        number = self._number
        crash = result if isinstance(result, Cause) and result not in REJECT_CAUSES else None
        outcome = RunOutcome(
            seconds=290.5,
            exit_code=1 if crash else 0,
            cause=crash,
            detail=detail if crash else "",
            claim=Claim(val_bpb=float("nan"), depth=4),
        )
        self.tell(TrainingFinished(experiment=number, attempt=1, outcome=outcome), seconds=290.5)
        if crash is None:
            self._judge(result, holdout)
        self._decide(result)
        self._number += 1

    def _judge(self, result: float | Cause, holdout: float | None) -> None:
        self.tell(
            ScoringStarted(
                experiment=self._number,
                attempt=1,
                seed=1,
                draw=draw(self._number),
                specs={},
            )
        )
        score = refusal = None
        if isinstance(result, Cause):
            refusal = Refusal(cause=result, detail="it cheated")
        else:
            fresh = None if holdout is None else fresh_rows(holdout - result)
            score = Score(val_bpb=result, holdout_bpb=holdout, fresh=fresh, bytes=1000, tokens=300, seconds=4)
        self.tell(ScoringFinished(experiment=self._number, attempt=1, score=score, refusal=refusal))

    def _decide(self, result: float | Cause) -> None:
        before = self._frontier.val_bpb
        kept = not isinstance(result, Cause) and (before is None or result < before)
        if isinstance(result, Cause):
            verdict, cause = (Verdict.REJECT if result in REJECT_CAUSES else Verdict.CRASH), result
        else:
            verdict, cause = (Verdict.KEEP, None) if kept else (Verdict.DISCARD, Cause.WORSE)  # type: ignore[assignment]
        decision = Decision(verdict=verdict, cause=cause, rule="R7: as told")
        self.tell(Decided(experiment=self._number, decision=decision, frontier_bpb=before))
        if kept and not isinstance(result, Cause):
            commit = f"{self._number + 1:07x}".ljust(40, "0")
            self.tell(Committed(experiment=self._number, commit=commit))
            self._frontier = Frontier(commit=commit, val_bpb=result, experiment=self._number)


def small(
    descriptions: Sequence[str] = ("MATRIX_LR 0.04 → 0.05", "DEPTH 4 → 6", "a leak", "wider", "deeper"),
) -> Story:
    """Baseline, a keep, a crash, a reject, a discard by a hair, a keep."""
    story = Story()
    story.run("baseline", 2.0, holdout=2.01)
    story.run(descriptions[0], 1.9, holdout=1.93)
    story.refuse("identical")
    story.run(descriptions[1], Cause.OOM)
    story.run(descriptions[2], Cause.NON_CAUSAL)
    story.run(descriptions[3], 1.9005, holdout=1.92)
    story.run(descriptions[4], 1.85, holdout=1.90)
    return story
