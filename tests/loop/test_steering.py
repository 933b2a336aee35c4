"""What a person asks of an effort while it runs, with a real journal, real git and real request files."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from controller.core.errors import AgentAway, AgentError, Interrupted, UserError
from controller.core.events import (
    AnyEvent,
    CertificateDecided,
    Decided,
    ProposalAsked,
    ProposalDropped,
    RolledBack,
    Steered,
    SteeringRefused,
    Verb,
    Voided,
)
from controller.core.rules import Limits, ReplicatesConfig
from controller.core.state import PERSON, rollback_targets
from controller.core.statistics.certificate import CertifyConfig
from controller.core.values import Cause, Change, RunOutcome, Verdict
from controller.loop import Loop
from controller.ports import Agent, Attempt, Context
from controller.recovery import recover
from controller.store import requests
from controller.store.journal import Journal, read_records
from controller.store.pause import HomeSurroundings
from controller.store.snapshot import standing
from controller.store.verify import verify
from controller.system.clock import SystemClock
from tests.loop.effort import BASELINE, Effort, Workspaces, start, verdicts
from tests.loop.slow import PATIENCE, Slow, Step, Watch, fails, insert, whole
from tests.support.fakes import FakeJudge, FakeTrainer, train_py


class Endless(FakeTrainer):
    """Trains whatever says `endless` until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        if "# endless" in attempt.train_path.read_text(encoding="utf-8"):
            self.started.append((attempt.experiment, attempt.number))
            self.workspaces.add((attempt.experiment, attempt.number))
            self.began.set()
            assert stop.wait(PATIENCE), "nobody stops it"
            raise Interrupted("asked to stop")
        return super().train(attempt, stop, tick)


def effort_with(efforts: list[Effort], tmp_path: Path, *steps: Step) -> tuple[Effort, Slow]:
    """One that hears what persons ask for."""
    agent = Slow([*steps])
    effort = start(efforts, tmp_path / "home", agent)
    effort.components.surroundings = HomeSurroundings(effort.home, 0)
    return effort, agent


def ask(effort: Effort, verb: Verb, reason: str = "because", **fields: Any) -> str:
    request = requests.made(verb, "ada@lab", reason=reason, **fields)
    requests.submit(effort.home, request)
    return request.id


def told(effort: Effort, kind: type[AnyEvent]) -> list[Any]:
    return [record.data for record in read_records(effort.home) if isinstance(record.data, kind)]


def at_rest(effort: Effort) -> None:
    """All agree, and nothing is left of the requests."""
    assert verify(effort.home) == []
    assert requests.read(effort.home) == ()


# --- instruct --------------------------------------------------------------------------------------


