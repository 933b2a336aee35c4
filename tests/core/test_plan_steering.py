"""What is due once a person has asked for something: each row is a rule, as in test_plan.py."""

from __future__ import annotations

from typing import Any

import pytest

from controller.core.errors import ImpossibleHistory
from controller.core.events import (
    AgentFailed,
    CertificateOpened,
    ProposalDropped,
    ProposalRefused,
    RolledBack,
    SessionStarted,
    Verb,
)
from controller.core.plan import (
    Accept,
    Action,
    Ask,
    Commit,
    Decide,
    EndRun,
    Rebase,
    RollBack,
    Situation,
    Steer,
    Train,
    Void,
    due,
    stop,
    wake_at,
)
from controller.core.rules import Limits
from controller.core.state import PERSON, REPLICATE, rollback_targets
from controller.core.statistics.certificate import CertifyConfig
from controller.core.steering import in_force
from controller.core.steering_request import SteeringRequest
from controller.core.values import Cause, Verdict
from tests.core.telling import AGENT, Told, after, at
from tests.core.test_plan import check, going, row

IDEA = Ask(AGENT, "propose")
WHY = "killed by ann: it loops"


def request(verb: Verb = "instruct", name: str = "q1", **fields: Any) -> SteeringRequest:
    return SteeringRequest(id=name, verb=verb, by="ann", at=after(0), **fields)


def asked(*requests: SteeringRequest) -> dict[str, Any]:
    return {"requests": requests}


def queued(**fields: Any) -> Told:
    return going().steered("queue", text="mine", train_sha256="text", **fields)


def own(told: Told) -> Ask:
    return Ask(PERSON, "queued", request=told.state.steering.queue[0].request)


def mine() -> Told:
    """A person's program whose proposal has its text."""
    told = queued()
    return told.idea(PERSON, "queued", request=told.state.steering.queue[0].request)


def mine_while_another_is_kept() -> Told:
    told = going().opened().steered("queue", text="mine", train_sha256="text")
    return told.idea(PERSON, "queued", request="asked").kept(1.9, of=1)


def doomed(told: Told) -> Told:
    """The latest experiment is to be killed."""
    return told.steered("kill", target=told.state.next_number - 1, reason="it loops")


BACK = request("rollback", target=0)


@pytest.mark.parametrize(
    ("told", "situation", "actions"),
    [
        row(
            "a request is answered before anything else is done",
            going(),
            Steer(request()),
            **asked(request()),
        ),
        row(
            "requests are answered one by one, since each may change what the next one may do",
            going(),
            Steer(request(name="q1")),
            **asked(request(name="q1"), request(name="q2")),
        ),
        row(
            "one that was answered before the process died is not answered again",
            going().steered("instruct", text="x"),
            IDEA,
            **asked(request(name="asked")),
        ),
        row(
            "a rollback waits for the certificate that is open, and what came after it does not",
            going().opened().kept(1.9).tell(CertificateOpened(certificate=0, base=0, head=1)),
            Steer(request(name="q2")),
            **asked(BACK, request(name="q2")),
        ),
        row(
            "a rollback waits for a keep that is about to be committed",
            going().opened().judged(1.9).decided(Verdict.KEEP),
            **asked(BACK),
            busy_slots=frozenset({0}),
        ),
        row(
            "a rollback on record is carried out before anything else",
            going().opened().kept(1.9).steered("rollback", target=0),
            RollBack("asked", 0),
            **asked(request()),
        ),
        row("a person's program is asked for before the agent is", queued(), own(queued())),
        row("it is accepted like an idea", mine(), Accept(1, 0)),
        row(
            "it is made to fit the frontier that it finds",
            mine_while_another_is_kept(),
            Rebase(2),
        ),
        row(
            "a run that is killed is stopped",
            doomed(going().opened().training()),
            EndRun(1, 0),
            busy_slots=frozenset({0}),
        ),
        row(
            "a training that no process sees through is void",
            doomed(going().opened().training()),
            Void(1, 0, "killed", WHY),
        ),
        row(
            "a checkpoint that waits for its score is void",
            doomed(going().opened().trained()),
            Void(1, 0, "killed", WHY),
        ),
        row(
            "a scoring that no process sees through is void",
            doomed(going().opened().trained().scoring()),
            Void(1, 0, "killed", WHY),
        ),
        row(
            "what is void and killed is decided",
            doomed(going().opened().training()).voided("killed"),
            Decide(1, 0),
        ),
        row("what waits for its slot is decided", doomed(going().opened()), Decide(1, 0)),
        row(
            "what waits for a slot that is gone is decided, and not moved",
            doomed(going().opened(slot=1)),
            Decide(1, 1),
            IDEA,
        ),
        row(
            "a score that came after the kill was granted does not count",
            doomed(going().opened().judged(1.9)),
            Void(1, 0, "killed", WHY),
        ),
        row(
            "a keep that came before it stands",
            doomed(going().opened().judged(1.9).decided(Verdict.KEEP)),
            Commit(1, 0),
        ),
        row(
            "a rollback on record waits for a keep that came first",
            going()
            .opened(0)
            .opened(1)
            .kept(1.9, of=1)
            .judged(1.8, 2)
            .decided(Verdict.KEEP, of=2)
            .steered("rollback", target=0),
            Commit(2, 1),
            slots=2,
            exhausted="nothing left",
        ),
        row("nothing is opened on a slot that is held", going().steered("hold", slot=0)),
        row("an idea waits for it", going().idea().steered("hold", slot=0)),
        row(
            "another slot goes on",
            going().idea().steered("hold", slot=0),
            Accept(1, 1),
            slots=2,
        ),
        row(
            "what was opened there before does not begin",
            going().opened().steered("hold", slot=0),
        ),
        row(
            "it goes on when the slot is released",
            going().opened().steered("hold", slot=0).steered("release", slot=0),
            Train(1, 0),
        ),
    ],
)
def test_requests(told: Told, situation: Situation, actions: list[Action]) -> None:
    check(told, situation, actions)


