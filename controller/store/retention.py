"""Retention: keeps run logs and the texts of model calls within limits, oldest removed first, on record.

The journal holds the hash of everything it ever referred to and is never truncated, so the chain stays intact
and `verify` can tell what was removed on record from what is missing. The train.py and log of a kept
experiment, and any text that another line of the journal refers to, are never removed.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from controller.core.errors import InfrastructureError
from controller.core.events import AnyEvent, Pruned, Record
from controller.core.state import ResearchState
from controller.failpoints import reach
from controller.store import worker_log
from controller.store.journal import NAME, blob_path
from controller.store.runs import Runs

_CALL = b'"event":"api_'
_BLOB = re.compile(rb'"([0-9a-f]{64})"')
#: Prune down to this share of the limit, so that not every experiment triggers pruning.
_LEAVE = 0.9


class RetentionConfig(BaseModel):
    """Retention limits for data that only people read. Null: keep everything."""

    model_config = ConfigDict(extra="forbid")

    log_bytes: Annotated[int, Field(ge=0)] | None = 20 * 1024**3
    """Run logs of experiments that were not kept; the oldest are removed first."""
    call_bytes: Annotated[int, Field(ge=0)] | None = 20 * 1024**3
    """Requests to language models and their replies; the oldest are removed first."""


class Retention:
    """Measures the files of one home once the state says that they may exceed a limit, not before.

    The first measurement of a process reads all of them, or the whole journal; later ones only what is new.
    """

    def __init__(self, home: Path, config: RetentionConfig) -> None:
        self._home = home
        self._logs, self._calls = _SizeQueue(config.log_bytes), _SizeQueue(config.call_bytes)
        self._experiments = self._without_logs = self._read = 0

    def prune(self, state: ResearchState, record: Callable[[AnyEvent], Record]) -> None:
        """Remove what exceeds the limits, after `record` has journalled it. Raises InfrastructureError.

        Call this before the next experiment is proposed: the last process may have died after recording a
        removal and before carrying it out.
        """
        try:
            if state.removing is not None:
                self._remove(state.removing, state)
            if self._logs.overfull(state.log_bytes):
                self._measure_logs(state)
                self._take(self._logs, "logs", state, record)
            if self._calls.overfull(state.call_bytes):
                self._measure_texts(state)
                self._take(self._calls, "calls", state, record)
        except OSError as error:
            raise InfrastructureError(f"{self._home} cannot be pruned: {error.strerror}.") from error

    def _take(
        self,
        held: _SizeQueue,
        what: Literal["logs", "calls"],
        state: ResearchState,
        record: Callable[[AnyEvent], Record],
    ) -> None:
        if due := held.take_oldest():
            pruned = Pruned(what=what, before=due[0], bytes=due[1])
            record(pruned)
            self._remove(pruned, state)
            reach("pruned-files-removed")

    def _remove(self, pruned: Pruned, state: ResearchState) -> None:
        if pruned.what == "logs":
            self._remove_logs(pruned.before, state)
        else:
            self._remove_texts(pruned.before)

    def _measure_logs(self, state: ResearchState) -> None:
        closed = self._closed(state)
        for number in range(max(self._experiments, state.logs_pruned), closed):
            if number not in state.kept:
                self._logs.add(number, sum(map(_size, self._files(number))))
        self._experiments = max(self._experiments, closed)

    def _closed(self, state: ResearchState) -> int:
        """Every experiment below this number is closed. The latest may not be: other slots close theirs."""
        runs = Runs(self._home)
        latest = state.order[-max(1, len(state.slots)) :]
        unfinished = [experiment.number for experiment in state.open]
        unfinished += [number for number in latest if not runs.is_finished(state.experiments[number])]
        return min(unfinished, default=state.next_number)

    def _measure_texts(self, state: ResearchState) -> None:
        for line in self._lines(self._read):
            self._read += len(line)
            for call, name in _texts(line):
                if call >= state.calls_pruned:
                    self._calls.add(call, _size(blob_path(self._home, name)))

    def _remove_logs(self, before: int, state: ResearchState) -> None:
        for number in range(self._without_logs, before):
            if number not in state.kept:
                for path in self._files(number):
                    path.unlink(missing_ok=True)
        self._without_logs = before

    def _remove_texts(self, before: int) -> None:
        """Remove the texts of calls below `before`, except those that other lines of the journal refer to."""
        doomed = {name for line in self._lines(0) for call, name in _texts(line) if call < before}
        for line in self._lines(0):
            if not any(call < before for call, _ in _texts(line)):
                doomed.difference_update(name.decode() for name in _BLOB.findall(line))
        for name in doomed:
            blob_path(self._home, name).unlink(missing_ok=True)

    def _lines(self, begin: int) -> Iterator[bytes]:
        """Complete lines of the journal from byte `begin` on; another thread may be writing the next one."""
        with (self._home / NAME).open("rb") as file:
            file.seek(begin)
            yield from (line for line in file if line.endswith(b"\n"))

    def _files(self, number: int) -> tuple[Path, Path]:
        folder = Runs(self._home).folder(number)
        return folder / "run.log", folder / worker_log.NAME


class _SizeQueue:
    """Sizes by number, oldest first, and their sum."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._sizes: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, number: int, size: int) -> None:
        self._sizes.append((number, size))
        self._total += size

    def overfull(self, size: int) -> bool:
        """True if `size` bytes exceed the limit."""
        return self._limit is not None and size > self._limit

    def take_oldest(self) -> tuple[int, int] | None:
        """Take out what exceeds the limit: (first number that stays, bytes taken); None if all fits."""
        if self._limit is None or not self.overfull(self._total):
            return None
        before, held = 0, self._total
        while self._sizes and (self._total > self._limit * _LEAVE or self._sizes[0][0] < before):
            number, size = self._sizes.popleft()
            before = number + 1
            self._total -= size
        return before, held - self._total


def _texts(line: bytes) -> list[tuple[int, str]]:
    """(call, blob) of the request or reply that a line of the journal records."""
    if _CALL not in line:
        return []
    content = json.loads(line)
    data = content["data"] if content["event"] in ("api_requested", "api_answered") else {}
    return [(data["call"], data[field]) for field in ("request_sha256", "reply_sha256") if field in data]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
