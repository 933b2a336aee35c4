"""Asks agents for proposals, each question in a thread of its own, and records what comes of it.

What is due is decided in core/plan.py; here it is done. An answer is recorded at once, so that neither
the end of the process nor a verdict loses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

import structlog

from controller.core import plan
from controller.core.errors import AgentAway, AgentError, AgentExhausted, Interrupted
from controller.core.events import (
    AgentFailed,
    AgentReturned,
    ApiFailed,
    ProposalAsked,
    ProposalDropped,
)
from controller.core.experiment import Experiment
from controller.core.plan import Ask, Foresee, Rehearse, Situation
from controller.core.program.rebase import Stale
from controller.core.proposal import Proposal
from controller.core.rules import Rules
from controller.core.state import BASELINE, MERGE, PERSON, REPLICATE, ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Change
from controller.ports import Agent, Clock, Rehearsal, Repository
from controller.proposals.acceptance import made
from controller.proposals.context import ContextBuilder, without_holdout
from controller.proposals.rebasing import rebased
from controller.proposals.services import ProposalServices
from controller.store.effort import Effort

log = structlog.stdlib.get_logger(__name__)


class Proposer:
    """Carries out `Ask`, `Rehearse` and `Foresee`. Safe to use from any thread."""

    def __init__(
        self,
        effort: Effort,
        contexts: ContextBuilder,
        repository: Repository,
        agents: Callable[[], Mapping[str, Agent]],
        clock: Clock,
        rules: Callable[[], Rules],
        *,
        rehearsal: Rehearsal | None,
    ) -> None:
        """`agents` by name and `rules`: those of the moment. `rehearsal` None: nothing is rehearsed."""
        self.exhausted: str | None = None
        """Why the agent has nothing further to propose."""
        self.understudy_failed = False
        self._effort = effort
        self._contexts = contexts
        self._repository = repository
        self._agents = agents
        self._clock = clock
        self._rules = rules
        self._rehearsal = rehearsal
        self._stops: dict[int, threading.Event] = {}
        """By proposal: breaks off what is being done with it."""

    def begin_session(self, reason: str = "the controller stopped before the answer came") -> None:
        """Give calls and questions an end that the last process did not live to see. Idempotent.

        Nobody knows what such a call cost: it keeps what was reserved for it.
        """
        with self._effort.lock:
            self._give_up(reason, lambda proposal: True)

    def dismiss(self, agents: Collection[str]) -> None:
        """Give up what those of these agents are asked who are not to be asked any more. The caller holds the
        effort's lock.
        """
        gone = set(agents) - set(self._agents())
        for number, proposal in [*self._state.proposals.items()]:
            if proposal.agent in gone and not proposal.is_made:
                self.break_off(number)
        self._give_up("another agent is asked from now on", lambda proposal: proposal.agent in gone)

    def _give_up(self, reason: str, is_meant: Callable[[Proposal], bool]) -> None:
        """Give calls and questions that have no answer an end."""
        meant = {number for number, known in self._state.proposals.items() if is_meant(known)}
        for call, sent in [*self._state.spending.open.items()]:
            if sent.request.proposal in meant or sent.request.proposal not in self._state.proposals:
                cost = sent.request.reserved_usd
                self._effort.record(
                    ApiFailed(call=call, status=None, error=reason, seconds=0.0, cost_usd=cost)
                )
        for number in sorted(meant):
            if not self._state.proposals[number].is_made:
                self._effort.record(ProposalDropped(proposal=number, reason=reason, unanswered=True))

    def break_off(self, proposal: int | None = None) -> None:
        """End what is being done with one proposal, or with all of them."""
        for number, stop in [*self._stops.items()]:
            if proposal in (None, number):
                stop.set()

    def ask(self, action: Ask) -> int:
        """Put a question on record; return the proposal's number. The caller holds the effort's lock."""
        number, agent = self._state.next_proposal, self._agents().get(action.agent)
        told = agent is not None and agent.asks_ahead
        self._effort.record(
            ProposalAsked(
                proposal=number,
                agent=action.agent,
                purpose=action.purpose,
                parent=self._contexts.frontier.commit,
                fixes=action.fixes,
                merges=action.merges,
                repeats=action.repeats,
                certificate=action.certificate,
                pair=action.pair,
                stands_in_for=action.stands_in_for,
                request=action.request,
                instructions=self._state.steering.untold(self._state.proposals) if told else (),
            )
        )
        return number

    def await_answer(self, number: int, situation: Callable[[], Situation]) -> None:
        """See a question that is on record through to its answer, and record that.

        `situation`: the one of the moment, when it is asked for; an answer may take long.
        """
        try:
            change = self._answer(number)
        except AgentError as error:
            self._failed(number, error, situation)
            return
        with self._effort.lock:
            proposal = self._state.proposals.get(number)
            if proposal is None:
                raise Interrupted(f"proposal {number} was given up")
            self._returned(proposal)
            if change is None:
                reason = "the agent sees none that is worth a run"
                self._effort.record(ProposalDropped(proposal=number, reason=reason))
            else:
                self._effort.record(made(self._effort, number, change))

    def rehearse(self, action: Rehearse) -> None:
        """Rehearse a proposal as it is."""
        with self._effort.lock:
            services = self._services(action.proposal)
            train_py = self._effort.text(self._state.proposals[action.proposal].train_sha256)
        self._rehearsed(services, action.proposal, train_py)

    def foresee(self, action: Foresee) -> None:
        """Rehearse a proposal as it would be on the frontier that a contender would make."""
        with self._effort.lock:
            proposal = self._state.proposals[action.proposal]
            contender = self._state.experiments[action.contender]
            if not proposal.rehearses:
                return
            try:
                frontier_py = self._effort.source(contender)
                train_py = rebased(self._effort, self._contexts, proposal, frontier_py)
            except Stale:
                return
            if proposal.rehearsal_of(self._effort.put_text(train_py)) is not None:
                return
            services = self._services(action.proposal)
        self._rehearsed(services, action.proposal, train_py)

    def _rehearsed(self, services: ProposalServices, number: int, train_py: str) -> None:
        try:
            services.rehearse(train_py)
        finally:
            self._stops.pop(number, None)

    # --- one question ---------------------------------------------------------------------------

    def _answer(self, number: int) -> Change | None:
        """Raises AgentError, Interrupted."""
        with self._effort.lock:
            proposal = self._state.proposals[number]
            if proposal.agent == BASELINE:
                return Change(train_py=self._contexts.frontier_py, description="baseline")
            if proposal.agent == MERGE:
                return self._merge(proposal)
            if proposal.agent == REPLICATE:
                return self._again(proposal)
            if proposal.agent == PERSON:
                return self._queued(proposal)
            context = self._contexts.context(self._services(number), number)
            agent = self._agents().get(proposal.agent)
            if agent is None:
                raise Interrupted(f"{proposal.agent} is no longer asked")
        try:
            match proposal.purpose:
                case "fix":
                    crashed = without_holdout(self._experiment(proposal.fixes))
                    change = agent.fix(context, crashed)
                    return change and change.model_copy(update={"idea": crashed.proposal.idea})
                case "merge":
                    return agent.combine(context, without_holdout(self._experiment(proposal.merges)))
                case _:
                    return agent.propose(context)
        finally:
            self._stops.pop(number, None)

    def _merge(self, proposal: Proposal) -> Change | None:
        """The change of an experiment that the frontier lacks, added to it. None if the two conflict."""
        behind = self._experiment(proposal.merges)
        base = self._contexts.train_py(self._base_of(behind.number))
        ours, theirs = self._contexts.frontier_py, self._effort.source(behind)
        merged = self._repository.merge(base, ours, theirs)
        if merged is None:
            return None
        return Change(
            train_py=merged,
            description=f"the frontier with the change of experiment {behind.number}: "
            f"{behind.proposal.description}",
            hypothesis="Two changes that each lowered val_bpb from one frontier lower it further together.",
            idea="merge",
        )

    def _again(self, proposal: Proposal) -> Change:
        """The program of an earlier experiment, unchanged."""
        earlier = self._experiment(proposal.repeats)
        return Change(
            train_py=self._effort.source(earlier),
            description=f"experiment {earlier.number} again: {earlier.proposal.description}",
        )

    def _base_of(self, behind: int) -> str:
        """The commit that a kept experiment and the next one that was kept have both changed."""
        overtaking = self._contexts.frontier.commit
        for experiment in reversed(self._state.finished):
            if experiment.number == behind:
                break
            if experiment.commit is not None and experiment.number not in self._state.fallen:
                overtaking = experiment.parent
        return overtaking

    def _failed(self, number: int, error: AgentError, situation: Callable[[], Situation]) -> None:
        reason = clean_line(str(error))
        log.warning("agent_failed", error=reason)
        with self._effort.lock:
            proposal = self._state.proposals.get(number)
            if proposal is None:
                return
            stands_in = proposal.stands_in_for is not None
            if stands_in or isinstance(error, AgentAway | AgentExhausted):
                away = isinstance(error, AgentAway)
                self._effort.record(ProposalDropped(proposal=number, reason=reason, unanswered=away))
            else:
                failed = AgentFailed(agent=proposal.agent, proposal=number, reason=reason)
                self._effort.record(failed)
                if (absent := plan.after_failure(self._state, failed, situation())) is not None:
                    self._effort.record(absent)
            if stands_in:
                self.understudy_failed = True
            elif isinstance(error, AgentExhausted):
                self.exhausted = reason
            elif isinstance(error, AgentAway):
                self._effort.record(plan.absent(self._state, reason, error.retry_seconds, situation()))

    def _returned(self, proposal: Proposal) -> None:
        """An absent agent has answered."""
        absence = self._state.absence
        if absence is not None and absence.agent == proposal.agent:
            away = self._effort.seconds_since(absence.since)
            self._effort.record(AgentReturned(agent=proposal.agent, seconds=away))

    def _services(self, number: int) -> ProposalServices:
        """The caller holds the effort's lock."""
        self._stops[number] = stop = threading.Event()
        return ProposalServices(
            self._effort,
            self._clock,
            self._rules,
            proposal=number,
            frontier_py=self._contexts.frontier_py,
            tried=self._contexts.tried(),
            suspects=self._contexts.suspects(),
            rehearsal=self._rehearsal,
            stop=stop,
        )

    def _queued(self, proposal: Proposal) -> Change:
        """A program that a person put in the queue."""
        (asked,) = (one for one in self._state.steering.queue if one.request == proposal.request)
        return Change(
            train_py=self._effort.text(asked.train_sha256),
            description=asked.text,
            hypothesis=asked.reason,
            idea="queued",
        )

    def _experiment(self, number: int | None) -> Experiment:
        assert number is not None
        return self._state.experiments[number]

    @property
    def _state(self) -> ResearchState:
        return self._effort.state