def test_a_request_may_change_the_limit_that_is_reached() -> None:
    reached = at(limits=Limits(experiments=1))
    assert stop(going().state, reached) is not None
    asks = at(limits=Limits(experiments=1), requests=(request("limit", limits={"experiments": 2.0}),))
    assert stop(going().state, asks) is None


def test_an_effort_does_not_end_before_a_persons_program_has_run() -> None:
    told = queued()
    assert stop(told.state, at(exhausted="nothing left")) is None
    assert due(told.state, at(exhausted="nothing left")) == [own(told)]
    told = mine().opened(proposal=1).judged(9.0).decided(Verdict.DISCARD, Cause.WORSE)
    assert stop(told.state, at(exhausted="nothing left")) is not None


# --- what the state makes of it --------------------------------------------------------------------


def test_an_instruction_is_with_one_question_at_a_time_until_it_is_answered() -> None:
    told = going().steered("instruct", text="be brief")
    (name,) = told.state.steering.untold(told.state.proposals)
    told.asked(instructions=(name,))
    assert told.state.steering.untold(told.state.proposals) == ()
    told.tell(AgentFailed(agent=AGENT, proposal=1, reason="nonsense"))
    assert told.state.steering.untold(told.state.proposals) == (name,)
    told.asked(instructions=(name,)).made()
    assert told.state.steering.instructions == ()


@pytest.mark.parametrize("is_back", [True, False])
def test_a_queued_program_comes_back_only_if_nobody_has_said_no(is_back: bool) -> None:
    told = mine()
    told.tell(
        ProposalDropped(proposal=1, reason="the controller stopped", unanswered=True)
        if is_back
        else ProposalRefused(proposal=1, cause="no-op", detail="it is the frontier")
    )
    assert bool(told.state.steering.due(told.state.proposals)) is is_back


def test_what_was_changed_holds_until_the_setting_is() -> None:
    told = going()
    assert told.state.session is not None

    def again(**settings: Any) -> None:
        told.tell(SessionStarted.model_validate(session | {"settings": settings}))

    session = told.state.session.model_dump()
    again(agent="auto", limits={"hours": 3.0, "experiments": 5})
    told.steered("limit", limits={"hours": None, "experiments": 9.0}).steered("agent", agent="tuner")
    again(agent="auto", limits={"hours": 3.0, "experiments": 5})
    steering = told.state.steering
    assert (steering.limits, steering.agent) == ({"hours": None, "experiments": 9.0}, "tuner")
    rules = in_force(at(limits=Limits(experiments=5, hours=3.0, dollars=1.0)).rules, steering)
    assert rules.limits == Limits(experiments=9, hours=None, dollars=1.0)
    assert (told.state.limit("hours"), told.state.limit("experiments")) == (None, 9)
    again(agent="claude", limits={"hours": 4.0, "experiments": 5})
    assert told.state.steering.limits == {"experiments": 9.0} and told.state.steering.agent is None


