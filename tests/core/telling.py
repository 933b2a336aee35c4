"""Tells an effort event by event, for tests of what is made of its state."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields
from typing import Any, Literal, Self

from controller.core.events import (
    AgentAbsent,
    AgentFailed,
    AnyEvent,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    Paused,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    ProposalRebased,
    ProposalRefused,
    ProposalRehearsed,
    Purpose,
    Quarantined,
    Record,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    SlotDisturbed,
    SlotReady,
    Steered,
    TrainingFinished,
    TrainingStarted,
    Verb,
    VoidCause,
    Voided,
)
from controller.core.plan import Situation
from controller.core.rules import Rules
from controller.core.state import REPLICATE, ResearchState, apply
from controller.core.values import Cause, Conditions, Decision, Disturbance, Draw, RunOutcome, Score, Verdict
from tests.support.efforts import PROVENANCE

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
AGENT = "tuner"


def after(seconds: float) -> str:
    """A time of day as the journal writes it."""
    return (START + dt.timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def at(seconds: float = 0.0, **known: Any) -> Situation:
    """A situation so long after the start. `known`: fields of Rules and of Situation."""
    names = {field.name for field in fields(Rules)}
    rules = {"agent": AGENT, **{name: value for name, value in known.items() if name in names}}
    others = {name: value for name, value in known.items() if name not in names}
    return Situation(rules=Rules(**rules), now=START + dt.timedelta(seconds=seconds), **others)


def commit(number: int) -> str:
    """The commit of a kept experiment."""
    return f"c{number}"


def outcome(cause: Cause | None = None, found: Disturbance | None = None, detail: str = "") -> RunOutcome:
    conditions = Conditions(disturbances=(found,)) if found is not None else None
    return RunOutcome(
        seconds=300.0, exit_code=0 if cause is None else 1, cause=cause, detail=detail, conditions=conditions
    )


def score(val_bpb: float, confirmed: bool = True) -> Score:
    return Score(val_bpb=val_bpb, bytes=1000, tokens=400, confirmed=confirmed)


class Told:
    """Every method tells one thing more and returns self. They speak of the latest experiment or proposal,
    unless they are told of which.
    """

    def __init__(self, agent: str = AGENT) -> None:
        self.state = ResearchState()
        self.records: list[Record] = []
        self._now = 0.0
        self._texts = 0
        self.tell(EffortStarted(tag="t", base_commit="base"))
        self.session(agent)

    def tell(self, *events: AnyEvent) -> Self:
        for event in events:
            seq = self.state.seq + 1
            number = getattr(event, "experiment", None)
            record = Record(
                seq=seq, time=after(self._now), experiment=number, data=event, prev="", hash=str(seq)
            )
            self.records.append(record)
            apply(self.state, record)
        return self

    def later(self, seconds: float) -> Self:
        self._now += seconds
        return self

    def session(self, agent: str = AGENT) -> Self:
        return self.tell(SessionStarted(agent=agent, budget_seconds=300, provenance=PROVENANCE))

    # --- proposals ------------------------------------------------------------------------------

    def asked(self, agent: str = AGENT, purpose: Purpose = "propose", **known: Any) -> Self:
        assert self.state.frontier is not None
        event = ProposalAsked(
            proposal=self.state.next_proposal,
            agent=agent,
            purpose=purpose,
            parent=self.state.frontier.commit,
        )
        return self.tell(event.model_copy(update=known))

    def made(self, of: int | None = None) -> Self:
        """The answer, with a text that nobody had before."""
        return self.tell(ProposalMade(proposal=self._proposal(of), description="d", train_sha256=self._new()))

    def idea(self, agent: str = AGENT, purpose: Purpose = "propose", **known: Any) -> Self:
        """A question and its answer."""
        return self.asked(agent, purpose, **known).made()

    def rehearsed(
        self,
        result: Literal["passed", "failed", "inconclusive"] = "passed",
        of: int | None = None,
        text: str | None = None,
    ) -> Self:
        """Of the proposal's own text, unless another is named."""
        number = self._proposal(of)
        sha256 = text or self.state.proposals[number].train_sha256
        return self.tell(
            ProposalRehearsed(proposal=number, train_sha256=sha256, result=result, detail="boom", seconds=1)
        )

    def rebased(self, of: int | None = None) -> Self:
        assert self.state.frontier is not None
        parent = self.state.frontier.commit
        return self.tell(
            ProposalRebased(proposal=self._proposal(of), parent=parent, train_sha256=self._new())
        )

    def dropped(self, of: int | None = None) -> Self:
        return self.tell(ProposalDropped(proposal=self._proposal(of), reason="nothing came of it"))

    def refused(self, times: int = 1) -> Self:
        for _ in range(times):
            self.idea()
            self.tell(ProposalRefused(proposal=self._proposal(None), cause="no-op", detail="it is a no-op"))
        return self

    def failed(self, times: int = 1) -> Self:
        for _ in range(times):
            self.asked()
            self.tell(AgentFailed(agent=AGENT, proposal=self._proposal(None), reason="nonsense"))
        return self

    def absent(self, until: float | None, agent: str | None = None, times: int = 1) -> Self:
        """By default the agent of the session."""
        assert self.state.session is not None
        agent = agent or self.state.session.agent
        time = None if until is None else after(until)
        return self.tell(AgentAbsent(agent=agent, reason="The API is down.", until=time, times=times))

    # --- experiments ----------------------------------------------------------------------------

    def opened(self, slot: int = 0, proposal: int | None = None) -> Self:
        """A proposal becomes an experiment; by default one that is made for it."""
        if proposal is None:
            self.idea()
        number = self._proposal(proposal)
        assert self.state.frontier is not None
        return self.tell(
            ExperimentOpened(
                experiment=self.state.next_number,
                proposal=number,
                slot=slot,
                parent=self.state.frontier.commit,
                train_sha256=self.state.proposals[number].train_sha256,
                seed=7,
                ran_sha256=self.state.proposals[number].train_sha256,
                digest="",
                diff_sha256="",
            )
        )

    def training(self, of: int | None = None) -> Self:
        number = self._experiment(of)
        attempt = self.state.experiments[number].attempt + 1
        return self.tell(
            TrainingStarted(
                experiment=number, attempt=attempt, container="t", spec_sha256="", budget_seconds=300
            )
        )

    def trained(
        self,
        cause: Cause | None = None,
        found: Disturbance | None = None,
        of: int | None = None,
        detail: str = "",
    ) -> Self:
        """An attempt from its start to its end."""
        number = self._experiment(of)
        attempt = self.training(number).state.experiments[number].attempt
        return self.tell(
            TrainingFinished(experiment=number, attempt=attempt, outcome=outcome(cause, found, detail))
        )

    def scoring(self, of: int | None = None) -> Self:
        number = self._experiment(of)
        attempt = self.state.experiments[number].attempt
        draw = Draw(scoring=0, confirmation=0)
        return self.tell(
            ScoringStarted(experiment=number, attempt=attempt, seed=1, draw=draw, specs={}),
        )

    def judged(self, val_bpb: float = 1.9, of: int | None = None) -> Self:
        """From the start of its training to its score."""
        number = self._experiment(of)
        self.trained(of=number).scoring(number)
        return self._judged(number, val_bpb)

    def _judged(self, number: int, val_bpb: float) -> Self:
        attempt = self.state.experiments[number].attempt
        return self.tell(ScoringFinished(experiment=number, attempt=attempt, score=score(val_bpb)))

    def quarantined(self, of: int | None = None) -> Self:
        number = self._experiment(of)
        attempt = self.state.experiments[number].attempt
        return self.tell(Quarantined(experiment=number, attempt=attempt, reason="too good", score=score(0.1)))

    def decided(self, verdict: Verdict, cause: Cause | None = None, of: int | None = None) -> Self:
        assert self.state.frontier is not None
        decision = Decision(verdict=verdict, cause=cause, rule="as told")
        return self.tell(
            Decided(
                experiment=self._experiment(of), decision=decision, frontier_bpb=self.state.frontier.val_bpb
            )
        )

    def committed(self, of: int | None = None) -> Self:
        number = self._experiment(of)
        return self.tell(Committed(experiment=number, commit=commit(number)))

    def kept(self, val_bpb: float = 1.9, of: int | None = None) -> Self:
        """From the start of its training to its commit."""
        number = self._experiment(of)
        return self.judged(val_bpb, number).decided(Verdict.KEEP, of=number).committed(number)

    def crashed(self, cause: Cause = Cause.OOM, of: int | None = None, detail: str = "") -> Self:
        """From the start of its training to its verdict."""
        number = self._experiment(of)
        return self.trained(cause, of=number, detail=detail).decided(Verdict.CRASH, cause, of=number)

    def voided(
        self, cause: VoidCause = "infrastructure", found: Disturbance | None = None, of: int | None = None
    ) -> Self:
        number = self._experiment(of)
        attempt = self.state.experiments[number].attempt
        return self.tell(
            Voided(experiment=number, attempt=attempt, cause=cause, reason="no engine", evidence=found)
        )

    def faults(self, times: int, of: int | None = None) -> Self:
        for _ in range(times):
            self.training(of).voided(of=of)
        return self

    def baseline(self, val_bpb: float = 2.0) -> Self:
        """From the question to the commit."""
        return self.idea("baseline", "baseline").opened(proposal=self._proposal(None)).kept(val_bpb)

    # --- replicates -----------------------------------------------------------------------------

    def again(self, of: int, slot: int | None = None) -> Self:
        """A replicate that is asked for and made; opened if `slot` is named."""
        self.idea(REPLICATE, "replicate", repeats=of)
        return self if slot is None else self.opened(slot, self._proposal(None))

    def replicated(self, of: int, *scores: float, slot: int = 0) -> Self:
        """Replicates from the question to the verdict."""
        for val_bpb in scores:
            self.again(of, slot).judged(val_bpb).decided(Verdict.DISCARD, Cause.REPLICATE)
        return self

    def tried(self, times: int) -> Self:
        """Ideas that did not help."""
        for _ in range(times):
            self.opened().judged(9.0).decided(Verdict.DISCARD, Cause.WORSE)
        return self

    # --- a person -------------------------------------------------------------------------------

    def steered(self, verb: Verb, request: str = "asked", **fields: Any) -> Self:
        """A request that is granted."""
        return self.tell(Steered(request=request, verb=verb, by="ann", at=after(0), **fields))

    # --- slots ----------------------------------------------------------------------------------

    def paused(
        self,
        why: Literal["person", "disk", "infrastructure"],
        slot: int | None = None,
        until: float | None = None,
    ) -> Self:
        time = None if until is None else after(until)
        return self.tell(Paused(why=why, slot=slot, reason="", until=time))

    def disturbed(self, found: Disturbance, until: float, looks: int = 1) -> Self:
        """A look that found it."""
        number = self._experiment(None)
        return self.tell(SlotDisturbed(experiment=number, disturbance=found, looks=looks, until=after(until)))

    def ready(self) -> Self:
        return self.tell(SlotReady(experiment=self._experiment(None), seconds=1))

    def _proposal(self, of: int | None) -> int:
        return self.state.next_proposal - 1 if of is None else of

    def _experiment(self, of: int | None) -> int:
        return self.state.next_number - 1 if of is None else of

    def _new(self) -> str:
        self._texts += 1
        return f"text {self._texts}"
