"""Runs W and J on T's checkpoint, and turns what they say into a Score or a Refusal.

A score that would be kept has to be confirmed: once the first worker is dead, a second one, which knows
nothing of the first, answers further questions of the judge. See harness/judge.py and
docs/decisions/probes.md. What a worker may compute is limited (core/scoring/allowance.py), and nothing it
writes is passed on as text (core/scoring/worker_report.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from controller.core.containers import builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import SealedConfig
from controller.core.containers.limits import usable_cpus
from controller.core.containers.names import REHEARSAL, ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import GloveboxError, InfrastructureError
from controller.core.scoring import judge_answer, worker_report
from controller.core.scoring.allowance import Allowance, allowances
from controller.core.scoring.config import JudgeConfig
from controller.core.scoring.runlog import LIMIT_EXIT_CODE, MAX_WORKER_LOG_BYTES
from controller.core.untrusted import clean_line
from controller.core.values import REJECT_CAUSES, Cause, Draw, Refusal, Score, Work
from controller.failpoints import reach
from controller.ports import Attempt, Clock, Exit, Sandbox
from controller.sandbox.meter import Meter
from controller.sandbox.training import require_workspace
from controller.store import data, worker_log

log = structlog.stdlib.get_logger(__name__)

_GRACE_SECONDS = 3.0
"""How long one side may take to end by itself after the other has given up."""
_LOOK_SECONDS = 2.0
"""How soon a line from the judge is noticed if the engine does not report it."""
_TAIL_BYTES = 16 * 1024
"""How much of the judge's output is kept."""
_SIGKILLED = 137


@dataclass(frozen=True)
class _Worker:
    """One of the two workers."""

    spec: ContainerSpec
    allowed: Allowance
    lines: int
    """Of train.py."""
    confirms: bool = False
    """True for the second one."""
    output: _Tail = field(default_factory=lambda: _Tail(MAX_WORKER_LOG_BYTES))


