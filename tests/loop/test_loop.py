"""The loop with a real journal, real git, real ledger and runs/, and containers that are only pretended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from controller.agents.replay import Replay
from controller.core.errors import (
    AgentExhausted,
    InfrastructureError,
    Interrupted,
    UserError,
    VerificationFailed,
)
from controller.core.events import AnyEvent, Record, ScoringStarted
from controller.core.experiment import Experiment, Phase
from controller.core.values import Cause, Change, Draw, Refusal, RunOutcome, Score, Verdict, Work
from controller.ports import Attempt, Context, Journal
from controller.proposals.context import History
from controller.recovery import check_comparable, recover
from controller.store.journal import read_records
from controller.store.repository import GitRepository
from controller.store.verify import verify
from controller.views.facts import marks
from tests.loop.effort import Effort, Workspaces, start, verdicts
from tests.support.efforts import PROVENANCE
from tests.support.fakes import FakeJudge, FakeTrainer, train_py


@pytest.fixture
def proposals(tmp_path: Path) -> Path:
    folder = tmp_path / "proposals"
    folder.mkdir()
    return folder


def propose(folder: Path, *texts: str) -> Replay:
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.py").write_text(text, encoding="utf-8")
    return Replay(folder)


def test_baseline_first_then_every_verdict(tmp_path: Path, proposals: Path, efforts: list[Effort]) -> None:
    agent = propose(
        proposals,
        train_py(2.5, "better"),
        train_py(2.75, "worse"),
        train_py(2.5, "equal", salt=1),
        train_py(-1.0, "forged"),
        train_py(2.0, "crash RuntimeError"),
        train_py(2.25, "better again"),
    )
    effort = start(efforts, tmp_path / "home", agent)
    loop = effort.loop()
    reason = loop.run()

    assert "every file" in reason
    assert verdicts(loop.state) == [
        (Verdict.KEEP, None),
        (Verdict.KEEP, None),
        (Verdict.DISCARD, Cause.WORSE),
        (Verdict.DISCARD, Cause.EQUAL),
        (Verdict.REJECT, Cause.NON_CAUSAL),
        (Verdict.CRASH, Cause.EXIT),
        (Verdict.KEEP, None),
    ]
    assert loop.state.experiments[0].proposal.description == "baseline"
    assert [line.split(":")[0] for line in effort.git_log()[1:]] == ["baseline", "00.py", "05.py"]
    _, trailers = GitRepository(effort.home / "repo", "t").history()[-1]
    assert trailers.pop("Journal") in {record.hash for record in read_records(effort.home)}
    assert trailers == {
        "Experiment": "6",
        "Val-Bpb": "2.250000",
        "Image": PROVENANCE.image,
        "Data": PROVENANCE.data,
        "Prepare": PROVENANCE.prepare,
    }
    frontier = loop.state.frontier
    assert frontier is not None and frontier.val_bpb == 2.25
    rows = (tmp_path / "home" / "results.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[1] for row in rows] == [
        "3.000000",
        "2.500000",
        "2.750000",
        "2.500000",
        "",
        "",
        "2.250000",
    ]
    assert not effort.trainer.workspaces
    assert verify(tmp_path / "home") == []


def test_a_run_log_ends_with_the_score_and_never_tells_the_holdout(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5)))
    effort.loop().run()
    log = (tmp_path / "home" / "runs" / "000001" / "run.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("val_bpb:")][-1].split()[1] == "2.500000"
    for path in (tmp_path / "home" / "runs").rglob("*"):
        assert path.is_dir() or "holdout" not in path.read_text()


def test_limit_counts_the_whole_effort_and_the_same_command_goes_on(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    agent = propose(proposals, *(train_py(2.9 - 0.1 * n) for n in range(5)))
    effort = start(efforts, tmp_path / "home", agent)
    assert "3 experiments" in effort.loop(experiments=3).run()
    effort.restart()
    loop = effort.loop(experiments=3)
    assert "3 experiments" in loop.run()
    assert len(loop.state.experiments) == 3
    effort.restart()
    loop = effort.loop(experiments=5)
    assert len(loop.state.experiments) == 3
    loop.run()
    assert [e.number for e in loop.state.experiments] == [0, 1, 2, 3, 4]
    assert verify(tmp_path / "home") == []


def test_a_changed_file_that_ends_it_is_on_record(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    """So somebody who is not looking is told."""
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5)))
    loop = effort.loop()

    def changed() -> None:
        raise VerificationFailed("data/public/tokens is not what it was.")

    effort.components.check_inputs = changed
    with pytest.raises(VerificationFailed):
        loop.run()
    assert loop.state.stopped == "data/public/tokens is not what it was."


def test_a_person_stops_it_and_the_experiment_is_repeated(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5, "stopped")))
    with pytest.raises(Interrupted):
        effort.loop().run()
    assert not effort.trainer.workspaces
    effort.restart()
    loop = effort.loop()
    (experiment,) = loop.state.open
    assert (experiment.number, experiment.phase) == (1, Phase.OPENED)
    with pytest.raises(Interrupted):
        loop.run()
    assert effort.trainer.started == [("0", 1), ("1", 1), ("1", 2)]


def test_an_engine_fault_voids_the_attempt_and_blames_nobody(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5, "broken")))
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state) == [(Verdict.KEEP, None), (Verdict.KEEP, None)]
    assert loop.state.experiments[1].attempt == 2
    assert verify(tmp_path / "home") == []


class Failing(FakeJudge):
    """Fails the first time."""

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        if not self.scored:
            self.scored.append((attempt.experiment, attempt.number))
            raise InfrastructureError("the engine went away")
        return super().score(attempt, seed, contends, stop, draw, reference)


class Clinging(FakeTrainer):
    """Its engine is away for a while after the first scoring: nothing can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.away = 2
        self.at_once = 0

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        outcome = super().train(attempt, stop, tick)
        self.at_once = max(self.at_once, len(self.workspaces))
        return outcome

    def discard(self, attempt: Attempt) -> None:
        if self.away > 0:
            self.away -= 1
            raise InfrastructureError("the engine went away")
        super().discard(attempt)


