"""Efforts with the real plan, state, decision and certificates, in which only the scores are drawn.

A program is a number, its true score. A run of it scores that plus chance. What an agent proposes changes the
true score by an effect that is drawn as well; with no effects every program is the same.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from controller.core import plan
from controller.core.decision import decide
from controller.core.events import (
    AnyEvent,
    CertificateOpened,
    CertificateSettled,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    Record,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.plan import Situation, due, stop
from controller.core.rules import Rules
from controller.core.state import BASELINE, REPLICATE, ResearchState, apply
from controller.core.values import Draw, RunOutcome, Score
from tests.support.efforts import PROVENANCE

START = 1.0
"""True score of the baseline, bits per byte."""
SIGMA = 0.001
"""Standard deviation of a run: chance."""
_NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_OUTCOME = RunOutcome(seconds=300.0, exit_code=0)
_DRAW = Draw(scoring=0, confirmation=0)

Effects = Callable[[Random], float]
"""Draws what a proposal changes, in units of SIGMA; negative is better."""


def none(random: Random) -> float:
    """Every program is the same."""
    return 0.0


def as_published(random: Random) -> float:
    """Like the changes of published efforts: one in seven helps, most of those by less than two σ."""
    return -random.expovariate(1 / 1.8) if random.random() < 1 / 7 else random.expovariate(1 / 4.0)


@dataclass
class Effort:
    """One effort from its baseline to its limit."""

    rules: Rules
    random: Random
    effects: Effects = none
    state: ResearchState = field(default_factory=ResearchState)

    def run(self) -> ResearchState:
        """Until the plan says to stop."""
        self._tell(EffortStarted(tag="t", base_commit="base"))
        self._tell(SessionStarted(agent=self.rules.agent, budget_seconds=300, provenance=PROVENANCE))
        situation = Situation(rules=self.rules, now=_NOW)
        while stop(self.state, situation) is None:
            actions = due(self.state, situation)
            assert actions, "the plan is stuck"
            for action in actions:
                self._perform(action)
        return self.state

    def true_score(self, experiment: int | None) -> float:
        """Of the program of an experiment."""
        return START if experiment is None else float(self.state.experiments[experiment].train_sha256)

    def _perform(self, action: plan.Action) -> None:
        state, frontier = self.state, self.state.frontier
        assert frontier is not None
        match action:
            case plan.Ask():
                self._ask(action)
            case plan.Rebase(proposal=number):
                self._tell(ProposalDropped(proposal=number, reason="the frontier moved"))
            case plan.Drop(proposal=number, reason=reason):
                self._tell(ProposalDropped(proposal=number, reason=reason))
            case plan.Accept(proposal=number, slot=slot):
                text = state.proposals[number].train_sha256
                opened = ExperimentOpened(
                    experiment=state.next_number,
                    proposal=number,
                    slot=slot,
                    parent=frontier.commit,
                    train_sha256=text,
                    seed=0,
                    ran_sha256=text,
                    digest=str(number),
                    diff_sha256="",
                )
                self._tell(opened)
            case plan.Train(experiment=number):
                started = TrainingStarted(
                    experiment=number, attempt=1, container="", spec_sha256="", budget_seconds=300
                )
                self._tell(started)
                self._tell(TrainingFinished(experiment=number, attempt=1, outcome=_OUTCOME))
            case plan.Score(experiment=number):
                self._tell(ScoringStarted(experiment=number, attempt=1, seed=0, draw=_DRAW, specs={}))
                score = self.true_score(number) + self.random.gauss(0.0, SIGMA)
                judged = Score(val_bpb=score, bytes=1, tokens=1, confirmed=True)
                self._tell(ScoringFinished(experiment=number, attempt=1, score=judged))
            case plan.Decide(experiment=number):
                self._decide(number)
            case plan.Commit(experiment=number):
                self._tell(Committed(experiment=number, commit=f"c{number}"))
            case plan.OpenCertificate(base=base, head=head):
                self._tell(CertificateOpened(certificate=len(state.certificates), base=base, head=head))
            case plan.DecideCertificate(event=event):
                self._tell(event)
            case plan.SettleCertificate(certificate=number):
                self._tell(CertificateSettled(certificate=number, commit=f"s{number}"))
            case _:
                raise AssertionError(f"nothing here leads to {action}")

    def _ask(self, action: plan.Ask) -> None:
        state = self.state
        assert state.frontier is not None
        number = state.next_proposal
        asked = ProposalAsked(
            proposal=number,
            agent=action.agent,
            purpose=action.purpose,
            parent=state.frontier.commit,
            repeats=action.repeats,
            certificate=action.certificate,
            pair=action.pair,
        )
        self._tell(asked)
        if action.agent == REPLICATE:
            program = self.true_score(action.repeats)
        else:
            changed = 0.0 if action.agent == BASELINE else SIGMA * self.effects(self.random)
            program = self.true_score(state.frontier.experiment) + changed
        self._tell(ProposalMade(proposal=number, description="", train_sha256=repr(program)))

    def _decide(self, number: int) -> None:
        state, experiment = self.state, self.state.experiments[number]
        assert state.frontier is not None and experiment.outcome is not None
        margin = state.margin(self.rules.keep)
        decision = decide(
            state.frontier,
            experiment.outcome,
            experiment.judgement,
            is_replicate=experiment.repeats is not None,
            margin=margin,
        )
        bar = state.frontier.val_bpb
        self._tell(Decided(experiment=number, decision=decision, frontier_bpb=bar, margin=margin))

    def _tell(self, event: AnyEvent) -> None:
        record = Record.model_construct(
            seq=self.state.seq + 1,
            time="2026-01-01T00:00:00+00:00",
            experiment=getattr(event, "experiment", None),
            data=event,
            prev="",
            hash="",
        )
        apply(self.state, record)


def false_certificates(effort: Effort) -> int:
    """Certificates for a chain that is no better, in truth."""
    return sum(
        decided.outcome == "certified"
        and effort.true_score(decided.head) >= effort.true_score(decided.base) - 1e-12
        for decided in effort.state.certificates
    )


def upper_limit(found: int, level: float = 0.95) -> float:
    """Upper end of the exact interval for the mean of a Poisson variable of which `found` were counted."""
    from scipy import stats

    return float(stats.chi2.ppf(0.5 + 0.5 * level, 2 * found + 2) / 2)


def lower_limit(found: int, level: float = 0.95) -> float:
    """Its lower end."""
    from scipy import stats

    return float(stats.chi2.ppf(0.5 - 0.5 * level, 2 * found) / 2) if found else 0.0


def progress(effort: Effort) -> tuple[float, float]:
    """What certified head and frontier gained in truth, in units of SIGMA."""
    certified, frontier = effort.state.certified, effort.state.frontier
    reached = [effort.true_score(one.experiment if one else None) for one in (certified, frontier)]
    return (START - reached[0]) / SIGMA, (START - reached[1]) / SIGMA
