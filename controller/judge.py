"""Runs W and J on the checkpoint T left, and turns what they say into a Score or a reason."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError

from controller import workspace
from controller.core import container_spec
from controller.core.container_spec import REPLIES, REQUESTS, ContainerSpec, Domain, Place, SealedConfig
from controller.core.model import Cause, InfrastructureError, Refusal, Score
from controller.core.untrusted import clean_line
from controller.ports import Attempt, Clock, Exit, Sandbox

_START_SECONDS = 30.0
"""What starting and ending may add to the time that scoring itself is given."""
_GRACE_SECONDS = 3.0
"""For one side to end by itself after the other has."""
_TAIL_BYTES = 16 * 1024
"""How much of a container's output is kept for its last line."""

#: What the worker's exit status says about it; the numbers are those of harness/worker.py.
_WORKER_CAUSES: dict[int | None, Cause] = {
    10: Cause.LOAD,
    11: Cause.NO_CHECKPOINT,
    12: Cause.LOAD,
    13: Cause.FORWARD,
    14: Cause.OOM,
    124: Cause.WORKER_TIMEOUT,
}


_WORKER_FAILED = "worker-failed"
"""The judge's word for a worker that gave up; how the worker ended says why."""


class JudgeConfig(BaseModel):
    """Settings of scoring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_tokens: int = Field(default=16384, gt=0)
    """Tokens the worker sees at once, in whole rows. Each is answered with 4 bytes per vocabulary entry."""
    score_tokens: int | None = Field(default=None, gt=0)
    """Validation tokens to score; null: what the data's manifest says."""
    holdout_score_tokens: int | None = Field(default=None, gt=0)
    """Hold-out tokens to score; null: what the data's manifest says."""
    first_batch_seconds: float = Field(default=120.0, gt=0)
    """For the worker to start, build the model, load the checkpoint and answer the first batch."""
    batch_seconds: float = Field(default=60.0, gt=0)
    """For every further batch."""
    total_seconds: float = Field(default=900.0, gt=0)
    """For all of it."""


class _Scored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["scored"]
    val_bpb: FiniteFloat
    holdout_bpb: FiniteFloat
    bytes: int = Field(gt=0)
    tokens: int = Field(gt=0)
    holdout_bytes: int = Field(ge=0)
    seconds: FiniteFloat
    probes: dict[str, JsonValue]


