"""Runs T: the proposal, in its container, against the clock."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from controller.core.containers import builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import MIB, SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec
from controller.core.errors import InfrastructureError
from controller.core.scoring.curve import CurveReader
from controller.core.scoring.runlog import LIMIT_EXIT_CODE, claim, crash_cause
from controller.core.statistics.hopeless import hopeless
from controller.core.values import Cause, Conditions, RunOutcome
from controller.failpoints import reach
from controller.ports import Attempt, Clock, Exit, Monitor, Sandbox
from controller.store.run_log import RunLog, sha256, tail_text

_LOG_BYTES = 8 * MIB
"""How much of the beginning of a run's output is kept in run.log, and how much of its end. An editor still
opens twice that much."""
_CLASSIFIED_BYTES = 1 * MIB
"""How much of the end of run.log is searched for the claim and for the cause of a crash."""
_SILENCE_SECONDS = 5.0
"""A reader of a dead container's output that delivers nothing for this long is stuck."""
_ENDED_FOR_IT = (LIMIT_EXIT_CODE, 128 + signal.SIGKILL)
"""Exit codes of a run that outlived its budget while no controller was there: killed by its PID 1 or the
reaper."""


class ContainerTrainer:
    """`ports.Trainer` on a Sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        clock: Clock,
        *,
        containers: SealedConfig,
        home: Path,
        files: Files,
        slot: int = 0,
        monitor: Monitor | None = None,
        log_bytes: int = _LOG_BYTES,
    ) -> None:
        """Without a `monitor` the slot is not watched. run.log keeps `log_bytes` of each end of the
        output."""
        self._sandbox, self._clock, self._slot, self._monitor = sandbox, clock, slot, monitor
        self._containers, self._log_bytes = containers, log_bytes
        self._home, self._files = home.resolve(), files

    def spec(self, attempt: Attempt) -> ContainerSpec:
        return builders.trainer(
            self._containers,
            self._names(attempt),
            self._files,
            train=attempt.train_path.resolve(),
            budget_seconds=attempt.budget_seconds,
            seed=attempt.seed,
        )

    def train(self, attempt: Attempt, stop: threading.Event, tick: Callable[[float], None]) -> RunOutcome:
        taken_on = self._clock.monotonic()
        started = self._sandbox.running_since(self.spec(attempt).name)
        if started is None:
            self._clear(attempt)
        with ExitStack() as watching:
            watch = self._monitor.watch(attempt, stop) if self._monitor is not None else None
            if watch is not None:
                watching.callback(watch.close)
            began = self._begin(attempt) if started is None else started
            end, output = self._see_through(attempt, began, stop, tick)
            conditions = watch.conclude(began) if watch is not None else None
        require_workspace(self._sandbox, self._names(attempt))
        start_seconds = round(began - taken_on, 3) if started is None else None
        return _outcome(attempt, end, output, conditions, start_seconds)

    def discard(self, attempt: Attempt) -> None:
        names = self._names(attempt)
        containers = (Item.TRAINER, *volumes.WORKERS, Item.JUDGE, Item.HOLDER)
        self._sandbox.remove(
            containers=[names.name(item) for item in containers],
            volumes=[names.name(item) for item in (Item.WORKSPACE, *volumes.EXCHANGE_VOLUMES)],
        )
        if self._monitor is not None:
            self._monitor.vacated()
        reach("discarded")

    def _clear(self, attempt: Attempt) -> None:
        """Remove what earlier attempts, or an interrupted start of this one, left behind."""
        ours = self._names(attempt).experiment_prefix
        running, kept = self._sandbox.leftovers()
        self._sandbox.remove(
            containers=[name for name in running if name.startswith(ours)],
            volumes=[name for name in kept if name.startswith(ours)],
        )
        reach("discarded")

    def _names(self, attempt: Attempt) -> ContainerNames:
        return ContainerNames(self._home, attempt.experiment, attempt.number, self._slot)

    def _begin(self, attempt: Attempt) -> float:
        """Create the volume, then start holder and T."""
        names, budget = self._names(attempt), attempt.budget_seconds
        self._sandbox.create_volume(volumes.workspace(self._containers, names, budget))
        self._sandbox.start(builders.holder(self._containers, names, budget))
        return self._sandbox.start(self.spec(attempt))

    def _see_through(
        self, attempt: Attempt, began: float, stop: threading.Event, tick: Callable[[float], None]
    ) -> tuple[Exit, _Output]:
        """Wait for T's end; how it ended and what it printed. run.log is complete by then."""
        name, output = self.spec(attempt).name, self._receive(attempt)

        def every_second() -> None:
            tick(self._clock.monotonic() - began)
            if output.why_hopeless(attempt) is not None:
                output.ended.set()
                with contextlib.suppress(InfrastructureError):  # there is another try in a second
                    self._sandbox.kill(name)

        try:
            reader = self._sandbox.follow(name, output.write)
            deadline = began + attempt.budget_seconds
            end = self._sandbox.wait(name, deadline=deadline, stop=stop, tick=every_second)
            reach("training-ended")
            output = self._drain(attempt, reader, output)
        finally:
            output.log.close()
        reach("output-drained")
        if output.log.failure:
            raise InfrastructureError(f"run.log could not be written: {output.log.failure}.")
        return end, output

    def _receive(self, attempt: Attempt) -> _Output:
        try:
            log = RunLog(attempt.log_path, head_bytes=self._log_bytes, tail_bytes=self._log_bytes)
        except OSError as error:
            raise InfrastructureError(f"run.log could not be written: {error}.") from error
        return _Output(log, CurveReader(attempt.budget_seconds), threading.Event())

    def _drain(self, attempt: Attempt, reader: threading.Thread, output: _Output) -> _Output:
        """Wait for the rest of the output. A stuck reader is replaced once, by a reader of the finished
        log."""
        if _finish(reader, output.log):
            return output
        output.log.close()
        again = self._receive(attempt)
        if not _finish(self._sandbox.follow(self.spec(attempt).name, again.write), again.log):
            again.log.close()
            raise InfrastructureError("The engine does not hand out the run's output.")
        return again