def test_an_instruction_goes_to_the_agent_with_its_next_question(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, agent = effort_with(efforts, tmp_path, insert(2.9), insert(2.8))
    request = ask(effort, "instruct", text="Try a \x1b[31mlarger batch.")
    effort.loop(experiments=3).run()
    first, second = agent.contexts
    assert first.instructions == ["Try a larger batch."] and second.instructions == []
    (steered,) = told(effort, Steered)
    assert (steered.by, steered.reason, steered.request) == ("ada@lab", "because", request)
    asked = [event.instructions for event in told(effort, ProposalAsked) if event.purpose == "propose"]
    assert asked == [(request,), ()]
    at_rest(effort)


def test_an_instruction_that_nobody_answered_is_given_again(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, agent = effort_with(efforts, tmp_path, fails(AgentError("It talked.")), insert(2.9))
    ask(effort, "instruct", text="Be brief.")
    effort.loop(experiments=2).run()
    assert [context.instructions for context in agent.contexts] == [["Be brief."], ["Be brief."]]


def test_an_instruction_waits_for_an_agent_that_reads(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, agent = effort_with(efforts, tmp_path, insert(2.9), insert(2.8))
    agent.asks_ahead = False
    effort.rule(asks_ahead=False)
    ask(effort, "instruct", text="Be brief.")
    loop = effort.loop(experiments=2)
    loop.run()
    assert [context.instructions for context in agent.contexts] == [[]]
    assert [one.text for one in loop.state.steering.instructions] == ["Be brief."]


# --- queue and requeue -----------------------------------------------------------------------------


def test_a_queued_program_takes_the_next_free_slot_and_may_be_kept(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9), insert(2.8))
    ask(effort, "queue", train_py=train_py(2.0), text="mine")
    loop = effort.loop(experiments=3)
    loop.run()
    _, mine, other = loop.state.experiments
    assert (mine.proposal.agent, mine.proposal.description, mine.verdict) == (PERSON, "mine", Verdict.KEEP)
    assert other.proposal.agent == "slow"
    assert loop.state.steering.queue == () and effort.git_log()[-1] != "baseline"
    at_rest(effort)


def test_a_queued_program_runs_although_the_agent_has_nothing_left(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    from controller.agents.replay import Replay

    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "0.py").write_text(train_py(2.9), encoding="utf-8")
    effort = start(efforts, tmp_path / "home", Replay(folder))
    effort.components.surroundings = HomeSurroundings(effort.home, 0)
    ask(effort, "queue", train_py=train_py(2.0), text="mine")
    ask(effort, "queue", train_py=train_py(1.9), text="mine, too")
    loop = effort.loop()
    loop.run()
    assert [known.proposal.description for known in loop.state.experiments][1:3] == ["mine", "mine, too"]
    assert loop.state.next_number == 4
    at_rest(effort)


def test_an_earlier_program_runs_again_although_it_was_tried(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(3.5), insert(3.6))
    loop = effort.loop(experiments=2)
    loop.run()
    effort.restart()
    effort.components.surroundings = HomeSurroundings(effort.home, 0)
    ask(effort, "requeue", target=1)
    loop = effort.loop(experiments=3)
    loop.run()
    again = loop.state.experiments[2]
    assert again.train_sha256 == loop.state.experiments[1].train_sha256
    assert again.proposal.agent == PERSON and again.cause is Cause.WORSE
    at_rest(effort)


def test_a_queued_program_starts_from_whatever_the_frontier_is(tmp_path: Path, efforts: list[Effort]) -> None:
    """It was asked for while an experiment ran that is kept."""
    effort, _ = effort_with(efforts, tmp_path, insert(2.9, "endless"), insert(2.8))
    trainer = Endless()
    effort.train_with(trainer)
    watch = Watch()
    effort.components.observer = watch

    def person() -> None:
        assert trainer.began.wait(PATIENCE)
        ask(effort, "queue", train_py=train_py(2.5), text="mine")
        watch.until(lambda state: len(state.steering.queue) == 1)
        ask(effort, "kill", target=1)

    loop = effort.loop(experiments=3)
    with_person(person, loop)
    assert loop.state.experiments[2].proposal.description == "mine"
    at_rest(effort)


# --- kill ------------------------------------------------------------------------------------------


def with_person(person: Callable[[], None], loop: Loop) -> None:
    """Run a loop to its end while somebody acts; what fails there fails here."""
    failures: list[BaseException] = []

    def act() -> None:
        try:
            person()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        loop.run()
    finally:
        thread.join(PATIENCE)
    assert failures == [] and not thread.is_alive()


def test_a_killed_experiment_is_void_and_not_repeated(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9, "endless"), insert(2.8))
    trainer = Endless()
    effort.train_with(trainer)

    def person() -> None:
        assert trainer.began.wait(PATIENCE)
        ask(effort, "kill", reason="it\tloops", target=1)

    loop = effort.loop(experiments=3)
    with_person(person, loop)
    killed = loop.state.experiments[1]
    assert (killed.verdict, killed.cause, killed.score) == (Verdict.DISCARD, Cause.KILLED, None)
    assert killed.decision is not None and killed.decision.rule == "killed by ada@lab: it loops"
    (void,) = told(effort, Voided)
    assert (void.cause, void.reason) == ("killed", "killed by ada@lab: it loops")
    assert trainer.started.count(("1", 1)) == 1 and ("1", 2) not in trainer.started
    assert trainer.workspaces == set() and loop.state.steering.killed == {}
    assert (effort.home / "results.tsv").read_text().splitlines()[2].endswith("\tkilled")
    at_rest(effort)


def test_a_kill_that_a_dead_controller_did_not_carry_out_is_carried_out(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9, "endless"), insert(2.8))
    trainer = Endless()
    effort.train_with(trainer)

    class Dying(Watch):
        def recorded(self, record: Any, state: Any) -> None:
            super().recorded(record, state)
            if isinstance(record.data, Steered):
                effort.stop.set()

    effort.components.observer = Dying()

    def person() -> None:
        assert trainer.began.wait(PATIENCE)
        ask(effort, "kill", target=1)

    with pytest.raises(Interrupted):
        with_person(person, effort.loop(experiments=2))
    assert told(effort, Decided)[-1].experiment == 0
    effort.restart()
    effort.train_with(trainer)
    recover(effort.components, Workspaces(trainer), standing(effort.home)[0])
    loop = effort.loop(experiments=2)
    loop.run()
    assert verdicts(loop.state)[1] == (Verdict.DISCARD, Cause.KILLED)
    at_rest(effort)


