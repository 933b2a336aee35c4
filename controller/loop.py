"""plan → start what is due → record what came of it, forever.

What is due is decided in core/plan.py, under the effort's lock, from the journal's state and one look at the
world. Each action runs in a thread of its own, which records its result under the same lock.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import threading
from collections.abc import Callable

import structlog

from controller.components import Components
from controller.core import plan
from controller.core.errors import InfrastructureError, Interrupted, UserError, VerificationFailed
from controller.core.events import ProposalDropped, Resumed, SessionStopped
from controller.core.plan import Action, Situation
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.experiments import Experiments
from controller.proposals.acceptance import accept
from controller.proposals.context import ContextBuilder
from controller.proposals.proposer import Proposer
from controller.proposals.rebasing import rebase_on_frontier
from controller.store.effort import Effort

log = structlog.stdlib.get_logger(__name__)

_LONGEST_WAIT = 1.0
"""Seconds between two looks at the pause file and the disk."""
_GLANCE = 0.2
"""Seconds within which a stop is noticed while actions are under way."""
_GRACE_SECONDS = 5.0
"""How long a thread gets to notice that it is to end. Afterwards nothing that it does is recorded."""


class Loop:
    """One research effort at work on its slots."""

    def __init__(self, components: Components, state: ResearchState, budget_seconds: float) -> None:
        self.effort = Effort(components.journal, state, components.observer, components.clock)
        self.state = state
        self._components = components
        self._clock_offset = components.clock.now(), components.clock.monotonic()
        self._began = components.clock.monotonic() - state.worked_seconds
        self._halt = _Halt(components.stop)
        self._changed = threading.Condition()
        self._threads: dict[threading.Thread, Action] = {}
        self._busy: dict[threading.Thread, int] = {}
        """The proposal that a thread is at work on."""
        self._foreseen: set[tuple[int, int]] = set()
        self._failure: BaseException | None = None
        self._woken = False
        self._unrecorded: Action | None = None
        contexts = ContextBuilder(self.effort, components.repository, components.runs)
        self._contexts = contexts
        self._proposer = Proposer(
            self.effort,
            contexts,
            components.repository,
            {agent.name: agent for agent in components.agents},
            components.clock,
            components.rules,
            rehearsal=components.rehearsal,
        )
        self._experiments = Experiments(components, self.effort, budget_seconds, self._halt, self._notify)

    def run(self) -> str:
        """Work until a limit is reached; return which one.

        Raises Interrupted, NotReady, Unfit, UserError, VerificationFailed.
        """
        self._components.prune(self.state, self.effort.record)  # what the last process did not live to remove
        self._proposer.begin_session()
        try:
            try:
                reason = self._work()
            finally:
                self._end_threads()
        except (Interrupted, UserError, VerificationFailed) as error:
            reason = "stopped by a person" if isinstance(error, Interrupted) else clean_line(str(error))
            self.effort.record(SessionStopped(reason=reason))
            raise
        self.effort.record(SessionStopped(reason=reason))
        return reason

    def limit(self) -> str | None:
        """The limit that is reached before anything is begun."""
        return plan.limit(self.state, self._situation())

    def _work(self) -> str:
        while True:
            with self.effort.lock:
                self._raise_failure()
                situation = self._situation()
                if (end := plan.stop(self.state, situation)) is not None:
                    if end.error is not None:
                        raise end.error(end.reason)
                    return end.reason
                for action in plan.due(self.state, situation):
                    self._start(action)
                self._break_off_foresight()
                if not situation.busy_slots:
                    self.effort.alive()
            self._wait(situation)

    # --- the situation --------------------------------------------------------------------------

    def _situation(self) -> Situation:
        components, state = self._components, self.state
        with self._changed:
            actions, busy = [*self._threads.values()], [*self._busy.values()]
        wall, monotonic = self._clock_offset
        elapsed = components.clock.monotonic() - monotonic
        slots = [(number, slot.pause) for number, slot in state.slots.items()]
        pauses = [(None, state.pause), *slots]
        return Situation(
            rules=components.rules,
            now=wall + dt.timedelta(seconds=elapsed),
            worked_seconds=components.clock.monotonic() - self._began,
            wish=components.surroundings.wish(),
            shortage=components.surroundings.shortage(),
            busy_slots=frozenset(action.slot for action in actions if isinstance(action, plan.OnSlot)),
            busy_proposals=frozenset(busy),
            exhausted=self._proposer.exhausted,
            understudy_failed=self._proposer.understudy_failed,
            contenders=frozenset(self._experiments.contenders),
            foreseen=frozenset(self._foreseen),
            examined=frozenset(self._experiments.examined),
            absent_seconds=self.effort.seconds_since(state.absence.since) if state.absence else 0.0,
            paused_seconds={
                slot: self.effort.seconds_since(pause.since) for slot, pause in pauses if pause is not None
            },
        )

    # --- actions --------------------------------------------------------------------------------

    def _start(self, action: Action) -> None:
        """Carry out what takes a moment, and plan again; start a thread for what takes longer."""
        effort = self.effort
        if isinstance(action, plan.Move | plan.Drop | plan.Rebase | plan.Accept):
            self._woken = True
        match action:
            case plan.Pause() | plan.Resume():
                self._note_pause(action)
            case plan.Move():
                self._experiments.move(action)
            case plan.Drop(proposal=proposal, reason=reason):
                effort.record(ProposalDropped(proposal=proposal, reason=clean_line(reason)))
            case plan.Rebase(proposal=proposal):
                rebase_on_frontier(effort, self._contexts, proposal)
            case plan.Accept(proposal=proposal, slot=slot):
                accept(effort, self._contexts, proposal, slot)
            case plan.Rehearse(proposal=proposal):
                self._thread(action, lambda: self._proposer.rehearse(action), proposal)
            case plan.Foresee(proposal=proposal, contender=contender):
                self._foreseen.add((proposal, contender))
                self._thread(action, lambda: self._proposer.foresee(action), proposal)
            case plan.Ask():
                number = self._proposer.ask(action)
                self._thread(action, lambda: self._proposer.await_answer(number, self._situation), number)
            case _:
                self._thread(action, lambda: self._experiments.perform(action, self._situation))

    def _thread(self, action: Action, work: Callable[[], None], proposal: int | None = None) -> None:
        def run() -> None:
            try:
                work()
            except Interrupted:
                if isinstance(action, plan.OnSlot):  # a question may be broken off for other reasons
                    self._failure = self._failure or Interrupted("stopped by a person")
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                with self._changed:
                    del self._threads[thread]
                    self._busy.pop(thread, None)
                self._notify()

        # A daemon, because a read from a dead peer may hang for longer than anybody waits for an exit.
        thread = threading.Thread(target=run, name=type(action).__name__.lower(), daemon=True)
        with self._changed:
            self._threads[thread] = action
            if proposal is not None:
                self._busy[thread] = proposal
        thread.start()

    def _note_pause(self, action: plan.Pause | plan.Resume) -> None:
        """A full disk may have no room for the line that says so."""
        try:
            if isinstance(action, plan.Pause):
                self.effort.record(action.event)
            else:
                self.effort.record(self._resumed(action))
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

    def _break_off_foresight(self) -> None:
        """A contender that was not kept is not worth being ready for."""
        frontier = self.state.frontier
        with self._changed:
            actions = [*self._threads.items()]
        for thread, action in actions:
            if not isinstance(action, plan.Foresee) or action.contender in self._experiments.contenders:
                continue
            open_ = any(experiment.number == action.contender for experiment in self.state.open)
            if not open_ and (frontier is None or frontier.experiment != action.contender):
                self._proposer.break_off(self._busy.get(thread))

    # --- waiting and ending ---------------------------------------------------------------------

    def _notify(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _wait(self, situation: Situation) -> None:
        """Until something has changed, or a rule may say something else by the clock."""
        seconds = _LONGEST_WAIT
        if (wake := plan.wake_at(self.state, situation)) is not None:
            seconds = min(seconds, max(0.0, (wake - situation.now).total_seconds()))
        if not self._threads and not self._woken:
            self._components.stop.wait(seconds)
        with self._changed:
            for _ in range(math.ceil(seconds / _GLANCE)):
                if self._woken or not self._threads or self._components.stop.is_set():
                    break
                self._changed.wait(_GLANCE)
            self._woken = False

    def _raise_failure(self) -> None:
        """Raises Interrupted if a person asked us to stop, and what a thread could not cope with."""
        if self._failure is not None:
            raise self._failure
        if self._components.stop.is_set():
            raise Interrupted("stopped by a person")

    def _end_threads(self) -> None:
        """Break off what is under way. Nothing comes from another thread afterwards."""
        self._halt.set()
        self._proposer.break_off()
        with self._changed:
            actions = [*self._threads.items()]
        for thread, action in actions:
            # What runs on a slot is seen to its end, which comes soon: it has to leave the slot in order.
            thread.join(None if isinstance(action, plan.OnSlot) else _GRACE_SECONDS)
        self._proposer.begin_session("broken off when the loop ended")


class _Halt(threading.Event):
    """Set if a person asks to stop, or if the loop ends for another reason."""

    def __init__(self, person: threading.Event) -> None:
        super().__init__()
        self._person = person

    def is_set(self) -> bool:
        return super().is_set() or self._person.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Both are looked at each fifth of a second, so `timeout` is rounded up to that."""
        slices = itertools.count() if timeout is None else range(math.ceil(timeout / _GLANCE))
        for _ in slices:
            if self.is_set():
                break
            self._person.wait(_GLANCE)
        return self.is_set()