@dataclass(frozen=True)
class _WorkerEnd:
    exit: Exit
    deserted: bool
    """It ended first and left the judge waiting, so the judge had to be killed."""


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
        files: Files,
        slot: int = 0,
        alone: threading.Lock | None = None,
    ) -> None:
        """`alone` is held while a checkpoint is scored, and shared with the rehearsal.

        An agent's code that runs beside both workers could pass on what the first one knows, to the second
        and to the reader of the rehearsal's report. A lock on a file that all of them mount would be enough.
        None: there are several slots, and what runs on the others is beside both workers anyway.
        """
        self._sandbox, self._clock = sandbox, clock
        self._config, self._containers = config, containers
        self._home, self._files, self._slot = home.resolve(), files, slot
        self._alone = alone
        self._ready: Future[list[ContainerSpec]] | None = None
        """The containers that wait for their signal to begin, once all of them do."""

    def specs(self, attempt: Attempt, seed: int, draw: Draw | None = None) -> list[ContainerSpec]:
        names, files, config = self._names(attempt), self._files, self._containers
        train = attempt.train_path.resolve()
        workers = [
            builders.worker(config, names, files, self._config, exchange, train=train, seed=attempt.seed)
            for exchange in volumes.EXCHANGES
        ]
        rows = data.row_tokens(files.data)
        judge = builders.judge(config, names, files, self._config, seed=seed, draw=draw, row_tokens=rows)
        return [*workers, judge]

    def make_ready(self, attempt: Attempt, seed: int, draw: Draw | None, left: float) -> None:
        if self._ready is None and left <= self._config.ahead(bool(self._containers.gpu)):
            self._ready = ThreadPoolExecutor(1).submit(self._start_all, attempt, seed, draw)

    def dismiss(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None and (specs := ready.result()):
            with suppress(InfrastructureError):  # they are removed again together with the attempt
                self._sandbox.remove(containers=[spec.name for spec in specs])

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
        reference: Sequence[Work] = (),
    ) -> Score | Refusal:
        if self._alone is None:
            return self._score(attempt, seed, draw, contends, stop, reference)
        with self._alone:
            # Left behind by a controller that died.
            rehearsal = ContainerNames(self._home, REHEARSAL).name(Item.REHEARSAL)
            self._sandbox.remove(containers=[rehearsal])
            return self._score(attempt, seed, draw, contends, stop, reference)

    def _score(
        self,
        attempt: Attempt,
        seed: int,
        draw: Draw | None,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        reference: Sequence[Work],
    ) -> Score | Refusal:
        names = self._names(attempt)
        require_workspace(self._sandbox, names)
        *specs, judge = self.specs(attempt, seed, draw)
        workers = self._workers(attempt, specs, reference)
        ready = self._is_ready([*specs, judge])
        if not ready:
            self._remove(names)
        try:
            if not ready:
                self._make_volumes(names)
            sides = _Sides(self._sandbox, self._clock, ready)
            return self._with_isolation(self._run(names, workers, judge, sides, contends, stop))
        finally:
            self._remove(names)
            worker_log.write(attempt.log_path, [worker.output.content for worker in workers])
            reach("scoring-cleared")

    def _make_volumes(self, names: ContainerNames) -> None:
        seconds = builders.scoring_seconds(self._containers, self._config)
        for exchange in volumes.EXCHANGES:
            for volume in volumes.exchange_volumes(self._containers, names, exchange, seconds):
                self._sandbox.create_volume(volume)
        reach("exchange-made")

    def _start_all(self, attempt: Attempt, seed: int, draw: Draw | None) -> list[ContainerSpec]:
        """Start everything that a scoring may need, to wait for a signal. Empty if any of it cannot start."""
        names = self._names(attempt)
        try:
            specs = self.specs(attempt, seed, draw)
            self._remove(names)
            self._make_volumes(names)
            for spec in specs:
                self._sandbox.start(spec)
        except GloveboxError as error:
            log.warning("not_made_ready", reason=clean_line(str(error)), advice="scoring will start it")
            with suppress(InfrastructureError):
                self._remove(names)
            return []
        reach("made-ready")
        return specs

    def _is_ready(self, specs: Sequence[ContainerSpec]) -> bool:
        """Do exactly these containers wait for their signal?"""
        ready, self._ready = self._ready, None
        return (
            ready is not None
            and [spec.digest() for spec in ready.result()] == [spec.digest() for spec in specs]
            and all(self._sandbox.alive(spec.name) for spec in specs)
        )

    def _workers(
        self, attempt: Attempt, specs: Sequence[ContainerSpec], reference: Sequence[Work]
    ) -> tuple[_Worker, _Worker]:
        allowed = allowances(
            reference,
            share=self._config.work_share,
            budget_seconds=attempt.budget_seconds,
            cpus=usable_cpus(self._containers.worker, self._containers.cpus, os.cpu_count() or 1),
        )
        lines = attempt.train_path.read_bytes().count(b"\n") + 1
        first, second = (
            _Worker(spec, limits, lines, confirms)
            for spec, limits, confirms in zip(specs, allowed, (False, True), strict=True)
        )
        return first, second

    def _run(
        self,
        names: ContainerNames,
        workers: tuple[_Worker, _Worker],
        judge: ContainerSpec,
        sides: _Sides,
        contends: Callable[[Score], bool],
        stop: threading.Event,
    ) -> Score | Refusal:
        with ThreadPoolExecutor(3) as pool:
            starts = [pool.submit(sides.begin, spec) for spec in (workers[0].spec, judge)]
            worker_began, judge_began = (start.result() for start in starts)
            end = pool.submit(
                self._sandbox.wait,
                judge.name,
                deadline=judge_began + self._life(self._config.judge_seconds),
                stop=stop,
                tick=lambda: sides.insist(judge),
            )
            listener = _Listener(self._sandbox, judge.name, end)
            try:
                found = self._stage(
                    pool, names, workers[0], worker_began, sides, listener, judge_answer.score
                )
                reach("first-worker-done")
                if not isinstance(found, Score) or not contends(found):
                    return found
                # The first worker is dead, and everything it knew is gone with it. Its log on the host's disk
                # and its cgroup go with its container.
                self._sandbox.remove(containers=[workers[0].spec.name])
                confirmed = self._stage(
                    pool,
                    names,
                    workers[1],
                    sides.begin(workers[1].spec),
                    sides,
                    listener,
                    lambda line: judge_answer.confirmation(line, found),
                )
                reach("second-worker-done")
                if isinstance(confirmed, Refusal):
                    return confirmed.model_copy(update={"work": found.work + confirmed.work})
                return confirmed
            finally:
                with suppress(InfrastructureError):
                    self._sandbox.kill(judge.name)

    def _stage(
        self,
        pool: ThreadPoolExecutor,
        names: ContainerNames,
        worker: _Worker,
        began: float,
        sides: _Sides,
        judge: _Listener,
        read: Callable[[bytes], Score | Refusal | None],
    ) -> Score | Refusal:
        """Run one worker to its death; the result, with what the worker used."""
        name, spoken = worker.spec.name, threading.Event()
        meter = Meter(self._sandbox, self._clock, name, began, worker.allowed, gpu=bool(self._containers.gpu))
        reader = self._sandbox.follow(name, worker.output.write)
        watch = pool.submit(self._watch, worker.spec, meter, sides, judge.name, spoken)
        try:
            line = judge.next_line()
            spoken.set()
            meter.conclude()
            finding = read(line) if line is not None else None
            if finding is None:  # it gave up, and its exit may take a moment to be reported
                with suppress(TimeoutError):
                    watch.result(_GRACE_SECONDS)
            alone = watch.done()
        finally:
            spoken.set()
            with suppress(InfrastructureError):
                self._sandbox.kill(name)
        worker_end = watch.result()
        alone = alone or worker_end.exit.exit_code != _SIGKILLED
        found = _found(finding, meter.excess, ended_alone=alone)
        if isinstance(found, Refusal) and Cause.WORKER_TIMEOUT in (found.cause, found.symptom):
            meter.require_engine()
        if worker.confirms and isinstance(found, Refusal) and found.cause not in REJECT_CAUSES:
            found = worker_report.doubted(found)
        if found is None:
            if line is None and not worker_end.deserted:
                raise judge.failure()
            reader.join(_GRACE_SECONDS)
            require_workspace(self._sandbox, names)
            found = _blame(worker_end.exit, worker)
        return found.model_copy(update={"work": (*found.work, meter.work)})

    def _watch(
        self, worker: ContainerSpec, meter: Meter, sides: _Sides, judge: str, spoken: threading.Event
    ) -> _WorkerEnd:
        """Wait for the worker's end. A judge that is left waiting for a dead worker is killed."""

        def tick() -> None:
            sides.insist(worker)
            meter.watch()

        deadline = meter.began + self._life(self._config.worker_seconds)
        end = self._sandbox.wait(worker.name, deadline=deadline, stop=threading.Event(), tick=tick)
        deserted = not spoken.wait(0.0 if meter.excess else _GRACE_SECONDS)
        if deserted:
            self._sandbox.kill(judge)
        return _WorkerEnd(end, deserted)

    def _life(self, seconds: float) -> float:
        """Seconds from a side's start until its own PID 1 ends it, at the latest."""
        return seconds + self._containers.kill_grace_seconds

    def _with_isolation(self, found: Score | Refusal) -> Score | Refusal:
        if isinstance(found, Refusal):
            return found
        return found.model_copy(update={"isolation": self._sandbox.describe()["isolation"]})

    def _names(self, attempt: Attempt) -> ContainerNames:
        return ContainerNames(self._home, attempt.experiment, attempt.number, self._slot)

    def _remove(self, names: ContainerNames) -> None:
        self._sandbox.remove(
            containers=[names.name(item) for item in (*volumes.WORKERS, Item.JUDGE)],
            volumes=[names.name(item) for item in volumes.EXCHANGE_VOLUMES],
        )


