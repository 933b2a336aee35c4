"""Whatever happens, in whatever order: what is due can be done, is done once, and comes to an end.

A player does what is due as the loop does, and lets chance say when an action ends and what comes of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from controller.core import plan
from controller.core.decision import Bounds, contends, decide, killed, oddity
from controller.core.events import (
    AgentFailed,
    AgentReturned,
    AnyEvent,
    CertificateOpened,
    CertificateSettled,
    Committed,
    Decided,
    ExperimentMoved,
    ExperimentOpened,
    ProposalAsked,
    ProposalDropped,
    ProposalMade,
    ProposalRebased,
    ProposalRefused,
    ProposalRehearsed,
    Quarantined,
    Resumed,
    RolledBack,
    ScoringFinished,
    ScoringStarted,
    SlotReady,
    TrainingFinished,
    TrainingStarted,
    Verb,
    VoidCause,
    Voided,
)
from controller.core.experiment import Experiment, Phase
from controller.core.plan import Action, Situation
from controller.core.rules import NO_REPLICATES, AbsenceConfig, Limits, ReplicatesConfig, Wish
from controller.core.state import BASELINE, MERGE, PERSON, REPLICATE, ResearchState, rollback_targets
from controller.core.statistics.certificate import NO_CERTIFICATES, CertifyConfig
from controller.core.steering_request import SteeringRequest, objection
from controller.core.values import Cause, Disturbance, Draw, RehearsalResult, Verdict
from tests.core.telling import Told, after, at, commit, outcome, score
from tests.support.fakes import LOAD, LOST, SHARED

EXPERIMENTS = 12
CAUSES = (Cause.OOM, Cause.NAME, Cause.TIMEOUT)


class Player:
    """One effort at work. `mercy`: nothing fails any more."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.told = Told("claude")
        self.seconds = 0.0
        self.slots = self.chance.choice([1, 2, 2, 3, 16])
        self.asks_ahead = self.chance.random() < 0.7
        self.understudy = "replay" if self.chance.random() < 0.5 else None
        self.is_watched = self.chance.random() < 0.5
        self.rehearses = self.chance.random() < 0.5
        self.replicates = self.chance.choice([NO_REPLICATES, ReplicatesConfig(baseline=3, every=2)])
        self.certify = self.chance.choice(
            [NO_CERTIFICATES, CertifyConfig(share=1.0, keeps=2, pairs=3), CertifyConfig(share=0.3, pairs=3)]
        )
        self.mercy = False
        self.wish, self.shortage = Wish(paused=False), None if seed % 2 else "full"
        self.under_way: list[Action] = []
        self.asked: dict[int, Action] = {}
        """By question: the proposal that is being waited for."""
        self.contenders: set[int] = set()
        self.foreseen: set[tuple[int, int]] = set()
        self.examined: set[tuple[int, int]] = set()
        self.texts = 0
        self.requests: list[SteeringRequest] = []
        """What a person has asked for and nobody has answered."""
        self.asked_for = 0
        self.ending: set[int] = set()
        """Experiments whose run was told to end, since they are killed."""

    @property
    def state(self) -> ResearchState:
        return self.told.state

    def record(self, *events: AnyEvent) -> None:
        for event in events:
            self._require_fair(event)
            self.told.tell(event)

    def _require_fair(self, event: AnyEvent) -> None:
        """What must hold whatever is due."""
        frontier = self.state.frontier
        assert frontier is not None
        if isinstance(event, ExperimentOpened):
            idea = self.state.proposals[event.proposal].repeats is None
            assert event.parent == frontier.commit or not idea  # R5
            assert event.experiment == 0 or self.state.experiments[0].phase is Phase.DONE  # R8
            assert event.slot < self.slots and (not idea or self.state.candidates < EXPERIMENTS)
            assert self.wish.paused is False and self.shortage is None
            assert event.slot not in self.state.steering.held
        if isinstance(event, TrainingStarted):
            assert event.experiment not in self.state.steering.killed
        if isinstance(event, Committed) and frontier.val_bpb is not None:
            known = self.state.experiments[event.experiment].score
            assert known is not None and known.val_bpb < frontier.val_bpb  # R7

    def situation(self) -> Situation:
        on_slots = [action for action in self.under_way if isinstance(action, plan.OnSlot)]
        with_proposals = [action for action in self.under_way if isinstance(action, plan.OnProposal)]
        absence = self.state.absence
        return at(
            self.seconds,
            agent="claude",
            asks_ahead=self.asks_ahead,
            understudy=self.understudy,
            slots=self.slots,
            is_watched=self.is_watched,
            limits=Limits(experiments=EXPERIMENTS),
            replicates=self.replicates,
            certify=self.certify,
            absence=AbsenceConfig(understudy_after_seconds=100.0),
            wish=self.wish,
            requests=tuple(self.requests),
            shortage=self.shortage,
            busy_slots=frozenset(action.slot for action in on_slots),
            busy_proposals=frozenset([*(action.proposal for action in with_proposals), *self.asked]),
            contenders=frozenset(self.contenders),
            foreseen=frozenset(self.foreseen),
            examined=frozenset(self.examined),
            absent_seconds=0.0 if absence is None else 1000.0,
        )

    # --- the loop -------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Begin what is due; False if it is time to stop."""
        situation = self.situation()
        if plan.stop(self.state, situation) is not None:
            return False
        actions = plan.due(self.state, situation)
        require_apart(actions, situation)
        for action in actions:
            self._begin(action, situation)
        return True

    def _begin(self, action: Action, situation: Situation) -> None:
        state = self.state
        match action:
            case plan.Pause(event=event):
                self.record(event)
            case plan.Resume(slot=slot, seconds=seconds):
                pause = state.pause if slot is None else state.slot(slot).pause
                assert pause is not None
                self.record(Resumed(why=pause.event.why, slot=slot, seconds=seconds))
            case plan.Steer(request=request):
                self._answer_person(request)
            case plan.RollBack(request=name, target=target):
                self.record(RolledBack(request=name, target=target, commit=f"back {name}"))
            case plan.EndRun(experiment=number):
                self.ending.add(number)
            case plan.Move(experiment=number, slot=slot):
                self.record(ExperimentMoved(experiment=number, slot=slot))
            case plan.Drop(proposal=number, reason=reason):
                self.record(ProposalDropped(proposal=number, reason=reason))
            case plan.Rebase(proposal=number):
                self._rebase(number)
            case plan.Accept(proposal=number, slot=slot):
                self._accept(number, slot)
            case plan.Ask():
                self._ask(action)
            case plan.OpenCertificate(base=base, head=head):
                number = len(state.certificates)
                self.record(CertificateOpened(certificate=number, base=base, head=head))
            case plan.DecideCertificate(event=event):
                self.record(event)
            case plan.SettleCertificate(certificate=number):
                decided = state.certificates[number]
                settled = commit(decided.head) if decided.outcome == "certified" else f"back {number}"
                self.record(CertificateSettled(certificate=number, commit=settled))
            case plan.Train(experiment=number) if not state.experiments[number].under_way:
                self._train(number)
                self.under_way.append(action)
            case plan.Score(experiment=number):
                self._score(number)
                self.under_way.append(action)
            case plan.Foresee(proposal=number, contender=contender):
                self.foreseen.add((number, contender))
                self.under_way.append(action)
            case _:
                self.under_way.append(action)

    def end_one(self) -> None:
        """Something that is under way comes to its end."""
        endings: list[Action | int] = [*self.under_way, *self.asked]
        if not endings:
            return
        ending = self.chance.choice(endings)
        if isinstance(ending, int):
            del self.asked[ending]
            self._answer(ending)
        else:
            self.under_way.remove(ending)
            self._end(ending)

    def _fails(self, share: float) -> bool:
        return not self.mercy and self.chance.random() < share

    def _text(self) -> str:
        self.texts += 1
        return f"text {self.texts}"

    # --- proposals ------------------------------------------------------------------------------

    def _ask(self, action: plan.Ask) -> None:
        number, frontier = self.state.next_proposal, self.state.frontier
        assert frontier is not None
        self.record(
            ProposalAsked(
                proposal=number,
                agent=action.agent,
                purpose=action.purpose,
                parent=frontier.commit,
                fixes=action.fixes,
                merges=action.merges,
                repeats=action.repeats,
                certificate=action.certificate,
                pair=action.pair,
                stands_in_for=action.stands_in_for,
                request=action.request,
                instructions=self.state.steering.untold(self.state.proposals)
                if self.asks_ahead and action.purpose == "propose"
                else (),
            )
        )
        self.asked[number] = action

    def _answer(self, number: int) -> None:
        proposal = self.state.proposals[number]
        is_agent = proposal.agent not in (BASELINE, MERGE, REPLICATE, PERSON)
        if is_agent and self._fails(0.2):
            if proposal.stands_in_for is None and self.chance.random() < 0.5:
                failed = AgentFailed(agent=proposal.agent, proposal=number, reason="nonsense")
                self.record(failed)
                if (absent := plan.after_failure(self.state, failed, self.situation())) is not None:
                    self.record(absent)
                return
            self.record(ProposalDropped(proposal=number, reason="The API is down."))
            if proposal.stands_in_for is None:
                self.record(plan.absent(self.state, "The API is down.", 0.0, self.situation()))
            return
        absence = self.state.absence
        if absence is not None and absence.agent == proposal.agent:
            self.record(AgentReturned(agent=proposal.agent, seconds=1.0))
        if proposal.purpose in ("fix", "merge") and self._fails(0.3):
            self.record(ProposalDropped(proposal=number, reason="the agent sees none that is worth a run"))
            return
        text = self._text()
        if is_agent and self.rehearses:
            self._rehearse(number, text, "passed")
        self.record(ProposalMade(proposal=number, description="d", train_sha256=text))

    def _rebase(self, number: int) -> None:
        frontier = self.state.frontier
        assert frontier is not None
        if self.state.proposals[number].agent != PERSON and self._fails(0.2):
            self.record(ProposalDropped(proposal=number, reason="it is stale"))
        else:
            self.record(ProposalRebased(proposal=number, parent=frontier.commit, train_sha256=self._text()))

    def _rehearse(self, number: int, text: str, result: str) -> None:
        told = RehearsalResult(result=result, detail="boom", seconds=1.0)  # type: ignore[arg-type]
        self.record(
            ProposalRehearsed(
                proposal=number,
                train_sha256=text,
                result=told.result,
                detail=told.detail,
                seconds=told.seconds,
            )
        )

    def _accept(self, number: int, slot: int) -> None:
        proposal, frontier = self.state.proposals[number], self.state.frontier
        assert frontier is not None
        if proposal.agent not in (BASELINE, REPLICATE) and self._fails(0.1):
            self.record(ProposalRefused(proposal=number, cause="no-op", detail="it is a no-op"))
            return
        self.record(
            ExperimentOpened(
                experiment=self.state.next_number,
                proposal=number,
                slot=slot,
                parent=frontier.commit,
                train_sha256=proposal.train_sha256,
                seed=7,
                ran_sha256=proposal.train_sha256,
                digest=proposal.train_sha256,
                diff_sha256="",
            )
        )

    # --- experiments ----------------------------------------------------------------------------

    def _train(self, number: int) -> None:
        attempt = self.state.experiments[number].attempt + 1
        self.record(
            TrainingStarted(
                experiment=number, attempt=attempt, container="t", spec_sha256="", budget_seconds=300
            )
        )

    def _score(self, number: int) -> None:
        attempt, draw = self.state.experiments[number].attempt, Draw(scoring=0, confirmation=0)
        self.record(ScoringStarted(experiment=number, attempt=attempt, seed=1, draw=draw, specs={}))
        if self.chance.random() < 0.5:
            self.contenders.add(number)

    def _end(self, action: Action) -> None:
        if isinstance(action, plan.OnSlot) and self._is_to_end(action):
            self.ending.discard(action.experiment)
            self._void(action.experiment, "killed")
            return
        match action:
            case plan.Train() | plan.Score() | plan.Examine() | plan.Look() if self._fails(0.15):
                self._void(action.experiment, "infrastructure")
                if (rest := plan.rest_after_fault(self.state, action.slot, self.situation())) is not None:
                    self.record(rest)
            case plan.Train(experiment=number):
                cause = self.chance.choice(CAUSES) if self._fails(0.3) else None
                found = self.chance.choice((LOAD, SHARED, LOST)) if self._fails(0.2) else None
                attempt = self.state.experiments[number].attempt
                ended = outcome(cause, found)
                self.record(TrainingFinished(experiment=number, attempt=attempt, outcome=ended))
            case plan.Examine(experiment=number, found=found):
                if self.chance.random() < 0.5:
                    self._void(number, "disturbed", found)
                else:
                    self.examined.add((number, self.state.experiments[number].attempt))
            case plan.Look(experiment=number):
                experiment = self.state.experiments[number]
                if self._fails(0.5):
                    waits = plan.wait_for_slot(self.state, experiment, LOAD, self.situation())
                    self.record(waits)
                else:
                    self.record(SlotReady(experiment=number, seconds=1.0))
            case plan.Score(experiment=number):
                self._judge(self.state.experiments[number])
            case plan.Decide(experiment=number):
                self._decide(self.state.experiments[number])
            case plan.Commit(experiment=number):
                self.record(Committed(experiment=number, commit=commit(number)))
            case plan.Void(experiment=number, cause=cause_of_void, evidence=evidence):
                self._void(number, cause_of_void, evidence)
            case plan.Rehearse(proposal=number):
                result = "passed" if self.mercy else self.chance.choice(["passed", "failed", "inconclusive"])
                self._rehearse(number, self.state.proposals[number].train_sha256, result)
            case _:
                return

    def _is_to_end(self, action: plan.OnSlot) -> bool:
        """A look may be over before anything is to be void, as a verdict may."""
        told = action.experiment in self.ending
        return told and isinstance(action, plan.Train | plan.Score | plan.Examine)

    def _void(self, number: int, cause: VoidCause, found: Disturbance | None = None) -> None:
        self.contenders.discard(number)
        attempt = self.state.experiments[number].attempt
        self.record(
            Voided(experiment=number, attempt=attempt, cause=cause, reason="no engine", evidence=found)
        )

    def _judge(self, experiment: Experiment) -> None:
        self.contenders.discard(experiment.number)
        frontier = self.state.frontier
        assert frontier is not None
        found = score(self.chance.uniform(1.0, 2.0))
        is_idea = experiment.repeats is None
        found = found.model_copy(update={"confirmed": is_idea and contends(frontier, found)})
        self.record(ScoringFinished(experiment=experiment.number, attempt=experiment.attempt, score=found))

    def _decide(self, experiment: Experiment) -> None:
        """A score that was not confirmed while another one was the frontier is not kept either."""
        frontier, found, ended = self.state.frontier, experiment.score, experiment.outcome
        assert frontier is not None
        doomed = experiment.number in self.state.steering.killed
        if doomed and experiment.phase is not Phase.OPENED:
            return
        if experiment.phase is Phase.OPENED:
            assert experiment.number in self.state.steering.killed
            self.record(
                Decided(experiment=experiment.number, decision=killed("why"), frontier_bpb=frontier.val_bpb)
            )
            return
        assert ended is not None
        if (odd := oddity(experiment, frontier, Bounds(1.0, 1.0))) is not None:
            self.record(odd)
            return
        if found is not None and experiment.quarantine is None and self._fails(0.1):
            self.record(
                Quarantined(
                    experiment=experiment.number, attempt=experiment.attempt, reason="too good", score=found
                )
            )
            return
        decision = decide(frontier, ended, found, is_replicate=experiment.repeats is not None)
        self.record(Decided(experiment=experiment.number, decision=decision, frontier_bpb=frontier.val_bpb))
        assert (decision.verdict is Verdict.KEEP) == self.state.experiments[experiment.number].under_way

    # --- what else may happen -------------------------------------------------------------------

    def ask(self, verb: Verb, **fields: Any) -> None:
        """Something of the effort, as a person."""
        self.asked_for += 1
        name = f"{self.asked_for:06d}"
        self.requests.append(SteeringRequest(id=name, verb=verb, by="ann", at=after(0.0), **fields))

    def _ask_for_something(self) -> None:
        number = self.chance.randrange(max(1, self.state.next_number))
        match self.chance.randrange(6):
            case 0 | 1:
                opened = [known.number for known in self.state.open]
                self.ask("kill", target=self.chance.choice([*opened, number]))
            case 2:
                self.ask(
                    "rollback", target=self.chance.choice([*sorted(rollback_targets(self.state)), number])
                )
            case 3:
                self.ask("requeue", target=number)
            case 4:
                self.ask("instruct", text="Be brief.")
            case _:
                held = self.state.steering.held
                self.ask("release" if held else "hold", slot=min(held, default=self.slots - 1))

    def _answer_person(self, request: SteeringRequest) -> None:
        """Now and then the process dies before the request is removed."""
        because = objection(self.state, request, self.slots)
        self.record(request.refused(because) if because else request.granted("text", self._text()))
        if not self._fails(0.1):
            self.requests.remove(request)

    def something(self) -> None:
        """Time passes, a person pauses or asks for something, the disk fills, the process begins again."""
        match self.chance.randrange(13):
            case 12:
                self._ask_for_something()
            case 0:
                self.wish = Wish(paused=not self.wish.paused)
            case 1:
                self.shortage = None if self.shortage else "full"
            case 2:
                self.restart(self.chance.choice([1, 2, 3]))
            case 3 | 4:
                self.seconds += self.chance.choice([1.0, 60.0, 4000.0])
            case _:
                self.end_one()

    def restart(self, slots: int) -> None:
        """As after a crash: what was under way is forgotten, and what was asked is given up."""
        self.under_way.clear()
        self.asked.clear()
        self.contenders.clear()
        self.foreseen.clear()
        self.examined.clear()
        self.ending.clear()
        heard = self.state.steering.heard
        self.requests = [request for request in self.requests if request.id not in heard]
        self.slots = slots
        self.told.session("claude")
        for number in [number for number, known in self.state.proposals.items() if not known.is_made]:
            self.record(ProposalDropped(proposal=number, reason="the controller stopped"))


