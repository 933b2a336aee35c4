"""plan → start what is due → record what came of it, forever.

What is due is decided in core/plan.py, under the effort's lock, from the journal's state and one look at the
world. Each action runs in a thread of its own, which records its result under the same lock.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from controller import certification, steering
from controller.components import Components
from controller.core import plan
from controller.core.errors import InfrastructureError, Interrupted, UserError, VerificationFailed
from controller.core.events import ProposalDropped, Resumed, SessionStopped
from controller.core.plan import Action, Situation
from controller.core.rules import Rules
from controller.core.state import ResearchState
from controller.core.steering import in_force, new_session
from controller.core.untrusted import clean_line
from controller.experiments import Experiments
from controller.proposals.acceptance import accept
from controller.proposals.context import ContextBuilder
from controller.proposals.proposer import Proposer
from controller.proposals.rebasing import rebase_on_frontier
from controller.store.effort import Effort
from controller.under_way import ActionThreads

log = structlog.stdlib.get_logger(__name__)

_LONGEST_WAIT = 1.0
"""Seconds between two looks at the pause file and the disk."""


class Loop:
    """One research effort at work on its slots."""

    def __init__(self, components: Components, state: ResearchState, budget_seconds: float) -> None:
        self.effort = Effort(components.journal, state, components.observer, components.clock)
        self.state = state
        self._components = components
        self._clock_offset = components.clock.now(), components.clock.monotonic()
        self._began = components.clock.monotonic() - state.worked_seconds
        self._under_way = ActionThreads(components.stop)
        self._foreseen: set[tuple[int, int]] = set()
        self._unrecorded: Action | None = None
        self._contexts = ContextBuilder(self.effort, components.repository, components.runs)
        self._proposer = Proposer(
            self.effort,
            self._contexts,
            components.repository,
            lambda: {agent.name: agent for agent in components.agents},
            components.clock,
            lambda: self._rules,
            rehearsal=components.rehearsal,
        )
        under_way = self._under_way
        self._experiments = Experiments(
            components, self.effort, budget_seconds, under_way.halt, under_way.notify
        )

    def run(self) -> str:
        """Work until a limit is reached; return which one.

        Raises Interrupted, NotReady, Unfit, UserError, VerificationFailed.
        """
        self._components.prune(self.state, self.effort.record)  # what the last process did not live to remove
        self._proposer.begin_session()
        self._forget_answered()
        try:
            try:
                reason = self._work()
            finally:
                self._break_off()
        except (Interrupted, UserError, VerificationFailed) as error:
            reason = "stopped by a person" if isinstance(error, Interrupted) else clean_line(str(error))
            self.effort.record(SessionStopped(reason=reason))
            raise
        self.effort.record(SessionStopped(reason=reason))
        return reason

    def limit(self, settings: Mapping[str, Any] | None = None) -> str | None:
        """The limit that is reached before anything is begun; None if a person may be about to change it.

        `settings`: those of the session that is about to begin.
        """
        situation, steering = self._situation(), self.state.steering
        if [*plan.steering(self.state, situation)]:
            return None
        if settings is not None:
            steering = new_session(steering, self.state.session, settings)
        rules = in_force(self._components.rules, steering)
        return plan.limit(self.state, replace(situation, rules=rules))

    @property
    def _rules(self) -> Rules:
        return in_force(self._components.rules, self.state.steering)

    def _work(self) -> str:
        while True:
            with self.effort.lock:
                self._under_way.raise_failure()
                situation = self._situation()
                if (end := plan.stop(self.state, situation)) is not None:
                    if end.error is not None:
                        raise end.error(end.reason)
                    return end.reason
                for action in plan.due(self.state, situation):
                    self._start(action)
                if not situation.busy_slots:
                    self.effort.alive()
            seconds = _LONGEST_WAIT
            if (wake := plan.wake_at(self.state, situation)) is not None:
                seconds = min(seconds, max(0.0, (wake - situation.now).total_seconds()))
            self._under_way.wait(seconds)

    def _break_off(self) -> None:
        """End what is under way. Nothing comes from another thread afterwards."""
        self._under_way.halt.set()
        self._proposer.break_off()
        self._under_way.join()
        self._proposer.begin_session("broken off when the loop ended")

    def _situation(self) -> Situation:
        components, state = self._components, self.state
        under_way = [*self._under_way]
        wall, monotonic = self._clock_offset
        elapsed = components.clock.monotonic() - monotonic
        slots = [(number, slot.pause) for number, slot in state.slots.items()]
        pauses = [(None, state.pause), *slots]
        return Situation(
            rules=self._rules,
            now=wall + dt.timedelta(seconds=elapsed),
            worked_seconds=components.clock.monotonic() - self._began,
            wish=components.surroundings.wish(),
            requests=components.surroundings.requests(),
            shortage=components.surroundings.shortage(),
            busy_slots=frozenset(one.action.slot for one in under_way if isinstance(one.action, plan.OnSlot)),
            busy_proposals=frozenset(one.proposal for one in under_way if one.proposal is not None),
            exhausted=self._proposer.exhausted,
            understudy_failed=self._proposer.understudy_failed,
            contenders=frozenset(self._experiments.contenders),
            foreseen=frozenset(self._foreseen),
            foreseeing=frozenset(one.action for one in under_way if isinstance(one.action, plan.Foresee)),
            examined=frozenset(self._experiments.examined),
            absent_seconds=self.effort.seconds_since(state.absence.since) if state.absence else 0.0,
            paused_seconds={
                slot: self.effort.seconds_since(pause.since) for slot, pause in pauses if pause is not None
            },
        )

    def _start(self, action: Action) -> None:
        """Carry out what takes a moment, and plan again; start a thread for what takes longer."""
        effort, threads = self.effort, self._under_way
        match action:
            case plan.Pause() | plan.Resume():
                self._note_pause(action)
            case plan.OpenCertificate() | plan.DecideCertificate() | plan.SettleCertificate():
                certification.perform(effort, self._components.repository, action)
                threads.notify()
            case plan.Steer() | plan.RollBack():
                self._steer(action)
                threads.notify()
            case plan.EndRun():
                self._experiments.end(action)
            case plan.Move():
                self._experiments.move(action)
                threads.notify()
            case plan.Drop(proposal=proposal, reason=reason):
                effort.record(ProposalDropped(proposal=proposal, reason=clean_line(reason)))
                threads.notify()
            case plan.Rebase(proposal=proposal):
                rebase_on_frontier(effort, self._contexts, proposal)
                threads.notify()
            case plan.Accept(proposal=proposal, slot=slot):
                accept(effort, self._contexts, proposal, slot)
                threads.notify()
            case plan.BreakOff(proposal=proposal):
                self._proposer.break_off(proposal)
            case plan.Rehearse(proposal=proposal):
                threads.start(action, lambda: self._proposer.rehearse(action), proposal)
            case plan.Foresee(proposal=proposal, contender=contender):
                self._foreseen.add((proposal, contender))
                threads.start(action, lambda: self._proposer.foresee(action), proposal)
            case plan.Ask():
                number = self._proposer.ask(action)
                threads.start(action, lambda: self._proposer.await_answer(number, self._situation), number)
            case _:
                threads.start(action, lambda: self._experiments.perform(action, self._situation))

    def _forget_answered(self) -> None:
        """Requests whose answer is on record, and whose files a dead process left."""
        for request in self._components.surroundings.requests():
            if request.id in self.state.steering.heard:
                steering.forget(self._components, request)

    def _steer(self, action: plan.Steer | plan.RollBack) -> None:
        """With another agent or another limit there may be more to propose."""
        before = self._components.agents
        steering.perform(self.effort, self._components, action)
        changed = self._components.agents is not before
        if changed or (isinstance(action, plan.Steer) and action.request.verb == "limit"):
            self._proposer.exhausted, self._proposer.understudy_failed = None, False
        if changed:
            self._proposer.dismiss({agent.name for agent in before})

    def _note_pause(self, action: plan.Pause | plan.Resume) -> None:
        """A full disk may have no room for the line that says so."""
        try:
            self.effort.record(action.event if isinstance(action, plan.Pause) else self._resumed(action))
            self._unrecorded = None
        except InfrastructureError as error:
            if self._components.surroundings.shortage() is None:
                raise
            if self._unrecorded != action:
                log.warning("pause_unrecorded", action=clean_line(str(action)), error=clean_line(str(error)))
            self._unrecorded = action

    def _resumed(self, action: plan.Resume) -> Resumed:
        pause = self.state.pause if action.slot is None else self.state.slot(action.slot).pause
        assert pause is not None
        by = self._components.surroundings.wish().by if pause.event.why == "person" else ""
        return Resumed(why=pause.event.why, slot=action.slot, by=by, seconds=action.seconds)
