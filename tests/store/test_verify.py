"""A true record passes; whatever is changed in it afterwards is named."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from controller.core.events import (
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    Committed,
    Decided,
    ProposalAsked,
    ProposalMade,
    ProposalRebased,
    ProposalRehearsed,
    SessionStarted,
)
from controller.core.values import Decision, Usage, Verdict
from controller.store.journal import sha256
from controller.store.lock import HomeLock
from controller.store.snapshot import EVERY, SNAPSHOT, Snapshot, standing
from controller.store.verify import examine, verify
from tests.support.hostile import unseen
from tests.support.story import BASELINE, PROVENANCE, Story, tell
from tests.support.two_slots import HomeOfTwo, three_and_four


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tell(tmp_path_factory.mktemp("told")).home


@pytest.fixture
def home(told: Path, tmp_path: Path) -> Path:
    return shutil.copytree(told, tmp_path / "home")


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 0x01
    path.chmod(0o644)
    path.write_bytes(content)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def git(home: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=p", "-c", "user.email=p@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=home / "repo", check=True, capture_output=True)


def blob_of(home: Path, number: int) -> Path:
    name = Story(home).state.experiments[number].proposal.train_sha256
    return home / "blobs" / name[:2] / name


def test_a_true_record_passes(home: Path) -> None:
    assert verify(home) == []


def test_a_forged_snapshot_is_believed_by_no_verification(home: Path) -> None:
    true_head = standing(home)[0].head
    forged_snapshot(home, head="f" * 64)
    assert standing(home)[0].head == "f" * 64, "it is believed elsewhere"
    assert examine(home).state.head == true_head
    (home / SNAPSHOT).unlink()
    forged_snapshot(home)
    assert verify(home) == [], "a true one"


def test_verifying_changes_nothing(home: Path) -> None:
    def snapshot() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    before = snapshot()
    verify(home)
    assert snapshot() == before


def foreign_commit(home: Path) -> None:
    (home / "repo" / "train.py").write_text("BETTER = 1\n")
    git(home, "commit", "--quiet", "--all", "-m", "mine")


def amended_commit(home: Path) -> None:
    git(home, "commit", "--quiet", "--amend", "-m", "Better\n\nExperiment: 4\nVal-Bpb: 1.500000")


def lost_commit(home: Path) -> None:
    git(home, "update-ref", "refs/heads/autoresearch/test", "HEAD^")


def lost_branch(home: Path) -> None:
    git(home, "update-ref", "-d", "refs/heads/autoresearch/test")


def damaged_object(home: Path) -> None:
    flip(next(iter(sorted((home / "repo" / ".git" / "objects").glob("??/*")))))


def lost_end(home: Path) -> None:
    """Everything after the first keep, taken out of journal, ledger and runs alike."""
    lines = (home / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (home / "audit.jsonl").write_bytes(b"".join(lines[:11]))
    rows = (home / "results.tsv").read_bytes().splitlines(keepends=True)
    (home / "results.tsv").write_bytes(b"".join(rows[:2]))


def commits(home: Path) -> list[str]:
    """The branch, its base first."""
    return read(home, "rev-list", "--reverse", "autoresearch/test").split()


def read(home: Path, *arguments: str, told: str | None = None) -> str:
    line = ["git", "-c", "user.name=p", "-c", "user.email=p@example.org", *arguments]
    done = subprocess.run(line, cwd=home / "repo", input=told, check=True, capture_output=True, text=True)
    return done.stdout.rstrip("\n")


def committed_again(home: Path, *made: tuple[str, list[str]]) -> None:
    """The branch as these commits: the tree and message of an old one each, on these parents, "" the last."""
    new = ""
    for old, parents in made:
        tree, message = (
            read(home, "rev-parse", f"{old}^{{tree}}"),
            read(home, "log", "-1", "--format=%B", old),
        )
        above = [word for parent in parents for word in ("-p", parent or new)]
        new = read(home, "commit-tree", tree, *above, told=message)
    git(home, "update-ref", "refs/heads/autoresearch/test", new)


def other_order(home: Path) -> None:
    base, first, second = commits(home)
    committed_again(home, (second, [base]), (first, [""]))


def foreign_parent(home: Path) -> None:
    _, first, second = commits(home)
    git(home, "commit", "--quiet", "--allow-empty", "-m", "foreign")
    committed_again(home, (second, [first, read(home, "rev-parse", "HEAD")]))


def swapped_blobs(home: Path) -> None:
    one, other = blob_of(home, 1), blob_of(home, 4)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def forged_snapshot(home: Path, **facts: JsonValue) -> None:
    """One that is whole and of this journal, and tells something else of it."""
    state, archive = standing(home)
    archive.stored = -EVERY
    Snapshot(home, archive).publish(state)
    told = json.loads((home / SNAPSHOT).read_bytes().partition(b"\n")[2])
    told["state"] |= facts
    content = json.dumps(told).encode()
    (home / SNAPSHOT).write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def linked(home: Path) -> None:
    """The text that ran, but elsewhere: what stands there tomorrow is anybody's word."""
    path = home / "runs/000004/train.py"
    path.rename(home / "elsewhere.py")
    path.symlink_to(home / "elsewhere.py")


