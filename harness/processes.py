"""Work for child processes that has an end whatever becomes of them.

A pool of `multiprocessing` waits for ever for the answer of a child that the kernel has killed. Here such a
child ends all of it, with a sentence that names what was being read; and no child outlives its parent.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from documents import BadInput, shown

Job = TypeVar("Job")
Result = TypeVar("Result")

WORKER_BYTES = 1 << 30
"""What one child is reckoned to need."""
NAMED = 4  # jobs, at most, in a sentence


def default_workers() -> int:
    """One for each CPU we may use, but no more than fit into memory."""
    return max(1, min(len(os.sched_getaffinity(0)), _memory_bytes() // WORKER_BYTES))


def _memory_bytes() -> int:
    """What this machine has, or this container may use."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups v2 and v1
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(limits)


def each(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, name: Callable[[Job], str]
) -> list[Result]:
    """function(job) of each job, in their order, in up to `workers` child processes.

    `name` says which files a job reads. Raises BadInput, also when a child dies.
    """
    results: dict[int, Result] = {}
    under_way: dict[Future[Result], int] = {}
    children: dict[int | None, BaseProcess] = {}
    try:
        with _pool(min(workers, len(jobs)), children) as pool:
            for index, job in enumerate(jobs):
                # No more than there are children: so what is under way is what is being read.
                if len(under_way) == workers:
                    _collect(under_way, results)
                under_way[pool.submit(_run, function, job, name(job))] = index
                children.update((child.pid, child) for child in multiprocessing.active_children())
            while under_way:
                _collect(under_way, results)
    except (BrokenProcessPool, MemoryError) as error:
        reading = [name(jobs[index]) for index in sorted(under_way.values())]
        codes = set() if isinstance(error, MemoryError) else {child.exitcode for child in children.values()}
        raise BadInput(_death(reading, codes)) from None
    return [results[index] for index in range(len(jobs))]


def _run(function: Callable[[Job], Result], job: Job, reading: str) -> Result:
    try:
        return function(job)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception, and cannot be sent to the parent
        raise BadInput(f"a library gave up on {reading}: {shown(error)}; leave it out") from None


def _collect(under_way: dict[Future[Result], int], results: dict[int, Result]) -> None:
    """Wait until one of the jobs is done, and take it out. Raises what it raised."""
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        results[under_way[future]] = future.result()
        del under_way[future]


@contextlib.contextmanager
def _pool(workers: int, children: dict[int | None, BaseProcess]) -> Iterator[ProcessPoolExecutor]:
    """A pool of these `children`. Whoever leaves it early leaves nothing behind."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BrokenProcessPool:
        raise  # the pool ends the others
    except BaseException:
        for child in children.values():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a child: Ctrl-C is for the parent to answer; and if that is killed, end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _death(reading: Sequence[str], codes: set[int | None]) -> str:
    """One sentence for children that ended with these exit codes, minus the signal; none: out of memory."""
    files = ", ".join(reading[:NAMED]) + (", …" if len(reading) > NAMED else "")
    crashes = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
    if crash := next((one for one in crashes if -one in codes), None):
        return (
            f"a process crashed ({crash.name}) while it read {files}: a file there is damaged; leave it out"
        )
    return (
        f"a process was killed while it read {files}, as the kernel does when memory runs out:"
        " give it more memory or fewer --workers"
    )