class _Sides:
    """Lets workers and judge begin, whether they already wait for a signal or are yet to be started."""

    def __init__(self, sandbox: Sandbox, clock: Clock, ready: bool) -> None:
        """`ready`: all of them have been started and are waiting."""
        self._sandbox, self._clock, self._ready = sandbox, clock, ready

    def begin(self, spec: ContainerSpec) -> float:
        """Returns when it began, Clock.monotonic. Raises InfrastructureError."""
        if not self._ready:
            began = self._sandbox.start(spec)
        elif not self._sandbox.alive(spec.name):
            raise InfrastructureError(f"{spec.name} ended while it waited.")
        if not spec.waits:
            return began
        self._sandbox.begin(spec.name)
        return self._clock.monotonic()

    def insist(self, spec: ContainerSpec) -> None:
        """Repeat the signal, which may have come too early. Never raises: it is repeated again."""
        if spec.waits:
            with suppress(InfrastructureError):
                self._sandbox.begin(spec.name)


class _Listener:
    """Reads the judge's output line by line while it runs."""

    def __init__(self, sandbox: Sandbox, name: str, end: Future[Exit]) -> None:
        """`end` is the judge's exit; following its output only tells when to read it."""
        self.name = name
        self._sandbox, self._end = sandbox, end
        self._heard = 0
        self._something = threading.Event()
        self._tail = _Tail(_TAIL_BYTES)
        sandbox.follow(name, self._hear)
        end.add_done_callback(lambda _: self._something.set())

    def _hear(self, block: bytes) -> None:
        self._tail.write(block)
        self._something.set()

    def next_line(self) -> bytes | None:
        """The next line on stdout; None if it ended without one. Raises Interrupted, InfrastructureError."""
        while True:
            self._something.clear()
            over = self._end.done()
            if over:
                self._end.result()
            lines = self._sandbox.output(self.name, _TAIL_BYTES).split(b"\n")
            if len(lines) - 1 > self._heard:
                self._heard += 1
                return lines[self._heard - 1]
            if over:
                return None
            self._something.wait(_LOOK_SECONDS)

    def failure(self) -> InfrastructureError:
        """The error for a judge that ended without a result."""
        status = self._end.result().exit_code
        return InfrastructureError(f"The judge ended with status {status}: {self._tail.last_line()}.")


