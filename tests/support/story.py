"""A home as a controller leaves it, made by the real adapters; only the containers' answers are invented."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from controller.core.decision import contends, decide
from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    ApiRequested,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    ProposalAsked,
    ProposalMade,
    Record,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.experiment import Experiment
from controller.core.program.policy import digest
from controller.core.state import ResearchState, apply
from controller.core.values import Cause, Claim, Provenance, Refusal, RunOutcome, Score, Usage, Verdict
from controller.store.journal import Journal, read_records, sha256
from controller.store.ledger import Ledger
from controller.store.repository import GitRepository
from controller.store.runs import Runs
from tests.support.efforts import draw, fresh_rows

BASELINE = "DEPTH = 4\nmodel = DEPTH\n"
PROVENANCE = Provenance(
    image="sha256:1", data="d", prepare="p", program="m", harness="h", scale="cpu", device="cpu"
)


class TickingClock:
    """One second passes every time somebody looks."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> dt.datetime:
        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        self._seconds += 1.0
        return self._seconds


class Story:
    """An effort that can be told further, one experiment at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.journal = Journal(home, TickingClock())
        self.repository = GitRepository(home / "repo")
        self.runs = Runs(home)
        self.ledger = Ledger(home)
        self.state = ResearchState()
        for record in read_records(home):
            apply(self.state, record)
        if self.state.tag is not None:
            self.repository = GitRepository(home / "repo", self.state.tag)

    def record(self, event: AnyEvent) -> Record:
        record = self.journal.append(event)
        apply(self.state, record)
        return record

    def ask(self, cost_usd: float | None, usage: Usage | None = None) -> None:
        """A request to a language model for the next experiment; cost None: its answer has not come yet."""
        call, proposal = self.state.spending.next_call, self._asked()
        request, reply = b"request %d" % call, b"reply %d" % call
        self.record(
            ApiRequested(
                call=call,
                proposal=proposal,
                model="some-model",
                request_sha256=self.journal.put_blob(request),
                request_bytes=len(request),
                reserved_usd=1.0,
            )
        )
        if cost_usd is not None:
            self.record(
                ApiAnswered(
                    call=call,
                    reply_sha256=self.journal.put_blob(reply),
                    reply_bytes=len(reply),
                    stop_reason="tool_use",
                    usage=usage or Usage(),
                    seconds=1.0,
                    cost_usd=cost_usd,
                )
            )

    def _asked(self) -> int:
        """The proposal that is being asked for; a new one if none is."""
        open_ = [number for number, known in self.state.proposals.items() if not known.is_made]
        if open_:
            return open_[0]
        assert self.state.frontier is not None
        number = self.state.next_proposal
        self.record(
            ProposalAsked(
                proposal=number,
                agent="replay" if number else "baseline",
                purpose="propose" if number else "baseline",
                parent=self.state.frontier.commit,
            )
        )
        return number

    def begin(self) -> None:
        files = {"train.py": BASELINE, "prepare.py": "# data\n", "program.md": "Try things.\n"}
        self.record(EffortStarted(tag="test", base_commit=self.repository.begin("test", files)))
        self.record(SessionStarted(agent="replay", budget_seconds=20, provenance=PROVENANCE))
        self.ledger.publish(self.state)

    def propose(self, train_py: str, description: str = "an idea") -> int:
        """The proposal of the next experiment, put down and about to run."""
        assert self.state.frontier is not None
        number, diff, proposal = self.state.next_number, f"+{train_py}", self._asked()
        sha256_ = self.journal.put_blob(train_py.encode())
        self.record(
            ProposalMade(
                proposal=proposal, description=description, hypothesis="it helps", train_sha256=sha256_
            )
        )
        self.record(
            ExperimentOpened(
                experiment=number,
                proposal=proposal,
                slot=0,
                parent=self.state.frontier.commit,
                train_sha256=sha256_,
                seed=7,
                ran_sha256=sha256_,
                digest=digest(train_py),
                diff_sha256=self.journal.put_blob(diff.encode()),
            )
        )
        self.runs.write_proposal(number, train_py=train_py, diff=diff)
        return number

    def train(self, number: int, cause: Cause | None = None, claim: Claim | None = None) -> None:
        printed = b"val_bpb: 0.1\nsome output"
        (self.runs.folder(number) / "run.log").write_bytes(printed)
        self.record(
            TrainingStarted(
                experiment=number, attempt=1, container=f"t{number}", spec_sha256="5", budget_seconds=20
            )
        )
        outcome = RunOutcome(
            seconds=20.25,
            exit_code=1 if cause else 0,
            cause=cause,
            claim=claim or Claim(),
            log_sha256=sha256(printed),
            log_bytes=len(printed),
        )
        self.record(TrainingFinished(experiment=number, attempt=1, outcome=outcome))

    def judge(self, number: int, judgement: float | Refusal) -> None:
        self.record(
            ScoringStarted(
                experiment=number,
                attempt=1,
                seed=2**62 + 1,
                draw=draw(number),
                specs={"j": "6"},
            )
        )
        refusal = judgement if isinstance(judgement, Refusal) else None
        score, frontier = None, self.state.frontier
        assert frontier is not None
        if not isinstance(judgement, Refusal):
            score = Score(
                val_bpb=judgement,
                holdout_bpb=7.654321,
                fresh=fresh_rows(0.654321),
                bytes=1000,
                tokens=300,
                holdout_bytes=987,
            )
            score = score.model_copy(update={"confirmed": contends(frontier, score)})
        self.record(ScoringFinished(experiment=number, attempt=1, score=score, refusal=refusal))

    def decide(self, number: int) -> None:
        experiment, frontier = self.state.experiments[number], self.state.frontier
        assert experiment.outcome is not None and frontier is not None
        decision = decide(frontier, experiment.outcome, experiment.judgement)
        self.record(Decided(experiment=number, decision=decision, frontier_bpb=frontier.val_bpb))

    def commit(self, number: int) -> str:
        experiment = self.state.experiments[number]
        assert experiment.score is not None
        train_py = self.journal.get_blob(experiment.train_sha256).decode()
        trailers = {
            "Experiment": str(number),
            "Val-Bpb": f"{experiment.score.val_bpb:.6f}",
            "Journal": self.state.head,
        }
        return self.repository.commit(train_py, experiment.proposal.description, trailers)

    def experiment(
        self, train_py: str, judgement: float | Refusal | Cause, description: str = "an idea"
    ) -> Experiment:
        """One experiment from proposal to ledger; a Cause stands for a crash."""
        number = self.propose(train_py, description)
        self.train(number, judgement if isinstance(judgement, Cause) else None)
        if not isinstance(judgement, Cause):
            self.judge(number, judgement)
        self.decide(number)
        if self.state.experiments[number].verdict is Verdict.KEEP:
            self.record(Committed(experiment=number, commit=self.commit(number)))
        self.runs.finish(self.state.experiments[number])
        self.ledger.publish(self.state)
        return self.state.experiments[number]


def tell(home: Path) -> Story:
    """A short effort with every verdict in it: keep, discard, crash, reject, keep."""
    story = Story(home)
    story.begin()
    story.experiment(BASELINE, 2.0, "baseline")
    story.experiment(BASELINE + "A = 1\n", 2.5, "worse")
    story.experiment(BASELINE + "A = 2\n", Cause.OOM, "crash")
    story.experiment(BASELINE + "A = 3\n", Refusal(cause=Cause.NON_CAUSAL, detail="peeks"), "reject")
    story.experiment(BASELINE + "A = 4\n", 1.5, "better")
    return story