# --- rollback --------------------------------------------------------------------------------------


def test_the_frontier_goes_back_and_what_came_since_is_taken_back(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9), insert(2.8), insert(2.7))
    effort.loop(experiments=4).run()
    effort.restart()
    effort.agent = Slow([whole(train_py(2.85))])
    effort.begin_with(effort.agent)
    effort.components.surroundings = HomeSurroundings(effort.home, 0)
    assert rollback_targets(standing(effort.home)[0]) == {0, 1, 2}
    request = ask(effort, "rollback", target=1)
    loop = effort.loop(experiments=5)
    loop.run()
    state = loop.state
    (back,) = told(effort, RolledBack)
    assert (back.target, back.request) == (1, request) and sorted(state.fallen) == [2, 3]
    assert state.experiments[4].parent == back.commit and state.experiments[4].verdict is Verdict.KEEP
    assert effort.git_log()[5:] == ["Back to experiment 1: a person asked for it", "another text"]
    assert state.chain == [1, 4] and state.frontier is not None and state.frontier.experiment == 4
    at_rest(effort)


@pytest.mark.parametrize(
    ("kind", "changes", "finding"),
    [
        (RolledBack, {"target": 1}, "nobody asked for the rollback"),
        (RolledBack, {"commit": "0" * 40}, "stands where the journal has 0000000"),
        (Steered, {"verb": "kill"}, "nobody asked for the rollback"),
        (Decided, {"frontier_bpb": 9.0}, "was measured against 9.0"),
    ],
)
def test_a_forged_rollback_is_named(
    kind: type[AnyEvent], changes: dict[str, Any], finding: str, steered: Path, tmp_path: Path
) -> None:
    """The last event of the kind is another one, in an unbroken chain."""
    home = Path(shutil.copytree(steered, tmp_path / "home"))
    assert verify(home) == []
    records = [record.data for record in read_records(home)]
    last = max(place for place, event in enumerate(records) if isinstance(event, kind))
    records[last] = records[last].model_copy(update=changes)
    (home / "audit.jsonl").unlink()
    (home / "snapshot.json").unlink(missing_ok=True)
    journal = Journal(home, SystemClock())
    for event in records:
        journal.append(event)
    journal.close()
    assert any(finding in problem for problem in verify(home)), verify(home)


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an effort that was rolled back."""
    steps = (insert(2.9), insert(2.8))
    effort, _ = effort_with([], tmp_path_factory.mktemp("steered"), *steps)
    effort.loop(experiments=3).run()
    ask(effort, "rollback", target=0)
    effort.loop(experiments=3).run()
    effort.close()
    return effort.home


def test_a_rollback_behind_what_was_certified_waits_for_an_open_certificate(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.5), insert(2.45))
    effort.slot.judge = FakeJudge(effort.trainer, chance=0.001)
    effort.rule(
        replicates=ReplicatesConfig(baseline=4, every=0), certify=CertifyConfig(share=1.0, keeps=1, pairs=6)
    )
    watch = Watch()
    effort.components.observer = watch

    def person() -> None:
        watch.until(lambda state: state.certificate is not None)
        ask(effort, "rollback", target=0)

    loop = effort.loop(experiments=3)
    with_person(person, loop)
    events = [record.data for record in read_records(effort.home)]
    kinds = [type(event) for event in events]
    assert kinds.index(CertificateDecided) < kinds.index(Steered) < kinds.index(RolledBack)
    state, (decided, *_) = loop.state, told(effort, CertificateDecided)
    assert decided.head in state.fallen
    assert state.certified is not None and state.certified.experiment != decided.head
    at_rest(effort)


# --- limits, agents, slots -------------------------------------------------------------------------


def test_a_limit_holds_until_the_setting_is_changed(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9), insert(2.8), insert(2.7), insert(2.6))
    ask(effort, "limit", limits={"experiments": 3.0})
    loop = effort.loop(experiments=9)
    assert loop.limit() is None
    assert loop.run() == "limit of 3 experiments reached"
    assert loop.state.limit("experiments") == 3
    effort.restart()
    assert effort.loop(experiments=9).limit() == "limit of 3 experiments reached"
    at_rest(effort)


def test_another_agent_is_asked_from_then_on(tmp_path: Path, efforts: list[Effort]) -> None:
    other = Slow([insert(2.8, description="by other"), insert(2.7)], name="other")
    effort, _ = effort_with(efforts, tmp_path, insert(2.9), insert(3.9))
    watch = Watch()
    effort.components.observer = watch
    effort.components.hire = hiring(other)

    def person() -> None:
        watch.until(lambda state: state.next_number == 2)
        ask(effort, "agent", agent="nobody")
        ask(effort, "agent", agent="other")

    loop = effort.loop(experiments=4)
    with_person(person, loop)
    assert loop.state.steering.agent == "other" and other.contexts
    assert loop.state.experiments[3].proposal.agent == "other"
    (refused,) = told(effort, SteeringRefused)
    assert refused.because == "There is no agent 'nobody'."
    at_rest(effort)


def test_the_one_who_was_asked_before_is_not_waited_for(tmp_path: Path, efforts: list[Effort]) -> None:
    """Its answer never comes; that it is absent is no matter of the other one's."""
    asked, other = threading.Event(), Slow([insert(2.8), insert(2.7)], name="other")

    def hangs(context: Context) -> Change:
        asked.set()
        assert context.services.stop.wait(PATIENCE), "nobody gives it up"
        raise AgentAway("The API is down.", None)

    effort, _ = effort_with(efforts, tmp_path, hangs)
    effort.components.hire = hiring(other)

    def person() -> None:
        assert asked.wait(PATIENCE)
        ask(effort, "agent", agent="other")

    loop = effort.loop(experiments=2)
    with_person(person, loop)
    assert loop.state.absence is None and loop.state.experiments[1].proposal.agent == "other"
    (dropped,) = told(effort, ProposalDropped)
    assert dropped.unanswered and loop.state.spending.open == {}
    at_rest(effort)