class _Tail:
    """Keeps the end of a container's output."""

    def __init__(self, limit: int) -> None:
        self.content, self._limit = b"", limit

    def write(self, block: bytes) -> None:
        self.content = (self.content + block)[-self._limit :]

    def last_line(self) -> str:
        lines = self.content.decode("utf-8", errors="replace").split("\n")
        return next((line for text in reversed(lines) if (line := clean_line(text))), "")


def _found(
    finding: Score | Refusal | None, excess: Refusal | None, *, ended_alone: bool
) -> Score | Refusal | None:
    """The result by the judge and the meter; None if it depends on how the worker ended.

    A worker that has answered everything is killed by us, after the meter's last reading.
    """
    if isinstance(finding, Refusal) and finding.cause in REJECT_CAUSES:
        return finding
    if excess is not None:
        return excess
    return None if isinstance(finding, Score) and ended_alone else finding


def _blame(end: Exit, worker: _Worker) -> Refusal:
    """Why there was nothing to judge, by how the worker ended."""
    if end.oom_killed:
        return worker_report.KILLED_BY_KERNEL.model_copy(update={"confirming": worker.confirms})
    exit_code = LIMIT_EXIT_CODE if end.killed else end.exit_code
    found = worker_report.refusal(exit_code, worker.output.content, worker.lines)
    return worker_report.doubted(found) if worker.confirms else found
