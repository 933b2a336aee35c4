"""Certificates in a loop with a real journal and real git: a gain is certified, luck is taken back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.agents.replay import Replay
from controller.core.errors import InfrastructureError
from controller.core.events import CertificateDecided, ExperimentOpened, ProposalAsked, ScoringFinished
from controller.core.program.seeding import seeded
from controller.core.rules import ReplicatesConfig
from controller.core.state import ResearchState, fold
from controller.core.statistics.certificate import CertifyConfig
from controller.recovery import recover
from controller.store.journal import Journal, read_records
from controller.store.repository import GitRepository
from controller.store.snapshot import standing
from controller.store.verify import verify
from controller.system.clock import SystemClock
from controller.views import report
from tests.loop.effort import Effort, Workspaces, start
from tests.support.fakes import FakeJudge, train_py


def effort_with(efforts: list[Effort], tmp_path: Path, *texts: str) -> Effort:
    """One in which chance moves a score by a thousandth, and each keep is certified or taken back."""
    folder = tmp_path / "proposals"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.py").write_text(text, encoding="utf-8")
    effort = start(efforts, tmp_path / "home", Replay(folder))
    effort.slot.judge = FakeJudge(effort.trainer, chance=0.001)
    effort.rule(
        replicates=ReplicatesConfig(baseline=4, every=0), certify=CertifyConfig(share=1.0, keeps=1, pairs=6)
    )
    return effort


def git(effort: Effort, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(effort.home / "repo"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def decisions(effort: Effort) -> list[CertificateDecided]:
    records = read_records(effort.home)
    return [record.data for record in records if isinstance(record.data, CertificateDecided)]


def test_a_gain_is_certified(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_with(efforts, tmp_path, train_py(2.5, "better"))
    state = effort.loop()
    state.run()
    (decided,) = decisions(effort)
    assert (decided.outcome, decided.base, decided.head) == ("certified", 0, 4)
    assert decided.evidence.gain == pytest.approx(0.5, abs=0.01)
    certified = git(effort, "rev-parse", "refs/glovebox/certified/t")
    assert certified == git(effort, "rev-parse", "autoresearch/t") == state.state.experiments[4].commit
    note = json.loads(git(effort, "notes", "--ref", "glovebox", "show", certified))
    assert note["outcome"] == "certified" and note["evidence"]["pairs"] == decided.evidence.pairs
    assert verify(effort.home) == []


def test_luck_is_taken_back(tmp_path: Path, efforts: list[Effort]) -> None:
    effort = effort_with(efforts, tmp_path, train_py(3.0, "lucky", salt=1), train_py(2.9, "better"))
    loop = effort.loop()
    loop.run()
    first, second = decisions(effort)
    assert (first.outcome, second.outcome) == ("failed", "certified")
    assert effort.git_log()[1] == "baseline" and effort.git_log()[2].startswith("0.py")
    assert effort.git_log()[3] == "Back to experiment 0: certificate 0 failed"
    assert list(loop.state.fallen) == [4] and "better" in git(effort, "show", "HEAD:train.py")
    back = git(effort, "rev-parse", "HEAD~1")
    assert git(effort, "show", f"{back}:train.py") == git(effort, "show", "HEAD~3:train.py")
    assert loop.state.experiments[second.head].parent == back
    assert verify(effort.home) == []


def test_every_run_has_a_seed_of_its_own_and_its_text_is_on_record(
    tmp_path: Path, efforts: list[Effort]
) -> None:
    text = train_py(2.5, "better") + "\nSEED = 42\n"
    effort = effort_with(efforts, tmp_path, text)
    loop = effort.loop()
    loop.run()
    opened = [
        record.data for record in read_records(effort.home) if isinstance(record.data, ExperimentOpened)
    ]
    assert len({event.seed for event in opened}) == len(opened) > 8
    for event in opened[4:5]:
        ran = (effort.home / "runs" / f"{event.experiment:06d}" / "train.py").read_text()
        assert ran == seeded(text, event.seed) != text
        assert ran == loop.effort.text(event.ran_sha256)
    assert git(effort, "show", "HEAD:train.py").endswith("SEED = 42")


def broken_before(repository: GitRepository, name: str) -> Callable[..., str]:
    def fail(*arguments: object) -> str:
        raise InfrastructureError(f"no {name}")

    return fail


def broken_after(repository: GitRepository, name: str) -> Callable[..., str]:
    real = getattr(repository, name)

    def fail(*arguments: object) -> str:
        real(*arguments)
        raise InfrastructureError(f"no answer to {name}")

    return fail


@pytest.mark.parametrize("breaks", [broken_before, broken_after])
@pytest.mark.parametrize(
    ("name", "text"), [("certify", train_py(2.5)), ("take_back", train_py(3.0, "lucky", 1))]
)
def test_a_process_that_dies_while_it_settles_one_does_not_matter(
    tmp_path: Path,
    efforts: list[Effort],
    breaks: Callable[[GitRepository, str], Callable[..., str]],
    name: str,
    text: str,
) -> None:
    effort = effort_with(efforts, tmp_path, text)
    repository = effort.components.repository
    assert isinstance(repository, GitRepository)
    setattr(repository, name, breaks(repository, name))
    with pytest.raises(InfrastructureError):
        effort.loop().run()
    judge, rules = effort.slot.judge, effort.components.rules
    effort.restart()
    effort.components.rules = rules
    effort.slot.judge = judge
    state: ResearchState = standing(effort.home)[0]
    assert state.unsettled is not None
    recover(effort.components, Workspaces(effort.trainer), state)
    effort.loop().run()
    assert standing(effort.home)[0].unsettled is None
    assert len(decisions(effort)) == 1 and verify(effort.home) == []
    assert effort.git_log().count("Back to experiment 0: certificate 0 failed") == (name == "take_back")


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an effort in which one chain was taken back and one is certified."""
    folder = tmp_path_factory.mktemp("certified")
    efforts: list[Effort] = []
    effort = effort_with(efforts, folder, train_py(3.0, "lucky", salt=1), train_py(2.9, "better"))
    effort.loop().run()
    effort.close()
    return effort.home


