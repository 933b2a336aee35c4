"""Certificates in a loop with a real journal and real git: a gain is certified, luck is taken back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.agents.replay import Replay
from controller.core.certificate import CertifyConfig
from controller.core.errors import InfrastructureError
from controller.core.events import CertificateDecided, ExperimentOpened
from controller.core.program.seeding import seeded
from controller.core.rules import ReplicatesConfig
from controller.core.state import ResearchState
from controller.recovery import recover
from controller.store.journal import read_records
from controller.store.repository import GitRepository
from controller.store.snapshot import standing
from controller.store.verify import verify
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
