"""Runs W and J on the checkpoint T left, and turns what they say into a Score or a reason.

A score that would be kept has to be confirmed: when the first worker is dead, a second one that was told
nothing answers the judge's further questions. See harness/judge.py and docs/decisions/probes.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from controller import data, workspace
from controller.core import judge_answer, templates, volumes
from controller.core.container_spec import ContainerSpec
from controller.core.domains import Domain
from controller.core.judge_config import JudgeConfig
from controller.core.model import Cause, Draw, InfrastructureError, Refusal, Score
from controller.core.place import REHEARSAL_PLACE, Place
from controller.core.sandbox_config import SealedConfig
from controller.core.templates import Files
from controller.core.untrusted import clean_line
from controller.failpoints import reach
from controller.ports import Attempt, Clock, Exit, Sandbox

_GRACE_SECONDS = 3.0
"""For one side to end by itself after the other has."""
_LOOK_SECONDS = 2.0
"""How soon a line of the judge is noticed even if the engine does not tell that there is one."""
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

    def score(
        self,
        attempt: Attempt,
        seed: int,
        contends: Callable[[Score], bool],
        stop: threading.Event,
        draw: Draw | None = None,
    ) -> Score | Refusal:
        with self._alone:
            return self._score(attempt, self.specs(attempt, seed, draw), contends, stop)

    def _score(
        self,
        attempt: Attempt,
        specs: list[ContainerSpec],
        contends: Callable[[Score], bool],
        stop: threading.Event,
    ) -> Score | Refusal:
        place = self._place(attempt)
        workspace.require(self._sandbox, place)
        first, second, judge = specs
        seconds = templates.exchange_seconds(self._containers, self._config)
        # What a controller that died left behind.
        self._sandbox.remove(containers=[Place(self._home, REHEARSAL_PLACE).name(Domain.REHEARSAL)])
        self._remove(place)
        try:
            for names in volumes.EXCHANGES:
                for volume in volumes.exchange(self._containers, place, names, seconds):
                    self._sandbox.create_volume(volume)
            reach("exchange-made")
            found = self._run(place, (first, second), judge, contends, stop)
            return self._with_isolation(found)
        finally:
            self._remove(place)
            reach("scoring-cleared")

    def _run(
        self,
        place: Place,
        workers: tuple[ContainerSpec, ContainerSpec],
        judge: ContainerSpec,
        contends: Callable[[Score], bool],
        stop: threading.Event,
    ) -> Score | Refusal:
        with ThreadPoolExecutor(3) as pool:
            starts = [pool.submit(self._sandbox.start, spec) for spec in (workers[0], judge)]
            worker_began, judge_began = (start.result() for start in starts)
            deadline = judge_began + judge.life_seconds
            end = pool.submit(self._sandbox.wait, judge.name, deadline=deadline, stop=stop)
            listener = _Listener(self._sandbox, judge.name, end)
            try:
                found = self._stage(pool, place, workers[0], worker_began, listener, judge_answer.score)
                reach("first-worker-done")
                if not isinstance(found, Score) or not contends(found):
                    return found
                # The first worker is dead, and with it whatever it may have known. With its container go its
                # log on the host's disk and its cgroup.
                self._sandbox.remove(containers=[workers[0].name])
                confirmed = self._stage(
                    pool,
                    place,
                    workers[1],
                    self._sandbox.start(workers[1]),
                    listener,
                    lambda line: judge_answer.confirmation(line, found),
                )
                reach("second-worker-done")
                return confirmed
            finally:
                with suppress(InfrastructureError):
                    self._sandbox.kill(judge.name)

    def _stage(
        self,
        pool: ThreadPoolExecutor,
        place: Place,
        worker: ContainerSpec,
        began: float,
        judge: _Listener,
        read: Callable[[bytes], Score | Refusal | None],
    ) -> Score | Refusal:
        """See one worker through until it is dead; what the judge's next line says about it."""
        tail, spoken = _Tail(), threading.Event()
        reader = self._sandbox.follow(worker.name, tail.write)
        watch = pool.submit(self._watch, worker, began, judge.name, spoken)
        try:
            line = judge.next_line()
        finally:
            spoken.set()
            with suppress(InfrastructureError):
                self._release(worker.name, watch)
        worker_end = watch.result()
        if line is not None and (finding := read(line)) is not None:
            return finding  # the judge's own finding stands, however the worker ended
        if line is None and not worker_end.deserted:
            raise judge.failure()
        reader.join(_GRACE_SECONDS)
        workspace.require(self._sandbox, place)
        return _blame(worker_end.exit, tail.last_line())

    def _watch(self, worker: ContainerSpec, began: float, judge: str, spoken: threading.Event) -> _WorkerEnd:
        """See the worker through. A judge left waiting for a dead worker is ended too."""
        end = self._sandbox.wait(worker.name, deadline=began + worker.life_seconds, stop=threading.Event())
        deserted = not spoken.wait(_GRACE_SECONDS)
        if deserted:
            self._sandbox.kill(judge)
        return _WorkerEnd(end, deserted)

    def _release(self, worker: str, watch: Future[_WorkerEnd]) -> None:
        """The judge is done with it: give the worker a moment to say how it ended, then end it."""
        with suppress(TimeoutError):
            watch.result(_GRACE_SECONDS)
            return
        self._sandbox.kill(worker)

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


class _Listener:
    """Waits for what the judge says, line by line, while it runs."""

    def __init__(self, sandbox: Sandbox, name: str, end: Future[Exit]) -> None:
        """`end` is the wait for the judge's end; following its output only tells when to look."""
        self.name = name
        self._sandbox, self._end = sandbox, end
        self._heard = 0
        self._something = threading.Event()
        self._tail = _Tail()
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

    def __init__(self) -> None:
        self._bytes = b""

    def write(self, block: bytes) -> None:
        self._bytes = (self._bytes + block)[-_TAIL_BYTES:]

    def last_line(self) -> str:
        lines = self._bytes.decode("utf-8", errors="replace").split("\n")
        return next((line for text in reversed(lines) if (line := clean_line(text))), "")


def _blame(end: Exit, last_line: str) -> Refusal:
    """Why there was nothing to judge, from how the worker ended. Its own words are for people only."""
    if end.oom_killed:
        return Refusal(cause=Cause.OOM, detail="the worker was killed by the kernel: out of memory")
    cause = _WORKER_CAUSES.get(end.exit_code)
    if cause is None:
        return Refusal(cause=Cause.FORWARD, detail=f"the worker ended with status {end.exit_code}")
    return Refusal(cause=cause, detail=clean_line(last_line.removeprefix("worker: ")))