def git_in(home: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "safe.directory=*", "-C", str(home / "repo"), *arguments], check=True)


def without_reference(home: Path) -> None:
    git_in(home, "update-ref", "-d", "refs/glovebox/certified/t")


def other_reference(home: Path) -> None:
    git_in(home, "update-ref", "refs/glovebox/certified/t", "HEAD~1")


def other_note(home: Path) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    git_in(
        home, *identity, "notes", "--ref", "glovebox", "add", "-f", "-m", '{"outcome": "certified"}', "HEAD"
    )


def told_anew(home: Path, **changes: object) -> None:
    """The journal with another last certificate, in an unbroken chain. Blobs and all else stay."""
    records = [*read_records(home)]
    last = max(place for place, record in enumerate(records) if isinstance(record.data, CertificateDecided))
    (home / "audit.jsonl").unlink()
    (home / "snapshot.json").unlink(missing_ok=True)
    journal = Journal(home, SystemClock())
    for place, record in enumerate(records):
        journal.append(record.data.model_copy(update=changes) if place == last else record.data)
    journal.close()


def more_evidence(home: Path) -> None:
    (*_, last) = [r.data for r in read_records(home) if isinstance(r.data, CertificateDecided)]
    told_anew(home, evidence=last.evidence.model_copy(update={"gain": 0.5}))


def other_outcome(home: Path) -> None:
    told_anew(home, outcome="failed")


def other_score(home: Path) -> None:
    """Of the last run of the certificate that failed, which still fails with it."""
    records = [*read_records(home)]
    first = next(place for place, record in enumerate(records) if isinstance(record.data, CertificateDecided))
    scorings = [p for p, record in enumerate(records[:first]) if isinstance(record.data, ScoringFinished)]
    (home / "audit.jsonl").unlink()
    (home / "snapshot.json").unlink(missing_ok=True)
    journal = Journal(home, SystemClock())
    for place, record in enumerate(records):
        event = record.data
        if isinstance(event, ScoringFinished) and event.score is not None and place == scorings[-1]:
            score = event.score.model_copy(update={"val_bpb": event.score.val_bpb + 1e-7})
            event = event.model_copy(update={"score": score})
        journal.append(event)
    journal.close()


def too_early(home: Path) -> None:
    """Before the last pair was complete."""
    records = [*read_records(home)]
    last = max(place for place, record in enumerate(records) if isinstance(record.data, CertificateDecided))
    decided = records.pop(last)
    runs = [
        place
        for place, record in enumerate(records[:last])
        if isinstance(record.data, ProposalAsked) and record.data.certificate == 1
    ]
    records.insert(runs[1], decided)
    (home / "audit.jsonl").unlink()
    (home / "snapshot.json").unlink(missing_ok=True)
    journal = Journal(home, SystemClock())
    for record in records:
        journal.append(record.data)
    journal.close()


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (without_reference, "the certified head is missing"),
        (other_reference, "the certified head is"),
        (other_note, "does not say what the journal does of its certificate"),
        (other_score, "was made from a journal that is not this one"),
        (more_evidence, "certificate 1 says certified, evidence"),
        (other_outcome, "certificate 1 says failed"),
        (too_early, "certificate 1 was decided too early"),
    ],
)
def test_a_certificate_that_does_not_follow_is_named(
    certified: Path, tmp_path: Path, tamper: Callable[[Path], None], finding: str
) -> None:
    home = Path(shutil.copytree(certified, tmp_path / "home"))
    assert verify(home) == []
    tamper(home)
    assert any(finding in problem for problem in verify(home)), verify(home)
    records = [*read_records(home)]
    told = report.render(records, fold(records))
    assert ("**DIFFERS**" in told) == ("certificate 1" in finding or tamper is other_score)
    assert told.count("| the same |") + told.count("| **DIFFERS** |") == 2