def test_a_setting_that_was_changed_since_is_the_later_wish(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9))
    ask(effort, "limit", limits={"experiments": 1.0})
    assert effort.loop(experiments=9).run() == "limit of 1 experiments reached"
    effort.rule(limits=Limits(experiments=9))
    loop = Loop(effort.components, standing(effort.home)[0], budget_seconds=20.0)
    assert loop.limit() == loop.limit({}) == "limit of 1 experiments reached"
    assert loop.limit({"limits": {"experiments": 9}}) is None


def hiring(agent: Agent) -> Callable[[str], Sequence[Agent]]:
    def hire(name: str) -> list[Agent]:
        if name != agent.name:
            raise UserError(f"There is no agent {name!r}.")
        return [agent]

    return hire


def test_nothing_begins_on_a_slot_that_is_held(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, *(insert(2.9 - 0.1 * step) for step in range(6)))
    effort.components.slots = [*effort.components.slots, *effort.components.slots]
    effort.rule(slots=2)
    ask(effort, "hold", slot=1)
    loop = effort.loop(experiments=4)
    loop.run()
    assert {known.slot for known in loop.state.experiments} == {0}
    assert loop.state.steering.held[1].by == "ada@lab"
    ask(effort, "release", slot=1)
    loop = effort.loop(experiments=6)
    loop.run()
    assert loop.state.steering.held == {} and 1 in {known.slot for known in loop.state.experiments}


