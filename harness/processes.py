"""A pool of child processes that always terminates.

A `multiprocessing` pool waits for ever for a child that the kernel has killed. Here a dead child ends the
whole pool, with a sentence that names what was being read; and no child outlives its parent.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self, TypeVar

from documents import BadInput, shown

Job = TypeVar("Job")
Result = TypeVar("Result")

WORKER_BYTES = 1 << 30
"""Estimated memory of one child."""
NAMED = 4  # most jobs named in a message


def default_workers() -> int:
    """One per usable CPU, but no more than fit into memory."""
    return max(1, min(len(os.sched_getaffinity(0)), _memory_bytes() // WORKER_BYTES))


def _memory_bytes() -> int:
    """Memory of this machine, or limit of this container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups v2 and v1
        with contextlib.suppress(OSError, ValueError):  # "max" is not a number: no limit
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(limits)


class Workers:
    """Up to `count` child processes. All are killed if the `with` block raises."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)
        self._children: dict[int | None, BaseProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for child in self._children.values():
                child.kill()
        self._pool.shutdown(cancel_futures=True)

    def each(
        self, function: Callable[[Job], Result], jobs: Sequence[Job], name: Callable[[Job], str] = str
    ) -> list[Result]:
        """function(job) for each job, in order; `name` says which files a job reads.

        Raises BadInput, also if a child dies; the pool is then unusable.
        """
        results: dict[int, Result] = {}
        under_way: dict[Future[Result], int] = {}
        try:
            for index, job in enumerate(jobs):
                # No more than there are children, so that every pending job is being read.
                if len(under_way) == self._count:
                    _collect(under_way, results)
                under_way[self._pool.submit(_run, function, job, name(job))] = index
                alive = multiprocessing.active_children()
                self._children.update((child.pid, child) for child in alive)
            while under_way:
                _collect(under_way, results)
        except (BrokenProcessPool, MemoryError) as error:
            reading = [name(jobs[index]) for index in sorted(under_way.values())]
            raise BadInput(_death(reading, self._signals(error))) from None
        return [results[index] for index in range(len(jobs))]

    def _signals(self, error: Exception) -> set[int]:
        """The signals that ended children."""
        if isinstance(error, MemoryError):
            return set()
        self._pool.shutdown()  # ends the others first
        return {-child.exitcode for child in self._children.values() if child.exitcode}


def _run(function: Callable[[Job], Result], job: Job, reading: str) -> Result:
    try:
        return function(job)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is not an Exception and cannot be pickled
        raise BadInput(f"a library gave up on {reading}: {shown(error)}; leave it out") from None


def _collect(under_way: dict[Future[Result], int], results: dict[int, Result]) -> None:
    """Wait for a job to finish and collect its result. Raises what it raised."""
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        results[under_way[future]] = future.result()
        del under_way[future]


def _begin() -> None:
    """In a child: leave Ctrl-C to the parent, and exit if the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _death(reading: Sequence[str], signals: set[int]) -> str:
    """One sentence about a dead child: a crash if by one of these signals, else lack of memory."""
    files = ", ".join(reading[:NAMED]) + (", …" if len(reading) > NAMED else "")
    crashes = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
    if crash := next((one for one in crashes if one in signals), None):
        return (
            f"a process crashed ({crash.name}) while it read {files}: a file there is damaged; leave it out"
        )
    return (
        f"a process was killed while it read {files}, as the kernel does when memory runs out:"
        " give it more memory or fewer --workers"
    )
