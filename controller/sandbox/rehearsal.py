"""One training step of a proposal, in a sealed container of its own, before it becomes an experiment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
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

_STOP_SECONDS = 0.2
"""How soon a request to stop is noticed."""
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
        at_once: int = 1,
    ) -> None:
        """`alone` is held during a rehearsal; ContainerJudge says why. `at_once`: how many there may be."""
        self._sandbox, self._clock = sandbox, clock
        self._config, self._containers = config, containers
        self._home, self._files = home.resolve(), files
        self._alone = alone or nullcontext()
        self._free: SimpleQueue[int] = SimpleQueue()
        """Numbers of the rehearsals that may begin."""
        for number in range(1, at_once + 1):
            self._free.put(number)

    def rehearse(self, train_py: str, stop: threading.Event) -> RehearsalResult:
        with self._turn(stop) as number, self._alone:
            began = self._clock.monotonic()
            try:
                report = self._run(train_py, number, stop)
            except Interrupted:
                raise
            except (GloveboxError, OSError) as error:
                report = _Report(result="inconclusive", detail=clean_line(str(error)))
            seconds = self._clock.monotonic() - began
        return RehearsalResult(
            result=report.result, detail=clean_text(report.detail, _DETAIL_CHARACTERS), seconds=seconds
        )

    @contextmanager
    def _turn(self, stop: threading.Event) -> Iterator[int]:
        """Raises Interrupted."""
        while not stop.is_set():
            try:
                number = self._free.get(timeout=_STOP_SECONDS)
            except Empty:
                continue
            try:
                yield number
            finally:
                self._free.put(number)
            return
        raise Interrupted("stopped by a person")

    def _run(self, train_py: str, number: int, stop: threading.Event) -> _Report:
        train = self._home / "rehearsal" / f"{number}.py"
        spec = self._spec(train, number)
        self._sandbox.remove(containers=[spec.name])  # left behind by a controller that died
        make_folder(train.parent)
        write_atomic(train, train_py.encode("utf-8"))
        try:
            deadline = self._sandbox.start(spec) + self._config.seconds
            end = self._sandbox.wait(spec.name, deadline=deadline, stop=stop)
            return _judge(end, self._sandbox.output(spec.name, _OUTPUT_BYTES))
        finally:
            # What cannot be removed now is removed by the next rehearsal or the next start of the controller.
            with suppress(InfrastructureError, OSError):
                train.unlink(missing_ok=True)
                self._sandbox.remove(containers=[spec.name])
                reach("rehearsal-cleared")

    def _spec(self, train: Path, number: int) -> ContainerSpec:
        return builders.rehearsal(
            self._containers,
            ContainerNames(self._home, REHEARSAL, attempt=number),
            self._files,
            train=train,
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
