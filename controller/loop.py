"""propose → train → score → decide → record, forever.

An experiment is a small state machine whose state is what the journal says about it
(`core.experiment.Phase`). `Loop.step` looks at the phase and takes the one action that comes next, so going
on after a crash and going on after the previous action are the same code. Every action is bracketed by
journal events.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import structlog

from controller.components import Limits, World
from controller.core import obstacle
from controller.core.decision import contends, decide, oddity
from controller.core.errors import (
    AgentExhausted,
    InfrastructureError,
    Interrupted,
    Unfit,
    UserError,
    VerificationFailed,
)
from controller.core.events import (
    AnyEvent,
    Committed,
    Decided,
    Record,
    ScoringFinished,
    ScoringStarted,
    SessionStopped,
    TrainingFinished,
    TrainingStarted,
    VoidCause,
    Voided,
)
from controller.core.experiment import Experiment, Phase, trailers
from controller.core.scoring.exposure import exposed
from controller.core.state import ResearchState
from controller.core.untrusted import clean_line
from controller.core.values import Disturbance, Frontier, Refusal, RunOutcome, Score
from controller.ports import Attempt
from controller.proposals.acceptance import Admission
from controller.proposals.context import Briefing
from controller.proposals.proposer import Researcher
from controller.proposals.services import Budget
from controller.repeats import Calm
from controller.retry import Patience
from controller.store.effort import Chronicle

log = structlog.stdlib.get_logger(__name__)


class Loop:
    """One research effort at work on one slot."""

    def __init__(self, world: World, state: ResearchState, limits: Limits, budget_seconds: float) -> None:
        self._world = world
        self._limits = limits
        self._budget_seconds = budget_seconds
        self._began = world.clock.monotonic() - state.worked_seconds
        self.state = state
        self.chronicle = Chronicle(world.journal, state, world.observer)
        self._seed = 0
        """Of the next scoring."""
        self._patience = Patience(self.chronicle, world.clock, world.stop, world.surroundings, world.patience)
        briefing = Briefing(self.chronicle, world.repository, world.runs)
        self._admission = Admission(self.chronicle, briefing)
        self._calm = Calm(world.slot, self.chronicle, world.clock, world.stop, world.noise)
        self._researcher = Researcher(
            world.agent,
            world.understudy,
            self.chronicle,
            briefing,
            world.clock,
            world.stop,
            rehearsal=world.rehearsal,
            budget=Budget(limits.dollars, limits.dollars_per_day),
            absence=world.absence,
        )

    def run(self) -> str:
        """Work until a limit is reached; return which one.

        Raises Interrupted, NotReady, Unfit, UserError, VerificationFailed.
        """
        self._world.prune(self.state, self.record)  # what the last process did not live to remove
        self._researcher.begin()
        try:
            try:
                reason = self._work()
            finally:
                self._researcher.close()
        except (Interrupted, UserError, VerificationFailed) as error:
            reason = "stopped by a person" if isinstance(error, Interrupted) else clean_line(str(error))
            self.record(SessionStopped(reason=reason))
            raise
        self.record(SessionStopped(reason=reason))
        return reason

    def _work(self) -> str:
        while (reason := self.reason_to_stop()) is None:
            try:
                self._require_fit()
                if self._under_way or not self._patience.holds():
                    self.step()
            except AgentExhausted as error:
                return clean_line(str(error))
        return reason

    def reason_to_stop(self) -> str | None:
        """The limit that is reached, if one is. Raises Interrupted if a person asked us to stop."""
        if self._world.stop.is_set():
            raise Interrupted("stopped by a person")
        if self._under_way:
            return None
        if self._is_last and self.state.open is None:
            return f"limit of {self._limits.experiments} experiments reached"
        hours = (self._world.clock.monotonic() - self._began) / 3600
        if self._limits.hours is not None and hours >= self._limits.hours:
            return f"limit of {self._limits.hours:g} hours reached"
        return None

    def _require_fit(self) -> None:
        """Raises Unfit if experiment after experiment ends for what the machine lacks."""
        if self.state.open is None and (found := self.state.obstacle) is not None:
            raise Unfit(found.last_words)

    @property
    def _under_way(self) -> bool:
        """True if an experiment is to be seen through; one that waits to be run or repeated is not."""
        return self.state.open is not None and self.state.open.phase is not Phase.PROPOSED

    @property
    def _is_last(self) -> bool:
        """True if the limit allows no experiment after those there are."""
        limit = self._limits.experiments
        return limit is not None and self.state.next_number >= limit

    def step(self) -> None:
        """Take the one action that comes next."""
        experiment = self.state.open
        if experiment is None:
            self._propose()
            return
        match experiment.phase:
            case Phase.PROPOSED:
                if self._calm.awaited(experiment):
                    self._guarded(experiment, self._train)
            case Phase.TRAINING:
                self._guarded(experiment, self._see_training_through)
            case Phase.TRAINED if (found := self._calm.spoiled(experiment)) is not None:
                self._void(experiment, "disturbed", found.detail, found)
            case Phase.TRAINED:
                self._guarded(experiment, self._score)
            case Phase.SCORING:
                self._void(experiment, "interrupted", "the controller stopped while the judge was at work")
            case Phase.JUDGED:
                self._weigh(experiment)
            case Phase.QUARANTINED:
                self._guarded(experiment, self._score)
            case Phase.DECIDED:
                self._commit(experiment)
            case Phase.DONE:
                raise AssertionError("a finished experiment is not open")

    def record(self, event: AnyEvent) -> Record:
        """Write one fact down and let the state and the observer know."""
        return self.chronicle.record(event)

    # --- propose -------------------------------------------------------------------------------

    def _propose(self) -> None:
        offer = self._researcher.next()
        if offer is not None:
            self._admission.consider(offer)

    # --- train and score -----------------------------------------------------------------------

    def _attempt(self, experiment: Experiment, number: int) -> Attempt:
        return self._world.runs.attempt(experiment.number, number, self._budget_seconds)

    def _train(self, experiment: Experiment) -> None:
        self._world.runs.write_proposal(
            experiment.number,
            train_py=self.chronicle.source(experiment),
            diff=self.chronicle.diff(experiment),
        )
        self._world.check_inputs()
        if experiment.attempt > 0:  # an engine that was away may have kept it alive
            self._world.trainer.discard(self._attempt(experiment, experiment.attempt))
        if self._world.slot is not None:
            self._world.slot.ready(self._world.stop)
        attempt = self._attempt(experiment, experiment.attempt + 1)
        spec = self._world.trainer.spec(attempt)
        self.record(
            TrainingStarted(
                experiment=experiment.number,
                attempt=attempt.number,
                container=spec.name,
                spec_sha256=spec.digest(),
                budget_seconds=attempt.budget_seconds,
            )
        )
        self._see_training_through(self._open())

    def _see_training_through(self, experiment: Experiment) -> None:
        """Also the entry after a restart: the trainer adopts a container that is there already."""
        attempt = self._attempt(experiment, experiment.attempt)
        if not self._is_last:
            self._researcher.ahead()
        self._seed = secrets.randbits(63)
        outcome = self._world.trainer.train(
            attempt, self._world.stop, lambda elapsed: self._look(attempt, elapsed)
        )
        self.record(
            TrainingFinished(experiment=experiment.number, attempt=experiment.attempt, outcome=outcome)
        )

    def _look(self, attempt: Attempt, elapsed: float) -> None:
        self.chronicle.training(int(attempt.experiment), elapsed, attempt.budget_seconds)
        self._patience.require_room()
        self._world.judge.make_ready(attempt, self._seed, self.state.draw, attempt.budget_seconds - elapsed)

    def _score(self, experiment: Experiment) -> None:
        outcome = _known(experiment.outcome)
        if outcome.cause is not None:
            self._decide(experiment)
            return
        attempt = self._attempt(experiment, experiment.attempt)
        seed, draw = self._seed or secrets.randbits(63), self.state.draw
        self._seed = 0
        specs = {spec.name: spec.digest() for spec in self._world.judge.specs(attempt, seed, draw)}
        self.record(
            ScoringStarted(
                experiment=experiment.number,
                attempt=attempt.number,
                seed=seed,
                draw=draw,
                specs=specs,
            )
        )
        judgement = self._world.judge.score(
            attempt,
            seed,
            lambda score: self._contends(experiment, score),
            self._world.stop,
            draw,
            self.state.reference,
        )
        self._world.check_inputs()
        if (found := self._calm.excuse(experiment, judgement)) is not None:
            self._void(self._open(), "disturbed", found.detail, found)
            return
        self.record(
            ScoringFinished(
                experiment=experiment.number,
                attempt=attempt.number,
                score=judgement if isinstance(judgement, Score) else None,
                refusal=judgement if isinstance(judgement, Refusal) else None,
            )
        )

    def _contends(self, experiment: Experiment, score: Score) -> bool:
        """Is a first score good enough to be confirmed? Then what comes next may be made ready for it."""
        if contends(self._frontier, score) and exposed(self.state.lineage, score) is None:
            self._researcher.foresee(experiment)
            return True
        return False

    # --- decide and record ---------------------------------------------------------------------

    def _weigh(self, experiment: Experiment) -> None:
        """Decide, unless something about the score has to go on record first."""
        odd = oddity(experiment, self._frontier, self._world.bounds, self.state.lineage)
        if odd is None:
            self._decide(experiment)
        else:
            self.record(odd)

    def _decide(self, experiment: Experiment) -> None:
        frontier = self._frontier
        quarantined = experiment.quarantine.score if experiment.quarantine else None
        decision = decide(
            frontier, _known(experiment.outcome), experiment.judgement, quarantined, self.state.lineage
        )
        self.record(Decided(experiment=experiment.number, decision=decision, frontier_bpb=frontier.val_bpb))
        if self.state.open is None:
            self._world.repository.reset()
            self._close(self.state.experiments[-1])

    def _commit(self, experiment: Experiment) -> None:
        commit = self._world.repository.commit(
            self.chronicle.source(experiment),
            experiment.proposal.description,
            trailers(experiment, self.state.head),
        )
        self.record(Committed(experiment=experiment.number, commit=commit))
        self._close(self.state.experiments[-1])

    def _close(self, experiment: Experiment) -> None:
        """Everything here is a projection of the journal; recovery repeats it when it is missing."""
        self._discard(experiment)
        self._world.runs.finish(experiment)
        with self.chronicle.lock:
            self._world.publish(self.state)
        self._world.prune(self.state, self.record)
        self._patience.succeeded()
        if experiment.number == 0 and experiment.score is None:
            found = obstacle.of(experiment)
            advice = found.sentence if found else "mend train.py or the budget"
            log.warning("baseline_failed", cause=experiment.cause, advice=advice)

    # --- faults --------------------------------------------------------------------------------

    def _guarded(self, experiment: Experiment, action: Callable[[Experiment], None]) -> None:
        try:
            action(experiment)
        except Interrupted:
            self._void(self._open(), "interrupted", "stopped by a person")
            raise
        except InfrastructureError as error:
            log.warning("infrastructure_fault", experiment=experiment.number, error=clean_line(str(error)))
            self._void(self._open(), "infrastructure", clean_line(str(error)))
            self._patience.failed(error)

    def _void(
        self, experiment: Experiment, cause: VoidCause, reason: str, evidence: Disturbance | None = None
    ) -> None:
        if experiment.attempt > 0:
            try:
                self._discard(experiment)
            except InfrastructureError as error:
                log.warning("discard_failed", experiment=experiment.number, error=clean_line(str(error)))
        self.record(
            Voided(
                experiment=experiment.number,
                attempt=experiment.attempt,
                cause=cause,
                reason=reason,
                evidence=evidence,
            )
        )

    def _discard(self, experiment: Experiment) -> None:
        self._world.judge.dismiss()
        self._world.trainer.discard(self._attempt(experiment, experiment.attempt))

    @property
    def _frontier(self) -> Frontier:
        if self.state.frontier is None:
            raise AssertionError("an effort has a frontier from its first event on")
        return self.state.frontier

    def _open(self) -> Experiment:
        if self.state.open is None:
            raise AssertionError("an experiment is open while it is being run")
        return self.state.open


def _known(outcome: RunOutcome | None) -> RunOutcome:
    if outcome is None:
        raise AssertionError("a trained experiment has an outcome")
    return outcome