class _Output(NamedTuple):
    """Where a run's output goes."""

    log: RunLog
    reports: CurveReader
    ended: threading.Event
    """Set once this controller has had the run ended early."""

    def write(self, block: bytes) -> None:
        self.log.write(block)
        self.reports.feed(block)

    def why_hopeless(self, attempt: Attempt) -> str | None:
        return None if attempt.limits is None else hopeless(self.reports.curve, attempt.limits)


def require_workspace(sandbox: Sandbox, names: ContainerNames) -> None:
    """Raises InfrastructureError if the workspace may no longer be what T left.

    It lives exactly as long as its holder, which no experiment can reach. If the holder is dead, the engine
    or the machine went down, and neither T nor its checkpoint is to blame.
    """
    if not sandbox.alive(names.name(Item.HOLDER)):
        raise InfrastructureError("The workspace is gone: the engine or the machine restarted.")


def _finish(reader: threading.Thread, log: RunLog) -> bool:
    """True when the reader has read everything; False if it is stuck."""
    while reader.is_alive():
        before = log.total
        reader.join(_SILENCE_SECONDS)
        if reader.is_alive() and log.total == before:
            return False
    return True


def _outcome(
    attempt: Attempt,
    end: Exit,
    output: _Output,
    conditions: Conditions | None,
    start_seconds: float | None,
) -> RunOutcome:
    overran = end.exit_code in _ENDED_FOR_IT and end.seconds >= attempt.budget_seconds
    killed_at_limit = end.killed or overran
    try:
        text = tail_text(attempt.log_path, _CLASSIFIED_BYTES)
        log_sha256 = sha256(attempt.log_path)
    except OSError as error:
        raise InfrastructureError(f"run.log could not be read: {error}.") from error
    cause, detail = crash_cause(
        text, exit_code=end.exit_code, oom_killed=end.oom_killed, killed_at_limit=killed_at_limit
    )
    # Also if a controller that was killed right afterwards has ended it. A child of the run may have run out
    # of memory long before.
    was_killed = end.exit_code == 128 + signal.SIGKILL and not killed_at_limit
    was_killed = was_killed and (output.ended.is_set() or not end.oom_killed)
    if was_killed and (reason := output.why_hopeless(attempt)) is not None:
        cause, detail = Cause.HOPELESS, reason
    return RunOutcome(
        seconds=end.seconds,
        exit_code=end.exit_code,
        start_seconds=start_seconds,
        kill_sent_seconds=round(end.kill_sent_seconds, 3) if end.kill_sent_seconds is not None else None,
        killed_at_limit=killed_at_limit,
        oom_killed=end.oom_killed,
        cause=cause,
        detail=detail,
        claim=claim(text),
        curve=output.reports.curve,
        log_sha256=log_sha256,
        log_bytes=output.log.total,
        conditions=conditions,
    )
