"""The worker reads the same files called train.py as the controller: tests/support/train_texts.py."""

import sys
from pathlib import Path

import pytest

import prepare
import worker
from tests.support.train_texts import FAILS, RUNS


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a train.py may be put; what running it replaces in a process is put back."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setitem(sys.modules, "train", sys)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(prepare, "make_dataloader", prepare.make_dataloader)
    return tmp_path / "train.py"


@pytest.mark.parametrize("content", RUNS.values(), ids=RUNS.keys())
def test_what_the_interpreter_runs_is_run(content: bytes, train: Path) -> None:
    train.write_bytes(content)
    with pytest.raises(worker.Failure, match="leaves neither"):  # it ran, and its build_model gives None
        worker.run_train(train)


@pytest.mark.parametrize("content", FAILS.values(), ids=FAILS.keys())
def test_what_the_interpreter_refuses_is_not(content: bytes, train: Path) -> None:
    train.write_bytes(content)
    with pytest.raises(worker.Failure, match=r"train\.py: (SyntaxError|ValueError)"):
        worker.run_train(train)