def test_a_rollback_takes_back_what_was_kept_since() -> None:
    told = going()
    for number, val_bpb in enumerate((1.9, 1.8, 1.7), 1):
        told.opened().kept(val_bpb, of=number)
    assert rollback_targets(told.state) == {0, 1, 2}
    told.steered("rollback", target=1)
    assert told.state.steering.rollback is not None
    name = told.state.steering.rollback.request
    told.tell(RolledBack(request=name, target=1, commit="back"))
    state = told.state
    assert state.frontier is not None and state.certified is not None
    assert (state.frontier.experiment, state.frontier.commit, state.frontier.val_bpb) == (1, "back", 1.9)
    assert (state.chain, sorted(state.fallen), state.certified.experiment) == ([1], [2, 3], 0)
    assert rollback_targets(state) == {0}
    with pytest.raises(ImpossibleHistory, match="nobody asked"):
        told.tell(RolledBack(request=name, target=0, commit="back"))


def test_a_rollback_kills_what_was_built_on_what_it_takes_back() -> None:
    told = going().opened(0).opened(1).kept(1.9, of=1).opened(0).steered("rollback", target=0)
    told.tell(RolledBack(request="asked", target=0, commit="back"))
    assert list(told.state.steering.killed) == [3] and [known.number for known in told.state.open] == [2, 3]
    assert due(told.state, at(slots=2))[:2] == [Train(2, 1), Decide(3, 0)]


def test_half_of_a_pair_that_is_killed_is_asked_for_again() -> None:
    told = going().replicated(0, 2.0, 2.01, 2.02).opened().kept(1.9)
    told.tell(CertificateOpened(certificate=0, base=0, head=4))
    known = at(certify=CertifyConfig(share=1.0, keeps=1, pairs=4))
    first, *_ = due(told.state, known)
    assert isinstance(first, Ask) and first.repeats is not None
    told.idea(REPLICATE, "replicate", repeats=first.repeats, certificate=0, pair=first.pair)
    number = told.opened(proposal=told.state.next_proposal - 1).state.next_number - 1
    doomed(told).decided(Verdict.DISCARD, Cause.KILLED, of=number)
    assert first in due(told.state, known)


def test_another_agent_is_not_absent_and_more_money_is_asked_about_at_once() -> None:
    told = going().absent(None).steered("limit", limits={"dollars": 5.0})
    assert told.state.absence is not None and told.state.absence.until is not None
    assert told.steered("agent", agent="other").state.absence is None


def test_a_persons_refused_program_is_no_fault_of_the_agents() -> None:
    told = mine().tell(ProposalRefused(proposal=1, cause="no-op", detail="it is the frontier"))
    assert told.state.refused_in_a_row == 0


def test_a_limit_beyond_the_calendar_is_none() -> None:
    assert wake_at(going().state, at(limits=Limits(hours=1e9))) is not None


def test_only_a_killed_experiment_is_decided_without_having_run() -> None:
    with pytest.raises(ImpossibleHistory, match="while it was under way"):
        doomed(going().opened().judged(1.9)).decided(Verdict.DISCARD, Cause.KILLED)
    with pytest.raises(ImpossibleHistory, match="was killed, and is keep"):
        doomed(going().opened()).decided(Verdict.KEEP, Cause.KILLED)
    with pytest.raises(ImpossibleHistory, match="before it ran"):
        going().opened().decided(Verdict.DISCARD, Cause.WORSE)
    told = doomed(going().opened()).decided(Verdict.DISCARD, Cause.KILLED)
    assert told.state.steering.killed == {} and told.state.open == []
    assert told.state.notebook.read == 1  # the baseline: nothing is learnt of the other
