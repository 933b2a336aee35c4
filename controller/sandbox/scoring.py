"""Runs W and J on the checkpoint T left, and turns what they say into a Score or a reason.

A score that would be kept has to be confirmed: when the first worker is dead, a second one that was told
nothing answers the judge's further questions. See harness/judge.py and docs/decisions/probes.md. What a
worker may compute is bounded (core/scoring/allowance.py), and nothing it wrote leaves it as text
(core/scoring/worker_report.py).
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

from controller.core.containers import templates, volumes
from controller.core.containers.config import SealedConfig
from controller.core.containers.domains import Domain
from controller.core.containers.names import REHEARSAL_PLACE, Place
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.templates import Files
from controller.core.errors import GloveboxError, InfrastructureError
from controller.core.scoring import judge_answer, worker_report
from controller.core.scoring.allowance import Allowance, allowances
from controller.core.scoring.config import JudgeConfig
from controller.core.scoring.runlog import LIMIT_EXIT_CODE, MAX_WORKER_LOG_BYTES
from controller.core.untrusted import clean_line
from controller.core.values import REJECT_CAUSES, Cause, Draw, Refusal, Score, Work
from controller.failpoints import reach
from controller.ports import Attempt, Clock, Exit, Sandbox
from controller.sandbox import workspace
from controller.sandbox.meter import Meter
from controller.store import data, worker_log

log = structlog.stdlib.get_logger(__name__)

_GRACE_SECONDS = 3.0
"""For one side to end by itself after the other has given up."""
_LOOK_SECONDS = 2.0
"""How soon a line of the judge is noticed even if the engine does not tell that there is one."""
_TAIL_BYTES = 16 * 1024
"""How much is kept of what the judge prints."""
_SIGKILLED = 137


@dataclass(frozen=True)
class _Worker:
    """One of the two that answer, and what there is to know of it."""

    spec: ContainerSpec
    allowed: Allowance
    lines: int
    """Of train.py."""
    confirms: bool = False
    """True of the second one."""
    output: _Tail = field(default_factory=lambda: _Tail(MAX_WORKER_LOG_BYTES))


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
        files: Files,
        alone: threading.Lock | None = None,
    ) -> None:
        """`alone` is held while a checkpoint is scored.

        With a rehearsal it is shared: code of an agent that runs beside both workers could carry what the
        first one knows to the second, and to whoever reads what a rehearsal reports. A lock on a file that
        all of them mount is enough for that.
        """
        self._sandbox, self._clock = sandbox, clock
        self._config, self._containers = config, containers
        self._home, self._files = home.resolve(), files
        self._alone = alone or threading.Lock()
        self._ready: Future[list[ContainerSpec]] | None = None
        """What waits for the word, as soon as all of it does."""

    def specs(self, attempt: Attempt, seed: int, draw: Draw | None = None) -> list[ContainerSpec]:
        place, files, config = self._place(attempt), self._files, self._containers
        train = attempt.train_path.resolve()
        workers = [
            templates.worker(config, place, files, self._config, names, train=train)
            for names in volumes.EXCHANGES
        ]
        rows = data.row_tokens(files.data)
        judge = templates.judge(config, place, files, self._config, seed=seed, draw=draw, row_tokens=rows)
        return [*workers, judge]

    def make_ready(self, attempt: Attempt, seed: int, draw: Draw | None, left: float) -> None:
        if self._ready is None and left <= self._config.ahead(bool(self._containers.gpu)):
            self._ready = ThreadPoolExecutor(1).submit(self._start_all, attempt, seed, draw)

    def dismiss(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None and (specs := ready.result()):
            with suppress(InfrastructureError):  # whoever removes the attempt removes these too
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
        with self._alone:
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
        place = self._place(attempt)
        workspace.require(self._sandbox, place)
        *specs, judge = self.specs(attempt, seed, draw)
        workers = self._workers(attempt, specs, reference)
        # What a controller that died left behind.
        self._sandbox.remove(containers=[Place(self._home, REHEARSAL_PLACE).name(Domain.REHEARSAL)])
        ready = self._is_ready([*specs, judge])
        if not ready:
            self._remove(place)
        try:
            if not ready:
                self._make_volumes(place)
            sides = _Sides(self._sandbox, self._clock, ready)
            return self._with_isolation(self._run(place, workers, judge, sides, contends, stop))
        finally:
            self._remove(place)
            worker_log.write(attempt.log_path, [worker.output.content for worker in workers])
            reach("scoring-cleared")

    def _make_volumes(self, place: Place) -> None:
        seconds = templates.exchange_seconds(self._containers, self._config)
        for names in volumes.EXCHANGES:
            for volume in volumes.exchange(self._containers, place, names, seconds):
                self._sandbox.create_volume(volume)
        reach("exchange-made")

    def _start_all(self, attempt: Attempt, seed: int, draw: Draw | None) -> list[ContainerSpec]:
        """Start all that a scoring may need; all waits for the word. Nothing if one cannot be."""
        place = self._place(attempt)
        try:
            specs = self.specs(attempt, seed, draw)
            self._remove(place)
            self._make_volumes(place)
            for spec in specs:
                self._sandbox.start(spec)
        except GloveboxError as error:
            log.warning("not_made_ready", reason=clean_line(str(error)), advice="scoring will start it")
            with suppress(InfrastructureError):
                self._remove(place)
            return []
        reach("made-ready")
        return specs

    def _is_ready(self, specs: Sequence[ContainerSpec]) -> bool:
        """Do just these containers wait for the word?"""
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
            cpus=self._containers.worker.cpus or os.cpu_count() or 1,
        )
        lines = attempt.train_path.read_bytes().count(b"\n") + 1
        first, second = (
            _Worker(spec, limits, lines, confirms)
            for spec, limits, confirms in zip(specs, allowed, (False, True), strict=True)
        )
        return first, second

    def _run(
        self,
        place: Place,
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
                deadline=judge_began + self._life(templates.judge_seconds),
                stop=stop,
                tick=lambda: sides.insist(judge),
            )
            listener = _Listener(self._sandbox, judge.name, end)
            try:
                found = self._stage(
                    pool, place, workers[0], worker_began, sides, listener, judge_answer.score
                )
                reach("first-worker-done")
                if not isinstance(found, Score) or not contends(found):
                    return found
                # The first worker is dead, and with it whatever it may have known. With its container go its
                # log on the host's disk and its cgroup.
                self._sandbox.remove(containers=[workers[0].spec.name])
                confirmed = self._stage(
                    pool,
                    place,
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
        place: Place,
        worker: _Worker,
        began: float,
        sides: _Sides,
        judge: _Listener,
        read: Callable[[bytes], Score | Refusal | None],
    ) -> Score | Refusal:
        """See one worker through until it is dead; what comes of it, with what it used."""
        name, spoken = worker.spec.name, threading.Event()
        meter = Meter(self._sandbox, self._clock, name, began, worker.allowed, gpu=bool(self._containers.gpu))
        reader = self._sandbox.follow(name, worker.output.write)
        watch = pool.submit(self._watch, worker.spec, meter, sides, judge.name, spoken)
        try:
            line = judge.next_line()
            spoken.set()
            meter.conclude()
            finding = read(line) if line is not None else None
            if finding is None:  # it gave up, and may need a moment to say how it ended
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
            workspace.require(self._sandbox, place)
            found = _blame(worker_end.exit, worker)
        return found.model_copy(update={"work": (*found.work, meter.work)})

    def _watch(
        self, worker: ContainerSpec, meter: Meter, sides: _Sides, judge: str, spoken: threading.Event
    ) -> _WorkerEnd:
        """See the worker through. A judge left waiting for a dead worker is ended too."""

        def tick() -> None:
            sides.insist(worker)
            meter.watch()

        deadline = meter.began + self._life(templates.worker_seconds)
        end = self._sandbox.wait(worker.name, deadline=deadline, stop=threading.Event(), tick=tick)
        deserted = not spoken.wait(0.0 if meter.excess else _GRACE_SECONDS)
        if deserted:
            self._sandbox.kill(judge)
        return _WorkerEnd(end, deserted)

    def _life(self, seconds: Callable[[JudgeConfig], float]) -> float:
        """Seconds from a side's beginning to its end by its own PID 1, at the latest."""
        return seconds(self._config) + self._containers.kill_grace_seconds

    def _with_isolation(self, found: Score | Refusal) -> Score | Refusal:
        if isinstance(found, Refusal):
            return found
        return found.model_copy(update={"isolation": self._sandbox.describe()["isolation"]})

    def _place(self, attempt: Attempt) -> Place:
        return Place(self._home, attempt.experiment, attempt.number)

    def _remove(self, place: Place) -> None:
        workers, requests, replies = zip(*volumes.EXCHANGES, strict=True)
        self._sandbox.remove(
            containers=[place.name(name) for name in (*workers, Domain.JUDGE)],
            volumes=[place.name(name) for name in (*requests, *replies)],
        )


