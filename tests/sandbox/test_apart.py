"""No code of an agent runs beside the workers of a scoring, to carry what one knows to the other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.errors import InfrastructureError
from controller.core.scoring.config import JudgeConfig
from controller.ports import Attempt
from controller.sandbox.rehearsal import ContainerRehearsal, RehearsalConfig
from controller.sandbox.scoring import ContainerJudge
from controller.system.clock import SystemClock
from tests.support.fakes import EmptyEngine

OVERLAP_SECONDS = 0.5
"""How long a rehearsal is given to begin where it must not."""


class Watched(EmptyEngine):
    """Has a text rehearsed in the middle of a scoring, as the researcher does, and looks who waits."""

    def __init__(self) -> None:
        self.rehearsed = threading.Thread(target=lambda: self.rehearsal.rehearse("A = 1", threading.Event()))
        self.waited = False
        self.rehearsal: ContainerRehearsal

    def alive(self, name: str) -> bool:
        self.rehearsed.start()
        self.rehearsed.join(OVERLAP_SECONDS)
        self.waited = self.rehearsed.is_alive()
        return False


def test_a_rehearsal_waits_for_a_scoring(tmp_path: Path) -> None:
    engine, alone = Watched(), threading.Lock()
    config, files = SealedConfig(seccomp="{}"), Files(tmp_path, tmp_path / "data")
    engine.rehearsal = ContainerRehearsal(
        engine,
        SystemClock(),
        config=RehearsalConfig(),
        containers=config,
        home=tmp_path,
        files=files,
        alone=alone,
    )
    judge = ContainerJudge(
        engine,
        SystemClock(),
        config=JudgeConfig(),
        containers=config,
        home=tmp_path,
        files=files,
        alone=alone,
    )
    attempt = Attempt("1", 1, tmp_path / "train.py", tmp_path / "run.log", 10.0)
    with pytest.raises(InfrastructureError):
        judge.score(attempt, 1, lambda score: True, threading.Event())
    engine.rehearsed.join(60)
    assert engine.waited and not engine.rehearsed.is_alive()
