"""One training step of a proposal, in a sealed container of its own, before it becomes an experiment."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.core.containers import builders
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.names import REHEARSAL, ContainerNames
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import GloveboxError, InfrastructureError, Interrupted
from controller.core.scoring.runlog import LIMIT_EXIT_CODE
from controller.core.untrusted import clean_line, clean_text
from controller.core.values import RehearsalResult
from controller.failpoints import reach
from controller.files import make_folder, write_atomic
from controller.ports import Clock, Exit, Sandbox

_DETAIL_CHARACTERS = 2000
_OUTPUT_BYTES = 64 * 1024


class RehearsalConfig(BaseModel):
    """Settings of the training step that a proposal has to take before a run is spent on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(default=120.0, gt=0)
    """A rehearsal that takes longer ends without a result. It has one CPU, at low priority."""


class _Report(BaseModel):
    """What harness/rehearse.py prints."""

    model_config = ConfigDict(extra="forbid")

    result: Literal["passed", "failed", "inconclusive"]
    detail: str


class ContainerRehearsal:
    """`ports.Rehearsal` on a Sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        clock: Clock,
        *,
        config: RehearsalConfig,
        containers: SealedConfig,
        home: Path,
        files: Files,
        alone: threading.Lock | None = None,
    ) -> None:
        """`alone` is held during a rehearsal; ContainerJudge says why. There is one rehearsal at a time."""
        self._sandbox, self._clock = sandbox, clock
        self._config, self._containers = config, containers
        self._home, self._files = home.resolve(), files
        self._train = self._home / "rehearsal" / "train.py"
        self._alone = alone or threading.Lock()

    def rehearse(self, train_py: str, stop: threading.Event) -> RehearsalResult:
        with self._alone:
            began = self._clock.monotonic()
            try:
                report = self._run(train_py, stop)
            except Interrupted:
                raise
            except (GloveboxError, OSError) as error:
                report = _Report(result="inconclusive", detail=clean_line(str(error)))
            seconds = self._clock.monotonic() - began
        return RehearsalResult(
            result=report.result, detail=clean_text(report.detail, _DETAIL_CHARACTERS), seconds=seconds
        )

    def _run(self, train_py: str, stop: threading.Event) -> _Report:
        spec = self._spec()
        self._sandbox.remove(containers=[spec.name])  # left behind by a controller that died
        make_folder(self._train.parent)
        write_atomic(self._train, train_py.encode("utf-8"))
        try:
            deadline = self._sandbox.start(spec) + self._config.seconds
            end = self._sandbox.wait(spec.name, deadline=deadline, stop=stop)
            return _judge(end, self._sandbox.output(spec.name, _OUTPUT_BYTES))
        finally:
            # What cannot be removed now is removed by the next rehearsal or the next start of the controller.
            with suppress(InfrastructureError, OSError):
                self._train.unlink(missing_ok=True)
                self._sandbox.remove(containers=[spec.name])
                reach("rehearsal-cleared")

    def _spec(self) -> ContainerSpec:
        return builders.rehearsal(
            self._containers,
            ContainerNames(self._home, REHEARSAL),
            self._files,
            train=self._train,
            limit_seconds=self._config.seconds,
        )


def _judge(end: Exit, output: bytes) -> _Report:
    """The result of a rehearsal. Only its own report blames the proposal: any other end may have other
    causes."""
    try:
        return _Report.model_validate_json(output)
    except ValidationError:
        pass
    if end.oom_killed:
        detail = "the rehearsal ran out of memory, of which a run may have more"
    elif end.killed or end.exit_code == LIMIT_EXIT_CODE:
        detail = f"the rehearsal was not done after {end.seconds:.0f} s"
    else:
        detail = f"the rehearsal ended with status {end.exit_code}"
    return _Report(result="inconclusive", detail=detail)
