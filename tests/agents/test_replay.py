"""The folder is read once; the history says how far it has come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from controller.agents.replay import Replay
from controller.core.errors import AgentExhausted, UserError
from controller.core.experiment import Experiment
from controller.core.notebook import Notebook
from controller.core.values import Change, Frontier
from controller.ports import Context
from tests.support.experiments import a_proposal, an_experiment
from tests.support.fakes import FakeServices


def ran(*texts: str) -> list[Experiment]:
    return [
        an_experiment(number, a_proposal(number, train_sha256=hashlib.sha256(text.encode()).hexdigest()))
        for number, text in enumerate(texts)
    ]


def context(history: Sequence[Experiment] = ()) -> Context:
    return Context(
        program="",
        interface="",
        frontier=Frontier(commit="c0"),
        train_py="",
        history=history,
        finished=lambda number: history[number],
        notebook=Notebook(),
        scale="cpu",
        source=lambda number: "",
        running=(),
        waiting=(),
        diff=lambda number: "",
        excerpt=lambda number: "",
        services=FakeServices(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "10_wider.py").write_text('"""\nWider blocks.\n\nMore.\n"""\nA = 1\n')
    (tmp_path / "02_deeper.py").write_bytes("B = 'ü'\r\n".encode())
    (tmp_path / "20_broken.py").write_text("X = '\\d'\ndef broken(:\n")
    (tmp_path / "notes.txt").write_bytes(b"\xff")
    (tmp_path / "package.py").mkdir()
    return tmp_path


def test_proposes_in_the_order_of_names_and_then_is_exhausted(folder: Path) -> None:
    agent = Replay(folder)
    proposals = [agent.propose(context()) for _ in range(3)]
    descriptions = [proposal.description for proposal in proposals]
    assert descriptions == ["02_deeper.py", "10_wider.py: Wider blocks.", "20_broken.py"]
    assert proposals[0].train_py == "B = 'ü'\n"
    with pytest.raises(AgentExhausted, match="has been proposed"):
        agent.propose(context())


def test_skips_what_its_history_has_run(folder: Path) -> None:
    history = ran("baseline", "B = 'ü'\n")
    assert Replay(folder).propose(context(history)).description.startswith("10_wider.py")


def test_repairs_and_combines_nothing(folder: Path) -> None:
    """It has three files, and neither question takes one of them."""
    agent, (_, crashed) = Replay(folder), ran("baseline", "A = 1\n")
    questions: list[Callable[[Context, Experiment], Change | None]] = [agent.fix, agent.combine]
    assert [ask(context(), crashed) for ask in questions] == [None, None]
    assert agent.propose(context()).description == "02_deeper.py"


@pytest.mark.parametrize("name", ["missing", "empty", "file", "binary"])
def test_bad_folders_are_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=rf"^[^\n]*{name}[^\n]*$"):
        Replay(tmp_path / name)