TAMPERINGS: list[tuple[Callable[[Path], object], str]] = [
    (lambda home: (home / "audit.jsonl").unlink(), "audit.jsonl is missing"),
    (lambda home: edit(home / "audit.jsonl", '"val_bpb":2.0', '"val_bpb":1.0'), "audit.jsonl line 9 "),
    (lambda home: append(home / "audit.jsonl", '{"torn'), "audit.jsonl line 43 is torn"),
    (lambda home: blob_of(home, 1).unlink(), "cannot be read"),
    (lambda home: flip(blob_of(home, 1)), "is not what its name says"),
    (lambda home: edit(home / "results.tsv", "2.500000", "1.500000"), "results.tsv line 3 is not"),
    (lambda home: edit(home / "results.tsv", "\tworse\t", "\tbest\t"), "results.tsv line 3 is not"),
    (lambda home: (home / "results.tsv").unlink(), "results.tsv lacks 6 lines"),
    (lambda home: append(home / "results.tsv", "x\n"), "results.tsv has 1 lines"),
    (lambda home: flip(home / "runs/000001/train.py"), "runs/000001/train.py is not what"),
    (lambda home: flip(home / "runs/000001/change.diff"), "runs/000001/change.diff is not what"),
    (lambda home: (home / "runs/000003/train.py").unlink(), "runs/000003/train.py is missing"),
    (linked, "runs/000004/train.py is missing"),
    (lambda home: flip(home / "runs/000002/run.log", 3), "runs/000002/run.log is not what"),
    (lambda home: edit(home / "runs/000004/run.log", "1.500000", "1.400000"), "runs/000004/run.log is not"),
    (lambda home: edit(home / "runs/000001/experiment.json", "2.5", "1.2"), "runs/000001/experiment.json is"),
    (lambda home: (home / "runs/000001/experiment.json").unlink(), "runs/000001/experiment.json is missing"),
    (foreign_commit, "3 commits after its base, the journal 2"),
    (amended_commit, "stands where the journal has"),
    (lost_commit, "1 commits after its base, the journal 2"),
    (lost_branch, "has no branch autoresearch/test"),
    (damaged_object, "git fsck failed"),
    (lost_end, "2 commits after its base, the journal 1"),
    (lambda home: shutil.rmtree(home / "repo"), "repo: "),
    (swapped_blobs, "is not what its name says"),
    (other_order, "stands where the journal has"),
    (foreign_parent, "commits after its base, the journal 2"),
    (lambda home: forged_snapshot(home, head="f" * 64), "snapshot.json tells another story"),
    (lambda home: forged_snapshot(home, kept=[]), "snapshot.json tells another story"),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "finding"), TAMPERINGS)
