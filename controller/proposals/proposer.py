"""Getting the next proposal out of an agent, ahead of time if it is a slow one.

A slow agent is asked while an experiment trains. What it proposes is journalled as Prepared at once, so that
neither our death nor the verdict loses it; when its turn comes it is made to fit the frontier of that moment
or dropped. An agent that cannot be reached is waited for, or an understudy proposes in its place.
"""

from __future__ import annotations

import math
import threading

import structlog

from controller.core.errors import AgentAway, AgentError, AgentExhausted, Interrupted
from controller.core.events import ApiFailed, PreparationDropped, Prepared, RepairGivenUp
from controller.core.experiment import Experiment
from controller.core.program.rebase import Stale
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import TRIVIAL_CAUSES, Proposal
from controller.ports import Agent, Clock, Rehearsal
from controller.proposals.acceptance import DESCRIPTION_CHARACTERS, HYPOTHESIS_CHARACTERS, Offer
from controller.proposals.asking import Conversation
from controller.proposals.availability import AbsenceConfig, Attendance
from controller.proposals.context import Briefing
from controller.proposals.rebasing import Fitting
from controller.proposals.services import Budget, JournalDesk
from controller.store.effort import Chronicle

log = structlog.stdlib.get_logger(__name__)

#: No wait is longer than this without a look at the limits of the session.
_SLICE_SECONDS = 30.0
#: How often a wait for two things at once looks at the second of them.
_GLANCE_SECONDS = 0.2