def test_what_could_not_be_removed_is_removed_before_the_next_attempt(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5)))
    trainer = Clinging()
    effort.train_with(trainer)
    effort.slot.judge = Failing(trainer)
    (loop := effort.loop()).run()
    assert verdicts(loop.state) == [(Verdict.KEEP, None), (Verdict.KEEP, None)]
    assert trainer.at_once == 1 and not trainer.workspaces
    assert trainer.started == [("0", 1), ("0", 2), ("1", 1)], "a fault before the start begins no attempt"


class Mender:
    """Proposes a crash and repairs it."""

    name = "mender"
    asks_ahead = False

    def __init__(self, repaired: str) -> None:
        self._proposals = [train_py(2.5, "crash NameError")]
        self._repaired = repaired
        self.asked = 0

    def propose(self, context: Context) -> Change:
        if not self._proposals:
            raise AgentExhausted("no more")
        return Change(train_py=self._proposals.pop(), description="an idea")

    def fix(self, context: Context, crashed: Experiment) -> Change | None:
        self.asked += 1
        return Change(train_py=self._repaired, description="the idea, mended")

    def combine(self, context: Context, behind: Experiment) -> None:
        return None


def test_a_trivial_crash_gets_one_repair(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = start(efforts, tmp_path / "home", Mender(train_py(2.25)))
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state)[1:] == [(Verdict.CRASH, Cause.NAME), (Verdict.KEEP, None)]
    assert loop.state.experiments[2].proposal.fixes == 1


def test_a_repair_that_crashes_is_not_repaired(tmp_path: Path, efforts: list[Effort]) -> None:
    agent = Mender(train_py(2.25, "crash NameError"))
    effort = start(efforts, tmp_path / "home", agent)
    loop = effort.loop()
    loop.run()
    assert verdicts(loop.state)[1:] == [(Verdict.CRASH, Cause.NAME)] * 2
    assert agent.asked == 1


class Stubborn:
    """Proposes the frontier itself, again and again."""

    name = "stubborn"
    asks_ahead = False

    def propose(self, context: Context) -> Change:
        return Change(train_py=context.train_py, description="nothing new")

    def fix(self, context: Context, crashed: Experiment) -> None:
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        return None