class _Refused(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["refused"]
    cause: str
    detail: str


_ANSWER: TypeAdapter[_Scored | _Refused] = TypeAdapter(
    Annotated[_Scored | _Refused, Field(discriminator="status")]
)


@dataclass(frozen=True)
class _WorkerEnd:
    exit: Exit
    deserted: bool
    """It ended first and left the judge waiting, so that we had to end the judge."""


class ContainerJudge:
    """`ports.Judge` on a Sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        clock: Clock,
        *,
        config: JudgeConfig,
        containers: SealedConfig,
        home: Path,
        harness: Path,
        data: Path,
    ) -> None:
        """`harness` holds the files to mount, `data` is the prepared data, public and judge's halves."""
        self._sandbox, self._clock = sandbox, clock
        self._config, self._containers = config, containers
        self._home, self._harness, self._data = home.resolve(), harness.resolve(), data.resolve()

    def score(self, attempt: Attempt, seed: int, stop: threading.Event) -> Score | Refusal:
        place = Place(self._home, attempt.experiment, attempt.number)
        workspace.require(self._sandbox, place)
        worker, judge = self._worker(place, attempt), self._judge(place, seed)
        volumes = [place.name(REQUESTS), place.name(REPLIES)]
        self._remove(worker, judge, volumes)  # what a controller that died left behind
        try:
            self._create_volumes(place)
            return self._run(place, worker, judge, stop)
        finally:
            self._remove(worker, judge, volumes)

    def _run(
        self, place: Place, worker: ContainerSpec, judge: ContainerSpec, stop: threading.Event
    ) -> Score | Refusal:
        judge_ended = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self._sandbox.start, spec) for spec in (worker, judge)]
            worker_began, judge_began = (start.result() for start in starts)
            worker_tail, judge_tail = _Tail(), _Tail()
            worker_reader = self._sandbox.follow(worker.name, worker_tail.write)
            judge_reader = self._sandbox.follow(judge.name, judge_tail.write)
            watch = pool.submit(self._watch, worker, worker_began, judge.name, judge_ended)
            try:
                judge_end = self._sandbox.wait(
                    judge.name, deadline=judge_began + judge.life_seconds, stop=stop
                )
            finally:
                judge_ended.set()
                with suppress(InfrastructureError):
                    self._release(worker.name, watch)
            worker_end = watch.result()
        judge_reader.join(_GRACE_SECONDS)
        worker_reader.join(_GRACE_SECONDS)
        tails = judge_tail.last_line(), worker_tail.last_line()
        return self._judgement(place, judge.name, judge_end, worker_end, tails)

    def _watch(
        self, worker: ContainerSpec, began: float, judge: str, judge_ended: threading.Event
    ) -> _WorkerEnd:
        """See the worker through. A judge left waiting for a dead worker is ended too."""
        end = self._sandbox.wait(worker.name, deadline=began + worker.life_seconds, stop=threading.Event())
        deserted = not judge_ended.wait(_GRACE_SECONDS)
        if deserted:
            self._sandbox.kill(judge)
        return _WorkerEnd(end, deserted)

    def _release(self, worker: str, watch: Future[_WorkerEnd]) -> None:
        """The judge is done: give the worker a moment to say how it ended, then end it."""
        with suppress(TimeoutError):
            watch.result(_GRACE_SECONDS)
            return
        self._sandbox.kill(worker)

    def _judgement(
        self, place: Place, judge: str, judge_end: Exit, worker_end: _WorkerEnd, tails: tuple[str, str]
    ) -> Score | Refusal:
        """`tails` are the last lines of judge and worker. The judge's own finding always stands."""
        if judge_end.exit_code == 0:
            finding = _parse(self._sandbox.output(judge, _TAIL_BYTES))
            if finding is not None:
                return finding
        elif not worker_end.deserted:
            raise InfrastructureError(f"The judge ended with status {judge_end.exit_code}: {tails[0]}.")
        workspace.require(self._sandbox, place)
        return _blame(worker_end.exit, tails[1])

    def _worker(self, place: Place, attempt: Attempt) -> ContainerSpec:
        limit = self._config.total_seconds + _START_SECONDS
        argument: dict[str, Any] = {
            "train": "/glovebox/train.py",
            "checkpoint": "/out/checkpoint.safetensors",
            "requests": "/requests",
            "replies": "/replies",
            "total_seconds": limit,
            "max_checkpoint_bytes": self._containers.workspace_bytes,
        }
        return container_spec.worker(
            self._containers,
            place,
            argument=argument,
            limit_seconds=limit,
            train=attempt.train_path.resolve(),
            harness=self._harness,
            data=self._data / "public",
        )

    def _judge(self, place: Place, seed: int) -> ContainerSpec:
        argument: dict[str, Any] = {
            "data": "/judge",
            "requests": "/requests",
            "replies": "/replies",
            "seed": seed,
            "batch_rows": max(self._config.batch_tokens // self._row_tokens(), 1),
            **self._config.model_dump(exclude={"batch_tokens"}),
        }
        return container_spec.judge(
            self._containers,
            place,
            argument=argument,
            limit_seconds=self._config.total_seconds + _START_SECONDS,
            harness=self._harness,
            data=self._data / "judge",
        )

    def _row_tokens(self) -> int:
        """Tokens in a row: the context length of the prepared data."""
        try:
            manifest = json.loads((self._data / "public" / "manifest.json").read_bytes())
            return int(manifest["max_seq_len"])
        except (OSError, ValueError, KeyError) as error:
            raise InfrastructureError(f"The data's manifest cannot be read: {error}.") from error

    def _create_volumes(self, place: Place) -> None:
        limit = self._config.total_seconds + _START_SECONDS
        for what, writer in ((REQUESTS, Domain.JUDGE), (REPLIES, Domain.WORKER)):
            spec = container_spec.exchange(self._containers, place, what, writer, limit)
            self._sandbox.create_volume(spec)

    def _remove(self, worker: ContainerSpec, judge: ContainerSpec, volumes: list[str]) -> None:
        self._sandbox.remove(containers=[worker.name, judge.name], volumes=volumes)


class _Tail:
    """Keeps the end of a container's output."""

    def __init__(self) -> None:
        self._bytes = b""

    def write(self, block: bytes) -> None:
        self._bytes = (self._bytes + block)[-_TAIL_BYTES:]

    def last_line(self) -> str:
        lines = self._bytes.decode("utf-8", errors="replace").split("\n")
        return next((line for text in reversed(lines) if (line := clean_line(text))), "")


def _parse(output: bytes) -> Score | Refusal | None:
    """What the judge found; None if it says that the worker gave up.

    Raises InfrastructureError: the judge runs our code alone, so nonsense from it is our fault.
    """
    try:
        answer = _ANSWER.validate_json(output)
    except ValidationError as error:
        said = clean_line(output.decode("utf-8", errors="replace"))
        raise InfrastructureError(f"The judge's answer makes no sense: {said}.") from error
    if isinstance(answer, _Scored):
        return Score(**answer.model_dump(exclude={"status"}))
    if answer.cause == _WORKER_FAILED:
        return None
    try:
        cause = Cause(answer.cause)
    except ValueError:
        cause = Cause.PROTOCOL
    return Refusal(cause=cause, detail=clean_line(answer.detail))


def _blame(end: Exit, last_line: str) -> Refusal:
    """Why there was nothing to judge, from how the worker ended. Its own words are for people only."""
    if end.oom_killed:
        return Refusal(cause=Cause.OOM, detail="the worker was killed by the kernel: out of memory")
    cause = _WORKER_CAUSES.get(end.exit_code)
    if cause is None:
        return Refusal(cause=Cause.FORWARD, detail=f"the worker ended with status {end.exit_code}")
    return Refusal(cause=cause, detail=clean_line(last_line.removeprefix("worker: ")))