def require_apart(actions: list[Action], situation: Situation) -> None:
    """No two actions take one slot or one proposal, nor one that is busy."""
    slots = [a.slot for a in actions if isinstance(a, plan.OnSlot | plan.Move | plan.Accept)]
    proposals = [a.proposal for a in actions if isinstance(a, plan.OnProposal)]
    experiments = [a.experiment for a in actions if isinstance(a, plan.OnSlot | plan.Move)]
    for taken, busy in ((slots, situation.busy_slots), (proposals, situation.busy_proposals)):
        assert len(set(taken)) == len(taken), actions
        assert not busy & set(taken), actions
    assert len(set(experiments)) == len(experiments), actions


def turns(player: Player, count: int) -> Iterator[None]:
    for _ in range(count):
        if not player.turn():
            return
        yield


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_can_be_gone_on_from_and_comes_to_its_end(seed: int) -> None:
    player = Player(seed)
    for _ in turns(player, 300):
        player.something()
    player.mercy, player.wish, player.shortage = True, Wish(paused=False), None
    if player.chance.random() < 0.5:
        player.restart(player.slots)
    player.requests = []
    for slot in range(player.slots):
        player.ask("release", slot=slot)
    for _ in turns(player, 2000):
        if player.under_way or player.asked:
            player.end_one()
        else:
            wake = plan.wake_at(player.state, player.situation())
            if wake is not None:
                player.seconds = (wake - at().now).total_seconds()
    end = plan.stop(player.state, replace(player.situation(), busy_slots=frozenset()))
    assert end is not None and end.reason == f"limit of {EXPERIMENTS} experiments reached"
    assert (player.state.open, player.state.candidates) == ([], EXPERIMENTS)
    assert player.state.certificate is None
    assert (player.requests, player.state.steering.killed, player.state.steering.rollback) == ([], {}, None)