def test_refused_proposals_cost_no_run_and_end_the_loop_at_last(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", Stubborn())
    loop = effort.loop()
    with pytest.raises(UserError, match="in a row were refused"):
        loop.run()
    assert len(loop.state.experiments) == 1 and effort.trainer.started == [("0", 1)]
    assert verify(tmp_path / "home") == []


def test_a_score_that_is_hard_to_believe_is_measured_twice(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    agent = propose(
        proposals,
        train_py(1.5),
        train_py(0.75, "unsteady"),
        train_py(0.0, "perfect"),
        train_py(1.25, "claims 1.5"),
        train_py(1.1, "claims 1.15"),
        train_py(1.0, "claims nan"),
    )
    effort = start(efforts, tmp_path / "home", agent)
    (loop := effort.loop()).run()
    assert verdicts(loop.state)[1:] == [
        (Verdict.KEEP, None),
        (Verdict.REJECT, Cause.IMPLAUSIBLE),
        (Verdict.REJECT, Cause.IMPLAUSIBLE),
        (Verdict.KEEP, None),
        (Verdict.KEEP, None),
        (Verdict.KEEP, None),
    ]
    twice = ["quarantined"]
    found = [marks(experiment) for experiment in loop.state.experiments]
    assert found == [[], twice, twice, twice, ["claim-mismatch"], [], []]
    judge = effort.slot.judge
    assert isinstance(judge, FakeJudge)
    assert [number for number, _ in judge.scored] == [*"0112233456"]
    assert all(e.score.confirmed for e in loop.state.experiments if e.verdict is Verdict.KEEP and e.score)
    assert verify(tmp_path / "home") == []


@pytest.mark.parametrize("change", ["scale", "data", "prepare", "harness"])
def test_scores_that_cannot_be_compared_are_not_mixed(
    tmp_path: Path, proposals: Path, efforts: list[Effort], change: str
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5)))
    state = effort.loop(experiments=1).state
    check_comparable(state, PROVENANCE, 20.0)
    with pytest.raises(UserError, match=change):
        check_comparable(state, PROVENANCE.model_copy(update={change: "other"}), 20.0)
    with pytest.raises(UserError, match="budget"):
        check_comparable(state, PROVENANCE, 21.0)


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of ours runs after it."""


class Dying:
    """A journal of a process that dies right after a given number of lines, with all its threads."""

    def __init__(self, journal: Journal, lines: int) -> None:
        self._journal = journal
        self._left = lines

    def append(self, event: AnyEvent) -> Record:
        self._require_life()
        record = self._journal.append(event)
        self._left -= 1
        self._require_life()
        return record

    def put_blob(self, content: bytes) -> str:
        self._require_life()
        return self._journal.put_blob(content)

    def get_blob(self, sha256: str) -> bytes:
        self._require_life()
        return self._journal.get_blob(sha256)

    def _require_life(self) -> None:
        if self._left <= 0:
            raise Killed


def test_going_on_after_any_journal_line_gives_the_same_story(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    """Let the process die behind every single event of an effort; what follows must not differ."""
    propose(proposals, train_py(2.5), train_py(2.75, "crash NameError"), train_py(1.0, "claims 2.0"))
    whole = start(efforts, tmp_path / "whole", Replay(proposals))
    (reference := whole.loop()).run()
    events = len((tmp_path / "whole" / "audit.jsonl").read_bytes().splitlines())

    for after in range(1, events - 1):
        home = tmp_path / f"killed-after-{after}"
        effort = start(efforts, home, Replay(proposals))
        effort.components.journal = Dying(effort.components.journal, after)
        with pytest.raises(Killed):
            effort.loop().run()
        effort.agent = Replay(proposals)
        effort.restart()
        recover(effort.components, Workspaces(effort.trainer), (again := effort.loop()).state)
        again.run()
        assert verdicts(again.state) == verdicts(reference.state)
        assert effort.git_log() == whole.git_log()
        assert not effort.trainer.workspaces
        assert verify(home) == []


def test_a_run_that_knows_scored_rows_is_rejected_without_a_confirmation(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    agent = propose(proposals, train_py(2.5, note="knows"), train_py(2.75))
    effort = start(efforts, tmp_path / "home", agent)
    (loop := effort.loop()).run()
    assert verdicts(loop.state) == [
        (Verdict.KEEP, None),
        (Verdict.REJECT, Cause.EXPOSED),
        (Verdict.KEEP, None),
    ]
    rejected = loop.state.experiments[1]
    assert rejected.score is not None and not rejected.score.confirmed and rejected.quarantine is None
    assert rejected.decision is not None and "fresh rows" in rejected.decision.rule
    assert verify(tmp_path / "home") == []


def test_no_two_scorings_get_the_same_fresh_rows(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    """Not even after one that came to nothing: its workers may have seen its rows."""
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5), train_py(2.25)))
    effort.slot.judge = Failing(effort.trainer)
    (loop := effort.loop()).run()
    records = [record.data for record in read_records(tmp_path / "home")]
    draws = [event.draw for event in records if isinstance(event, ScoringStarted)]
    assert [draw.scoring for draw in draws] == [0, 1, 2, 3]
    assert [draw.confirmation for draw in draws] == [0, 1, 2, 3]
    assert loop.state.draw == Draw(scoring=4, confirmation=4)


def test_an_agent_never_sees_the_holdout(tmp_path: Path, efforts: list[Effort]) -> None:
    class Curious:
        """Looks at everything it is given."""

        name = "curious"
        asks_ahead = False

        def __init__(self) -> None:
            self.seen = ""

        def propose(self, context: Context) -> Change:
            history = [*context.history, context.history[-1], *context.history[:1], *context.running]
            texts = [context.diff(e.number) + context.excerpt(e.number) for e in context.history]
            self.seen += repr((history, texts, context.frontier))
            if len(context.history) == 3:
                raise AgentExhausted("enough")
            return Change(train_py=train_py(2.5 - 0.125 * len(context.history)), description="an idea")

        def fix(self, context: Context, crashed: Experiment) -> None:
            return None

        def combine(self, context: Context, behind: Experiment) -> None:
            return None

    agent = Curious()
    effort = start(efforts, tmp_path / "home", agent)
    (loop := effort.loop()).run()
    scores = [experiment.score for experiment in loop.state.experiments]
    assert len(scores) == 3 and all(score and score.holdout_bpb for score in scores)
    assert all(f"val_bpb={score.val_bpb}" in agent.seen for score in scores if score)
    assert not any(str(score.holdout_bpb) in agent.seen for score in scores if score)


def test_the_history_of_an_agent_costs_the_same_at_any_length() -> None:
    """It is a view; taking a hundred thousand experiments out of this list would fail."""
    nobody_looks: list[Experiment] = []
    assert len(History(nobody_looks, 100_000)) == 100_000


def test_a_scoring_is_made_ready_with_what_it_will_be_journalled_with(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5), train_py(2.25)))
    judge = effort.slot.judge
    assert isinstance(judge, FakeJudge)
    (loop := effort.loop()).run()
    assert len(loop.state.experiments) == 3
    records = [record.data for record in read_records(tmp_path / "home")]
    seeds = [event.seed for event in records if isinstance(event, ScoringStarted)]
    assert judge.seeds == [(seed, True) for seed in seeds]
    assert len(set(seeds)) == len(seeds)


def test_a_second_look_draws_anew_and_finds_nobody_waiting(
    tmp_path: Path, proposals: Path, efforts: list[Effort]
) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(1.5)))
    judge = effort.slot.judge
    assert isinstance(judge, FakeJudge)
    effort.loop().run()
    assert [ready for _, ready in judge.seeds] == [True, True, False]
    assert len({seed for seed, _ in judge.seeds}) == 3


def test_nobody_waits_any_more_after_a_crash(tmp_path: Path, proposals: Path, efforts: list[Effort]) -> None:
    effort = start(efforts, tmp_path / "home", propose(proposals, train_py(2.5, "crash ValueError")))
    judge = effort.slot.judge
    assert isinstance(judge, FakeJudge)
    effort.loop().run()
    assert judge.ready is None
    assert len(judge.seeds) == 1