class _Sides:
    """Has workers and judge begin, whether they wait for the word or are still to be started."""

    def __init__(self, sandbox: Sandbox, clock: Clock, ready: bool) -> None:
        """`ready`: all of them have been started and wait."""
        self._sandbox, self._clock, self._ready = sandbox, clock, ready

    def begin(self, spec: ContainerSpec) -> float:
        """When it did, Clock.monotonic. Raises InfrastructureError."""
        if not self._ready:
            began = self._sandbox.start(spec)
        elif not self._sandbox.alive(spec.name):
            raise InfrastructureError(f"{spec.name} ended while it waited.")
        if not spec.waits:
            return began
        self._sandbox.begin(spec.name)
        return self._clock.monotonic()

    def insist(self, spec: ContainerSpec) -> None:
        """Repeat the word, which may have come too early. Never raises; there is a next time."""
        if spec.waits:
            with suppress(InfrastructureError):
                self._sandbox.begin(spec.name)


class _Listener:
    """Waits for what the judge says, line by line, while it runs."""

    def __init__(self, sandbox: Sandbox, name: str, end: Future[Exit]) -> None:
        """`end` is the wait for the judge's end; following its output only tells when to look."""
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
        """The next line on its stdout; None if it ended without. Raises Interrupted, InfrastructureError."""
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
        """Why it ended without saying anything more."""
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
    """What is to be believed of the judge's finding and the meter's; None if the worker's end has to tell.

    A worker that has answered is ended by us, after the meter's last look at it.
    """
    if isinstance(finding, Refusal) and finding.cause in REJECT_CAUSES:
        return finding
    if excess is not None:
        return excess
    return None if isinstance(finding, Score) and ended_alone else finding


def _blame(end: Exit, worker: _Worker) -> Refusal:
    """Why there was nothing to judge, from how the worker ended."""
    if end.oom_killed:
        return worker_report.KILLED_BY_KERNEL.model_copy(update={"confirming": worker.confirms})
    exit_code = LIMIT_EXIT_CODE if end.killed else end.exit_code
    found = worker_report.refusal(exit_code, worker.output.content, worker.lines)
    return worker_report.doubted(found) if worker.confirms else found
