"""What is done with an experiment on its slot: it is trained, scored, decided, committed or voided.

What is due is decided in core/plan.py. Every action is bracketed by events, so that going on after a crash
and going on after the previous action are the same code.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace

import structlog

from controller.components import Components, Slot
from controller.core import obstacle, plan
from controller.core.decision import contends, decide, killed, oddity
from controller.core.errors import InfrastructureError, Interrupted
from controller.core.events import (
    ClaimMismatch,
    Committed,
    Decided,
    ExperimentMoved,
    Quarantined,
    ScoringFinished,
    ScoringStarted,
    SlotReady,
    TrainingFinished,
    TrainingStarted,
    VoidCause,
    Voided,
)
from controller.core.experiment import Experiment, Phase, trailers
from controller.core.hardware.disturbance import confirms, excusable, excuses
from controller.core.plan import OnSlot, Situation
from controller.core.scoring.exposure import exposed
from controller.core.state import ResearchState
from controller.core.steering import killed_by
from controller.core.untrusted import clean_line
from controller.core.values import Decision, Disturbance, Frontier, Refusal, RunOutcome, Score
from controller.ports import Attempt, Monitor
from controller.store.effort import Effort
from controller.under_way import Halt

log = structlog.stdlib.get_logger(__name__)

EARLY_STOP_SHARE = 0.25
"""Of the disk space an experiment should find; with less, one that runs is stopped, to be repeated."""


class Experiments:
    """Carries out the actions on slots, each in a thread that no other action shares its slot with."""

    def __init__(
        self,
        components: Components,
        effort: Effort,
        budget_seconds: float,
        stop: threading.Event,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when the situation is another one before an action has ended."""
        self.contenders: set[int] = set()
        """Experiments that are being confirmed."""
        self.examined: set[tuple[int, int]] = set()
        """(experiment, attempt) whose disturbance was not there without the run."""
        self._components = components
        self._effort = effort
        self._budget_seconds = budget_seconds
        self._stop = stop
        self._changed = changed
        self._stops: dict[int, Halt] = {}
        """By slot: stops what is under way there."""
        self._seeds: dict[int, int] = {}
        """By slot: the seed of the next scoring."""

    def perform(self, action: OnSlot, situation: Callable[[], Situation]) -> None:
        """`situation`: the one of the moment, when it is asked for; an action may take long.

        Raises Interrupted; InfrastructureError only if nothing can be recorded or projected."""
        self._stops[action.slot] = Halt(self._stop)
        try:
            self._perform(action, situation)
        except Interrupted:
            if not self._stop.is_set() and (asked := self._state.steering.killed.get(action.experiment)):
                self._void(action, "killed", killed_by(asked))
                return
            self._void(action, "interrupted", "stopped by a person")
            raise
        except InfrastructureError as error:
            if isinstance(action, plan.Decide | plan.Commit | plan.Void):
                raise
            reason = clean_line(str(error))
            log.warning("infrastructure_fault", experiment=action.experiment, error=reason)
            self._void(action, "infrastructure", reason)
            with self._effort.lock:
                rest = plan.rest_after_fault(self._state, action.slot, situation())
                if rest is not None:
                    self._effort.record(rest)

    def end(self, action: plan.EndRun) -> None:
        """Stop what is under way on a slot; its thread voids the attempt."""
        if (stop := self._stops.get(action.slot)) is not None:
            stop.set()

    def move(self, action: plan.Move) -> None:
        """Give an experiment another slot."""
        self._effort.record(ExperimentMoved(experiment=action.experiment, slot=action.slot))

    def _perform(self, action: OnSlot, situation: Callable[[], Situation]) -> None:
        experiment = self._state.experiments[action.experiment]
        match action:
            case plan.Train():
                self._train(action, experiment)
            case plan.Examine(found=found):
                self._examine(action, experiment, found)
            case plan.Score():
                self._score(action, experiment)
            case plan.Decide():
                self._decide(experiment)
            case plan.Commit():
                self._commit(experiment)
            case plan.Look():
                self._look(experiment, situation)
            case plan.Void(cause=cause, reason=reason, evidence=evidence):
                self._void(action, cause, reason, evidence)

    # --- train ----------------------------------------------------------------------------------

    def _train(self, action: plan.Train, experiment: Experiment) -> None:
        """Also the entry after a restart: the trainer adopts a container that is there already, unless the
        settings have changed, by which slots have other GPUs or CPUs perhaps."""
        if not experiment.under_way:
            experiment = self._start(experiment)
        slot, attempt = self._slot(experiment), self._attempt(experiment, experiment.attempt)
        if slot.trainer.spec(attempt).digest() != experiment.spec_sha256:
            self._void(action, "interrupted", "its container was started with other settings")
            return
        self._seeds[experiment.slot] = seed = secrets.randbits(63)

        def tick(elapsed: float) -> None:
            self._effort.training(experiment.number, elapsed, attempt.budget_seconds)
            self._require_room()
            slot.judge.make_ready(attempt, seed, self._state.draw, attempt.budget_seconds - elapsed)

        limits = self._state.slot(experiment.slot).limits if self._components.rules.early_end else None
        stop = self._stops[experiment.slot]
        outcome = slot.trainer.train(replace(attempt, limits=limits), stop, tick)
        self._effort.record(
            TrainingFinished(experiment=experiment.number, attempt=attempt.number, outcome=outcome)
        )

    def _start(self, experiment: Experiment) -> Experiment:
        slot, number = self._slot(experiment), experiment.number
        self._components.runs.write_proposal(
            number, train_py=self._effort.as_run(experiment), diff=self._effort.diff(experiment)
        )
        self._components.check_inputs()
        if experiment.attempt > 0:  # an engine that was away may have kept it alive
            slot.trainer.discard(self._attempt(experiment, experiment.attempt))
        if slot.monitor is not None:
            slot.monitor.ready(self._stops[experiment.slot])
        attempt = self._attempt(experiment, experiment.attempt + 1)
        spec = slot.trainer.spec(attempt)
        self._effort.record(
            TrainingStarted(
                experiment=number,
                attempt=attempt.number,
                container=spec.name,
                spec_sha256=spec.digest(),
                budget_seconds=attempt.budget_seconds,
            )
        )
        self._changed()  # an agent that is asked ahead is asked now, and not when the loop looks again
        return self._state.experiments[number]

    def _require_room(self) -> None:
        shortage = self._components.surroundings.shortage(EARLY_STOP_SHARE)
        if shortage is not None:
            raise InfrastructureError(f"It was stopped early: {shortage}")

    # --- noise ----------------------------------------------------------------------------------

    def _examine(self, action: plan.Examine, experiment: Experiment, found: Disturbance) -> None:
        """Void the run if its disturbance is there without it, too."""
        seen = self._lasting(experiment)
        if seen is not None and confirms(seen, found):
            log.warning("run_disturbed", experiment=experiment.number, reason=found.detail)
            self._void(action, "disturbed", found.detail, found)
        else:
            log.warning("disturbed_run_counts", experiment=experiment.number, reason=found.detail)
            self.examined.add((experiment.number, experiment.attempt))

    def _look(self, experiment: Experiment, situation: Callable[[], Situation]) -> None:
        monitor, told = self._slot(experiment).monitor, self._state.slot(experiment.slot).noise
        stop = self._stops[experiment.slot]
        found = monitor.look(stop) if monitor is not None else None
        if stop.is_set():
            return
        with self._effort.lock:
            if found is None:
                seconds = self._effort.seconds_since(told.since) if told else 0.0
                self._effort.record(SlotReady(experiment=experiment.number, seconds=seconds))
                return
            waits = plan.wait_for_slot(self._state, experiment, found, situation())
            log.warning(
                "slot_disturbed", experiment=experiment.number, reason=found.detail, until=waits.until
            )
            self._effort.record(waits)

    def _lasting(self, experiment: Experiment) -> Disturbance | None:
        monitor, seconds = self._slot(experiment).monitor, self._components.rules.noise.retry_seconds
        stop = self._stops[experiment.slot]
        return lasting_disturbance(monitor, seconds, stop) if monitor is not None else None

    # --- score ----------------------------------------------------------------------------------

    def _score(self, action: plan.Score, experiment: Experiment) -> None:
        slot, attempt = self._slot(experiment), self._attempt(experiment, experiment.attempt)
        seed = self._seeds.pop(experiment.slot, None) or secrets.randbits(63)
        with self._effort.lock:
            draw = self._state.draw
            specs = {spec.name: spec.digest() for spec in slot.judge.specs(attempt, seed, draw)}
            self._effort.record(
                ScoringStarted(
                    experiment=experiment.number,
                    attempt=attempt.number,
                    seed=seed,
                    draw=draw,
                    specs=specs,
                )
            )
        try:
            judgement = slot.judge.score(
                attempt,
                seed,
                lambda score: self._contends(experiment, score),
                self._stops[experiment.slot],
                draw,
                self._state.reference,
            )
        finally:
            self.contenders.discard(experiment.number)
        self._components.check_inputs()
        if (found := self._excuse(experiment, judgement)) is not None:
            self._void(action, "disturbed", found.detail, found)
            return
        self._effort.record(
            ScoringFinished(
                experiment=experiment.number,
                attempt=attempt.number,
                score=judgement if isinstance(judgement, Score) else None,
                refusal=judgement if isinstance(judgement, Refusal) else None,
            )
        )

    def _contends(self, experiment: Experiment, score: Score) -> bool:
        """Is a first score good enough to be confirmed? Then what comes next may be made ready for it."""
        if experiment.repeats is not None:
            return experiment.proposal.certificate is not None
        with self._effort.lock:
            margin = self._state.margin(self._components.rules.keep)
            if contends(self._frontier, score, margin) and exposed(self._state.lineage, score) is None:
                self.contenders.add(experiment.number)
                self._changed()
                return True
            return False

    def _excuse(self, experiment: Experiment, judgement: Score | Refusal) -> Disturbance | None:
        """Why a scoring that failed is void; None if it counts. Raises Interrupted.

        Load cannot change a score, but can keep the worker from answering in time. What counts is what was
        seen of a worker, not what it is taken for. A run that is not content with its loss may wait for load
        and then be slow; so it gets few attempts for it.
        """
        if not isinstance(judgement, Refusal):
            return None
        cause = judgement.symptom or judgement.cause
        if not excusable(cause) or experiment.attempt > self._components.rules.noise.repeats:
            return None
        found = self._lasting(experiment)
        return found if found is not None and excuses(found, cause) else None

    # --- decide and record ----------------------------------------------------------------------

    def _decide(self, experiment: Experiment) -> None:
        with self._effort.lock:
            frontier, state = self._frontier, self._state
            margin = state.margin(self._components.rules.keep)
            if experiment.number in state.steering.killed and experiment.phase is not Phase.OPENED:
                return  # granted a moment ago: it is void first
            found = self._verdict(experiment, margin)
            if not isinstance(found, Decision):
                self._effort.record(found)
                return
            self._effort.record(
                Decided(
                    experiment=experiment.number,
                    decision=found,
                    frontier_bpb=frontier.val_bpb,
                    margin=margin,
                )
            )
            decided = state.experiments[experiment.number]
            if decided.under_way:
                return
            self._components.repository.reset()
        self._close(decided)

    def _verdict(self, experiment: Experiment, margin: float) -> Decision | ClaimMismatch | Quarantined:
        """The verdict by the rules of the game, or what has to go on record first."""
        rules, state, frontier = self._components.rules, self._state, self._frontier
        asked = state.steering.killed.get(experiment.number)
        if experiment.phase is Phase.OPENED and asked is not None:
            return killed(killed_by(asked))
        odd = oddity(experiment, frontier, rules.bounds, state.lineage, margin)
        return odd or decide(
            frontier,
            _known(experiment.outcome),
            experiment.judgement,
            experiment.quarantine.score if experiment.quarantine else None,
            state.lineage,
            is_replicate=experiment.repeats is not None,
            margin=margin,
        )

    def _commit(self, experiment: Experiment) -> None:
        with self._effort.lock:
            commit = self._components.repository.commit(
                self._effort.source(experiment),
                experiment.proposal.description,
                trailers(experiment, self._state.head),
            )
            self._effort.record(Committed(experiment=experiment.number, commit=commit))
            committed = self._state.experiments[experiment.number]
        self._close(committed)

    def _close(self, experiment: Experiment) -> None:
        """Everything here is a projection of the journal; recovery repeats it when it is missing."""
        self._discard(experiment)
        self._components.runs.finish(experiment)
        with self._effort.lock:
            self._components.publish(self._state)
            self._components.prune(self._state, self._effort.record)
        if experiment.number == 0 and experiment.score is None:
            found = obstacle.of(experiment)
            advice = found.sentence if found else "mend train.py or the budget"
            log.warning("baseline_failed", cause=experiment.cause, advice=advice)

    # --- faults ---------------------------------------------------------------------------------

    def _void(
        self, action: OnSlot, cause: VoidCause, reason: str, evidence: Disturbance | None = None
    ) -> None:
        """Does nothing to an experiment that has come to its end."""
        experiment = self._state.experiments[action.experiment]
        if experiment.decision is not None:
            return
        if experiment.attempt > 0:
            try:
                self._discard(experiment)
            except InfrastructureError as error:
                log.warning("discard_failed", experiment=experiment.number, error=clean_line(str(error)))
        self._effort.record(
            Voided(
                experiment=experiment.number,
                attempt=experiment.attempt,
                cause=cause,
                reason=reason,
                evidence=evidence,
            )
        )

    def _discard(self, experiment: Experiment) -> None:
        slot = self._slot(experiment)
        if experiment.slot < len(self._components.slots):
            slot.judge.dismiss()
        slot.trainer.discard(self._attempt(experiment, experiment.attempt))

    def _slot(self, experiment: Experiment) -> Slot:
        """Where it runs. One whose slot is no longer there is cleared away from the first."""
        slots = self._components.slots
        return slots[experiment.slot] if experiment.slot < len(slots) else slots[0]

    def _attempt(self, experiment: Experiment, number: int) -> Attempt:
        return self._components.runs.attempt(experiment, number, self._budget_seconds)

    @property
    def _state(self) -> ResearchState:
        return self._effort.state

    @property
    def _frontier(self) -> Frontier:
        if self._state.frontier is None:
            raise AssertionError("an effort has a frontier from its first event on")
        return self._state.frontier


def lasting_disturbance(monitor: Monitor, retry_seconds: float, stop: threading.Event) -> Disturbance | None:
    """What disturbs a slot after a run has ended, and still does `retry_seconds` later. Raises Interrupted.

    The first look may see the end of what the run itself has set going: memory that is being freed, the core
    dump of a process that is being packed, a GPU that is cooling down.
    """
    found = monitor.look(stop)
    if found is not None:
        stop.wait(retry_seconds)
        found = monitor.look(stop)
    if stop.is_set():
        raise Interrupted("stopped by a person")
    return found


def _known(outcome: RunOutcome | None) -> RunOutcome:
    if outcome is None:
        raise AssertionError("a trained experiment has an outcome")
    return outcome