class Researcher:
    """Asks an agent on behalf of the loop, whose thread alone calls this."""

    def __init__(
        self,
        agent: Agent,
        understudy: Agent | None,
        chronicle: Chronicle,
        briefing: Briefing,
        clock: Clock,
        stop: threading.Event,
        *,
        rehearsal: Rehearsal | None,
        budget: Budget,
        absence: AbsenceConfig,
    ) -> None:
        """`rehearsal` None: nothing is rehearsed."""
        self._agent = agent
        self._understudy = understudy
        self._chronicle = chronicle
        self._briefing = briefing
        self._attendance = Attendance(agent.name, chronicle, clock, absence)
        self._clock = clock
        self._stop = stop
        self._rehearsal = rehearsal
        self._budget = budget
        self._conversation: Conversation | None = None
        self._fitting = Fitting(chronicle, briefing, self._desk, stop)

    # --- what the loop calls --------------------------------------------------------------------

    def begin(self) -> None:
        """Give those calls an end that the last process did not live to see the end of."""
        self._end_calls("the controller stopped before the answer came")

    def next(self) -> Offer | None:
        """The next proposal; None if there is none yet and the loop may look at its limits.

        Raises AgentExhausted, UserError, Interrupted.
        """
        if self._state.next_number == 0:
            baseline = Proposal(train_py=self._briefing.frontier_py, description="baseline", agent="baseline")
            return Offer(baseline)
        self._collect()
        if (crashed := self._to_repair()) is not None:
            if self._conversation is None:
                return self._repair(crashed)
            self._wait()
            return None
        if self._state.prepared is not None:
            return self._prepared(self._state.prepared)
        self._attendance.require_hope(understudy=self._understudy is not None)
        if not self._agent.prepares_ahead:
            return self._ask_now()
        self._ask_ahead()
        if self._understudy is not None and self._attendance.understudy_in == 0:
            return self._stand_in(self._understudy)
        self._wait()
        return None

    def ahead(self) -> None:
        """Training begins: let a slow agent think about what comes next."""
        if self._agent.prepares_ahead and self._state.prepared is None:
            self._ask_ahead()

    def foresee(self, winner: Experiment) -> None:
        """`winner` is about to be kept: make ready for it what was prepared."""
        if self._state.prepared is not None:
            self._fitting.foresee(self._state.prepared, winner)

    def close(self) -> None:
        """Break off what is under way. Nothing comes from another thread afterwards."""
        self._fitting.close()
        if self._conversation is not None:
            self._conversation.break_off()
            self._conversation = None
        self._end_calls("broken off when the loop ended")

    # --- where a proposal may come from ---------------------------------------------------------

    def _to_repair(self) -> Experiment | None:
        """The experiment that crashed over a trifle a moment ago and had no repair yet (R9)."""
        last = self._state.experiments[-1]
        trifle = last.cause in TRIVIAL_CAUSES and last.proposal.fixes is None
        here = last.number != self._state.repair_tried and not self._attendance.absent
        return last if trifle and here else None

    def _repair(self, crashed: Experiment) -> Offer | None:
        try:
            proposal = self._agent.fix(self._briefing.context(self._desk(self._stop)), crashed)
        except AgentExhausted:
            raise
        except AgentError as error:
            if not isinstance(error, AgentAway):
                self._give_up_repair(crashed, str(error))
            self._failed(error, self._state.next_number)
            return None
        if proposal is None:
            self._give_up_repair(crashed, "the agent sees none that is worth a run")
            return None
        same = {"fixes": crashed.number, "agent": self._agent.name, "idea": crashed.proposal.idea}
        return Offer(proposal.model_copy(update=same))

    def _give_up_repair(self, crashed: Experiment, reason: str) -> None:
        self._chronicle.record(RepairGivenUp(fixes=crashed.number, reason=clean_line(reason)))

    def _prepared(self, prepared: Prepared) -> Offer | None:
        """What waits for its turn, fit for the frontier of now; None if it is of no use any more."""
        try:
            if prepared.agent != self._agent.name:
                raise Stale(f"{prepared.agent} prepared it, and now {self._agent.name} is at work")
            train_py = self._fitting.fit(prepared)
        except Stale as stale:
            reason = clean_line(str(stale))
            self._chronicle.record(PreparationDropped(for_experiment=prepared.for_experiment, reason=reason))
            return None
        proposal = Proposal(
            train_py=train_py,
            description=prepared.description,
            hypothesis=prepared.hypothesis,
            expected_effect=prepared.expected_effect,
            idea=prepared.idea,
            agent=prepared.agent,
        )
        return Offer(proposal, prepared_for=prepared.for_experiment)

    def _ask_now(self) -> Offer | None:
        """Ask an agent that answers at once."""
        try:
            proposal = self._agent.propose(self._briefing.context(self._desk(self._stop)))
        except AgentExhausted:
            raise
        except AgentError as error:
            self._failed(error, self._state.next_number)
            return None
        self._attendance.returned()
        return Offer(proposal.model_copy(update={"agent": self._agent.name}))

    def _stand_in(self, understudy: Agent) -> Offer | None:
        try:
            proposal = understudy.propose(self._briefing.context(self._desk(self._stop)))
        except AgentError as error:
            log.warning("understudy_failed", error=clean_line(str(error)))
            self._understudy = None
            return None
        proposal = proposal.model_copy(update={"agent": understudy.name})
        return Offer(proposal, stands_in_for=self._agent.name)

    # --- a slow agent ---------------------------------------------------------------------------

    def _ask_ahead(self) -> None:
        """Begin a conversation, unless one is under way or it is too early to try again."""
        if self._conversation is None and self._attendance.retry_in == 0:
            desk = self._desk(threading.Event())
            number, parent = self._state.next_number, self._briefing.frontier.commit

            def settle(came: Proposal | Exception) -> None:
                with desk.writing():
                    self._settle(came, number, parent)

            context = self._briefing.context(desk)
            self._conversation = Conversation(self._agent, context, desk, settle)

    def _settle(self, came: Proposal | Exception, number: int, parent: str) -> None:
        """Write down what came of a conversation, in its thread."""
        if isinstance(came, AgentError) and not isinstance(came, AgentExhausted):
            self._failed(came, number)
        elif isinstance(came, Exception):
            raise came
        else:
            self._attendance.returned()
            self._chronicle.record(
                Prepared(
                    for_experiment=number,
                    agent=self._agent.name,
                    parent=parent,
                    description=clean_line(came.description, DESCRIPTION_CHARACTERS),
                    hypothesis=clean_text(came.hypothesis, HYPOTHESIS_CHARACTERS),
                    expected_effect=came.expected_effect,
                    idea=clean_line(came.idea, DESCRIPTION_CHARACTERS),
                    train_sha256=self._chronicle.put_text(came.train_py),
                    edits=came.edits,
                )
            )

    def _collect(self) -> None:
        """Take note of a conversation that is over. Raises what its thread could not cope with."""
        if self._conversation is not None and self._conversation.over():
            error, self._conversation = self._conversation.error, None
            if error is not None:
                raise error

    def _wait(self) -> None:
        """For the agent's answer, for the time to ask it again, or for its understudy's time to act."""
        attendance, conversation = self._attendance, self._conversation
        understudy_in = math.inf if self._understudy is None else attendance.understudy_in
        if conversation is None:
            self._stop.wait(min(attendance.retry_in, understudy_in, _SLICE_SECONDS))
        else:
            end = self._clock.monotonic() + min(understudy_in, _SLICE_SECONDS)
            while not (conversation.over(_GLANCE_SECONDS) or self._stop.is_set()):
                if self._clock.monotonic() >= end:
                    break
        if self._stop.is_set():
            raise Interrupted("stopped by a person")

    # --- what both need -------------------------------------------------------------------------

    def _failed(self, error: AgentError, number: int) -> None:
        log.warning("agent_failed", error=clean_line(str(error)))
        self._attendance.failed(error, number, costly=self._agent.prepares_ahead)

    def _desk(self, stop: threading.Event) -> JournalDesk:
        return JournalDesk(
            self._chronicle,
            self._clock,
            experiment=self._state.next_number,
            frontier_py=self._briefing.frontier_py,
            tried=self._briefing.tried(),
            suspects=self._briefing.suspects(),
            rehearsal=self._rehearsal,
            budget=self._budget,
            stop=stop,
        )

    def _end_calls(self, error: str) -> None:
        """Nobody knows what they cost: they keep what was reserved for them."""
        for call, sent in [*self._state.spending.open.items()]:
            self._chronicle.record(
                ApiFailed(
                    call=call, status=None, error=error, seconds=0.0, cost_usd=sent.request.reserved_usd
                )
            )

    @property
    def _state(self) -> ResearchState:
        return self._chronicle.state