def test_every_change_is_named(home: Path, tamper: Callable[[Path], object], finding: str) -> None:
    tamper(home)
    problems = verify(home)
    assert any(finding in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_a_flipped_byte_anywhere_is_found(home: Path) -> None:
    """Every file of the record, one byte at a place chosen by chance."""
    chance = random.Random(7)
    objects = home / "repo" / ".git" / "objects"
    files = [
        *(home / name for name in ("audit.jsonl", "results.tsv")),
        *(path for folder in ("blobs", "runs") for path in (home / folder).rglob("*") if path.is_file()),
        *objects.glob("??/*"),
    ]
    assert len(files) > 40
    for path in files:
        content = path.read_bytes()
        flip(path, chance.randrange(len(content)))
        assert verify(home), path
        path.write_bytes(content)
    assert verify(home) == []


def test_calls_that_came_to_an_end_and_calls_that_did_not_pass(home: Path) -> None:
    story = Story(home)
    story.ask(0.5)
    story.ask(None)
    assert verify(home) == []


@pytest.mark.parametrize("content", [b"request 0", b"reply 0", b"rehearsed", b"made", b"rebased"])
def test_a_blob_of_the_agents_that_is_gone_is_named(home: Path, content: bytes) -> None:
    story = Story(home)
    story.ask(0.5)
    text = story.journal.put_blob(b"rehearsed")
    story.record(ProposalRehearsed(proposal=5, train_sha256=text, result="passed", detail="", seconds=1.0))
    text = story.journal.put_blob(b"made")
    story.record(ProposalMade(proposal=5, description="", hypothesis="", train_sha256=text))
    text = story.journal.put_blob(b"rebased")
    story.record(ProposalRebased(proposal=5, parent="p", train_sha256=text))
    assert verify(home) == []
    name = sha256(content)
    (home / "blobs" / name[:2] / name).unlink()
    assert [f"blob {name} cannot be read" in problem for problem in verify(home)] == [True]


def test_impossible_spending_is_named(home: Path) -> None:
    story = Story(home)
    limits: dict[str, JsonValue] = {"limits": {"dollars": 1.75, "dollars_per_day": None}}
    session = SessionStarted(agent="a", budget_seconds=20, provenance=PROVENANCE, settings=limits)
    story.record(session)
    story.ask(0.5)
    assert verify(home) == []
    story.ask(0.5)
    story.ask(-0.5, Usage(input_tokens=-1))
    said = verify(home)
    assert len(said) == 2
    assert "call 2 was sent beyond the limit limits.dollars of 1.75" in said[0]
    assert "call 2 cost or used less than nothing" in said[1]


def test_a_call_that_never_began_cannot_end(home: Path) -> None:
    Story(home).journal.append(ApiFailed(call=7, status=500, error="", seconds=1.0, cost_usd=0.0))
    assert ["line 43: call 7 ended, which was not on its way" in problem for problem in verify(home)] == [
        True
    ]


def test_a_journal_rewritten_to_forget_a_run_is_found_in_git(home: Path) -> None:
    """The chain of a journal told anew is whole; the commits still name the heads of the true one."""
    forged = home.with_name("forged")
    story = Story(forged)
    story.begin()
    story.experiment(BASELINE, 2.0, "baseline")
    story.experiment(BASELINE + "A = 4\n", 1.5, "better")
    for name in ("audit.jsonl", "results.tsv"):
        shutil.copy(forged / name, home / name)
    problems = verify(home)
    assert any("the branch begins with" in problem or "lines are missing" in problem for problem in problems)


def test_a_verdict_that_does_not_follow_is_found(home: Path) -> None:
    story = HomeOfTwo(home)
    number = story.propose(BASELINE + "A = 5\n")
    story.train(number)
    story.judge(number, 1.9)
    story.record(
        Decided(experiment=number, decision=Decision(verdict=Verdict.KEEP, rule="mine"), frontier_bpb=2.0)
    )
    problems = verify(home)
    assert any("was measured against 2.0, not the frontier" in problem for problem in problems)
    assert any("was decided keep; by the rules it is discard" in problem for problem in problems)


def test_a_verdict_beside_a_keep_that_is_not_committed_is_found(tmp_path: Path) -> None:
    """The frontier was about to move, so nobody knows what had to be beaten."""
    story = three_and_four(tmp_path)
    story.judge(3, 1.9)
    story.decide(3)
    assert verify(tmp_path) == []
    story.judge(4, 1.95)
    story.decide(4)
    [problem] = verify(tmp_path)
    assert problem.endswith("experiment 4 was decided before experiment 3 was committed")


def test_two_slots_at_work_may_each_be_behind_by_one(tmp_path: Path) -> None:
    """The latest on each slot may be being closed, however many the other slot has closed since."""
    story = three_and_four(tmp_path)
    story.judge(3, 9.0)
    story.decide(3)
    for _ in range(3):
        story.finish(story.open(1) if story.state.slot(1).experiment is None else 4, 8.0)
    rows = (tmp_path / "results.tsv").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.tsv").write_bytes(b"".join(rows[:-2]))
    with HomeLock(tmp_path):
        assert verify(tmp_path) == []
        (tmp_path / "runs" / "000002" / "experiment.json").unlink()
        (tmp_path / "results.tsv").write_bytes(b"".join(rows[:-3]))
        assert ["runs/000002/experiment.json is missing" in problem for problem in verify(tmp_path)] == [
            True,
            False,
        ]
    assert len(verify(tmp_path)) == 3


def test_another_base_is_named_before_anything_was_kept(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.begin()
    assert verify(tmp_path) == []
    (tmp_path / "repo" / "program.md").write_text("Try other things.\n")
    git(tmp_path, "commit", "--quiet", "--all", "--amend", "-m", "Begin test")
    [problem] = verify(tmp_path)
    assert "repo: the branch begins with" in problem


FORGERIES: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({}, {"Experiment": "7"}, "is not of experiment 5"),
    ({}, {"Val-Bpb": "0.900000"}, "claims another score than the journal"),
    ({}, {"Journal": "0" * 64}, "was made from a journal that is not this one"),
    ({"train.py": BASELINE + "A = 6\n"}, {}, "holds another train.py than the one that ran"),
    ({"prepare.py": "# easier\n"}, {}, "changes more than train.py"),
    ({"more.py": "B = 1\n"}, {}, "changes more than train.py"),
]


@pytest.mark.parametrize("journalled", [False, True], ids=["committed only", "journalled too"])
@pytest.mark.parametrize(("files", "trailers", "finding"), FORGERIES)
def test_a_commit_that_is_not_the_keep_is_named(
    home: Path, files: dict[str, str], trailers: dict[str, str], finding: str, journalled: bool
) -> None:
    """Whoever can write the journal's last line names the forged commit in it; what it holds tells on it."""
    story = HomeOfTwo(home)
    number = story.propose(BASELINE + "A = 5\n")
    story.train(number)
    story.judge(number, 1.0)
    story.decide(number)
    for name, text in {"train.py": BASELINE + "A = 5\n", **files}.items():
        (home / "repo" / name).write_text(text)
    lines = {"Experiment": "5", "Val-Bpb": "1.000000", "Journal": story.state.head, **trailers}
    git(home, "add", "--all")
    git(home, "commit", "--quiet", "-m", "Better\n\n" + "\n".join(f"{k}: {v}" for k, v in lines.items()))
    if journalled:
        story.record(Committed(experiment=number, commit=story.repository.head()))
        story.runs.finish(story.state.experiments[number])
        story.ledger.publish(story.state)
    problems = verify(home)
    assert len(problems) == 1 and problems[0].startswith("repo: commit ") and finding in problems[0], problems


def test_killed_after_any_step_of_a_keep_the_record_is_still_true(home: Path) -> None:
    """What recovery completes is no contradiction, except that it has not been completed."""
    story = HomeOfTwo(home)
    number = story.propose(BASELINE + "A = 5\n")
    assert verify(home) == []
    story.train(number)
    assert verify(home) == []
    story.judge(number, 1.0)
    story.decide(number)
    assert verify(home) == []
    story.commit(number)
    assert verify(home) == []


def test_a_controller_at_work_is_not_accused_of_being_behind(home: Path) -> None:
    lines = (home / "results.tsv").read_bytes().splitlines(keepends=True)
    (home / "results.tsv").write_bytes(b"".join(lines[:-1]))
    (home / "runs" / "000004" / "experiment.json").unlink()
    with HomeLock(home):
        assert verify(home) == []
    assert len(verify(home)) == 2


def test_a_head_kept_elsewhere_shows_what_was_cut_off(home: Path) -> None:
    """Whole lines cut off the end leave a good chain; only somebody who remembers it can tell."""
    story = Story(home)
    before, end = story.state.head, (home / "audit.jsonl").stat().st_size
    story.propose(BASELINE + "A = 5\n")
    after = story.state.head
    assert verify(home, after) == verify(home, before) == []
    (home / "audit.jsonl").write_bytes((home / "audit.jsonl").read_bytes()[:end])
    shutil.rmtree(home / "runs" / "000005")
    assert verify(home, before) == verify(home) == []
    assert verify(home, after) == [
        f"audit.jsonl never had the head {after}: lines were cut off its end, or it was written anew"
    ]


def text_of_a_call(home: Path, **missing: str) -> None:
    story = Story(home)
    texts = {"request": b"a question", "reply": b"an answer"}
    names = {what: missing.get(what) or story.journal.put_blob(text) for what, text in texts.items()}
    story.record(ProposalAsked(proposal=5, agent="a", purpose="propose", parent="p"))
    story.record(
        ApiRequested(
            call=0,
            proposal=5,
            model="m",
            request_sha256=names["request"],
            request_bytes=len(texts["request"]),
            reserved_usd=1,
        )
    )
    story.record(
        ApiAnswered(
            call=0,
            reply_sha256=names["reply"],
            reply_bytes=len(texts["reply"]),
            stop_reason="",
            usage=Usage(),
            seconds=1,
            cost_usd=1,
        )
    )


def test_the_texts_of_calls_are_looked_for(home: Path) -> None:
    text_of_a_call(home)
    assert verify(home) == []


@pytest.mark.parametrize(("what", "line"), [("request", 44), ("reply", 45)])
def test_a_missing_text_of_a_call_is_named(home: Path, what: str, line: int) -> None:
    text_of_a_call(home, **{what: "0" * 64})
    assert verify(home) == [
        f"audit.jsonl line {line}: blob {'0' * 64} cannot be read: No such file or directory"
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_changed_byte_of_the_journal_is_named_by_its_line(home: Path, position: int, bit: int) -> None:
    path = home / "audit.jsonl"
    content = path.read_bytes()
    position %= len(content)
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    path.write_bytes(changed)
    problems = verify(home)
    path.write_bytes(content)
    if position == len(content) - 1:  # the newline that ends the file: its line is torn
        assert "line 42 is torn" in " ".join(problems)
    else:
        assert len(problems) == 1
        assert f"audit.jsonl line {content[:position].count(10) + 1} " in problems[0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_lines_deleted_doubled_or_moved_are_named_where_the_chain_breaks(
    home: Path, data: st.DataObject
) -> None:
    path = home / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    place = data.draw(st.integers(0, len(lines) - 2))
    other = data.draw(st.integers(place + 1, len(lines) - 1))
    changed, broken = data.draw(
        st.sampled_from(
            [
                ([*lines[:place], *lines[place + 1 :]], place),
                ([*lines[: place + 1], *lines[place:]], place + 1),
                (
                    [
                        *lines[:place],
                        lines[other],
                        *lines[place + 1 : other],
                        lines[place],
                        *lines[other + 1 :],
                    ],
                    place,
                ),
            ]
        )
    )
    path.write_bytes(b"".join(changed))
    problems = verify(home)
    path.write_bytes(b"".join(lines))
    assert problems == [f"audit.jsonl line {broken + 1} does not continue the chain of the lines before it"]


def test_a_forged_journal_cannot_speak_to_the_terminal_of_whoever_verifies_it(home: Path) -> None:
    story = Story(home)
    number = story.propose(BASELINE + "A = 5\n")
    story.train(number)
    story.judge(number, 1.0)
    story.decide(number)
    story.commit(number)
    story.record(Committed(experiment=number, commit="\x1b[2J\u202e\x9d"))
    problems = verify(home)
    assert any("stands where the journal has" in problem for problem in problems)
    assert unseen("".join(problems), "") == set()