# --- what cannot be granted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "fields", "because"),
    [
        ("instruct", {"text": " \n"}, "is empty"),
        ("instruct", {"text": "x" * 4001}, "4001 characters"),
        ("queue", {"train_py": "def"}, "cannot be run"),
        ("kill", {"target": 0}, "is not running"),
        ("kill", {"target": 77}, "is not running"),
        ("kill", {}, "is not running"),
        ("requeue", {"target": 77}, "no experiment 77"),
        ("requeue", {"target": -1}, "no experiment -1"),
        ("rollback", {"target": 1}, "it can to: there is none"),
        ("limit", {}, "No limit is named"),
        ("limit", {"limits": {"patience": 1.0}}, "no limit patience"),
        ("limit", {"limits": {"experiments": 1.5}}, "whole number above 0"),
        ("limit", {"limits": {"hours": -1.0}}, "above 0"),
        ("limit", {"limits": {"dollars": float("inf")}}, "above 0"),
        ("limit", {"limits": {"experiments": float("nan")}}, "whole number above 0"),
        ("limit", {"limits": {"hours": 1e8}}, "1,000,000 at most"),
        ("requeue", {"target": 0}, "is the frontier's program"),
        ("queue", {"train_py": BASELINE}, "is the frontier's program"),
        ("instruct", {"text": "\u200b"}, "is empty"),
        ("agent", {"agent": "other"}, "no other agent"),
        ("hold", {"slot": 1}, "There is no slot 1"),
        ("release", {}, "There is no slot None"),
    ],
)
def test_what_cannot_be_granted_is_refused_on_record(
    verb: Verb, fields: dict[str, Any], because: str, tmp_path: Path, efforts: list[Effort]
) -> None:
    effort, _ = effort_with(efforts, tmp_path)
    effort.loop(experiments=1).run()
    request = ask(effort, verb, **fields)
    effort.loop(experiments=1).run()
    (refused,) = told(effort, SteeringRefused)
    assert because in refused.because and (refused.request, refused.verb) == (request, verb)
    assert told(effort, Steered) == []
    at_rest(effort)


def test_a_request_that_cannot_be_read_is_set_aside(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9))
    good = ask(effort, "instruct", text="Be brief.")
    folder = effort.home / requests.FOLDER
    (folder / "0.json").write_text("{", encoding="utf-8")
    (folder / "1.json").write_text((folder / f"{good}.json").read_text(), encoding="utf-8")
    (folder / "2.json").mkdir()
    os.mkfifo(folder / "3.json")
    (folder / "4.json").symlink_to(folder / f"{good}.json")
    (folder / "5.json").write_text(
        json.dumps({"id": "5", "verb": "instruct", "by": "x", "at": "9999-12-31T23:59:59-10:00"})
    )
    effort.loop(experiments=2).run()
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}.unreadable" for n in range(6)]
    assert [steered.text for steered in told(effort, Steered)] == ["Be brief."]


def test_a_request_whose_answer_is_on_record_is_only_removed(tmp_path: Path, efforts: list[Effort]) -> None:
    effort, _ = effort_with(efforts, tmp_path, insert(2.9), insert(2.8))
    request = ask(effort, "instruct", text="Be brief.")
    file = effort.home / requests.FOLDER / f"{request}.json"
    content = file.read_bytes()
    effort.loop(experiments=1).run()
    file.write_bytes(content)
    effort.loop(experiments=2).run()
    assert len(told(effort, Steered)) == 1
    at_rest(effort)
