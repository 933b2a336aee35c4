"""Stops a flat script at its first request for a batch, where its training would begin, from any thread.

A script may request it in its main thread, in a prefetching thread, or in another process, as a `DataLoader`
with workers does. Only the main thread's request marks the start of training. Prefetchers may request batches
while the model is still being built, so their request is remembered, and the script is stopped once its main
thread does nothing but wait.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, NoReturn

LOOK_SECONDS = 0.25  # between checks whether the main thread is busy
WORK = 0.2  # share of a CPU above which it is busy
WAITS_SECONDS = 0.5  # idle this long in a Python wait, it is waiting for a batch
QUIET_SECONDS = 3.0  # the same anywhere else; setting up a device may take a while
LIMIT_SECONDS = 30.0  # after the request, a script that never waits with a model ready is stopped
WAITS_IN = {"asyncio", "concurrent", "multiprocessing", "queue", "selectors", "threading"}
SIGNAL = signal.SIGUSR2


class FirstBatch(BaseException):
    """Ends a flat script where training would begin; not an Exception, so `except Exception` misses it."""


class NeverWaited(BaseException):
    """Ends a flat script whose batches are fetched elsewhere and whose main thread never waited for one."""


class Script:
    """A flat script that runs in the main thread as `module`, until a batch is requested."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module, self._process = module, os.getpid()
        thread = threading.current_thread()
        assert thread.ident is not None
        self._main = thread.ident
        self._clock = time.pthread_getcpuclockid(self._main)
        self._over = threading.Event()
        self._reason: type[BaseException] = NeverWaited
        self._asked, self._ask = os.pipe()  # forked processes can write to it, too
        self._watcher = threading.Thread(target=self._watch, name="first batch", daemon=True)

    def make_dataloader(self, *_args: object, **_kwargs: object) -> "NoBatches":
        """Replaces `prepare.make_dataloader`."""
        return NoBatches(self)

    def ask(self) -> None:
        """A batch is requested. Returns in the main thread; other threads end here once the script is over.

        Any other process ends here at once, since its parent may be waiting for it.
        """
        if os.getpid() != self._process:
            os.write(self._ask, b"?")
            os._exit(0)
        if threading.get_ident() != self._main:
            os.write(self._ask, b"?")
            self._over.wait()
            raise SystemExit  # ends a thread silently

    @contextlib.contextmanager
    def until_first_batch(self) -> Iterator[None]:
        """Run the script in this context: left where its training would begin. Raises NeverWaited."""
        before = signal.signal(SIGNAL, self._raise)
        self._watcher.start()
        try:
            with contextlib.suppress(FirstBatch):
                yield
        finally:
            self._over.set()
            os.write(self._ask, b".")
            self._watcher.join()
            signal.signal(SIGNAL, before)

    def _raise(self, _signal: int, _frame: Any) -> None:
        if not self._over.is_set():
            self._over.set()
            raise self._reason

    def _watch(self) -> None:
        """Interrupt the main thread, whatever it waits for, after a request from elsewhere."""
        os.read(self._asked, 1)
        if self._over.is_set():
            return
        self._reason = FirstBatch if self._comes_to_wait() else NeverWaited
        if not self._over.is_set():
            signal.pthread_kill(self._main, SIGNAL)

    def _comes_to_wait(self) -> bool:
        """True once the main thread waits with a model ready; False if that takes too long."""
        quiet, limit = 0.0, time.monotonic() + LIMIT_SECONDS
        while not self._over.is_set() and time.monotonic() < limit:
            before = time.clock_gettime(self._clock)
            self._over.wait(LOOK_SECONDS)
            idle = time.clock_gettime(self._clock) - before < WORK * LOOK_SECONDS
            quiet = quiet + LOOK_SECONDS if idle else 0.0
            enough = WAITS_SECONDS if self._in_a_wait() else QUIET_SECONDS
            if quiet >= enough and getattr(self._module, "model", None) is not None:
                return True
        return False

    def _in_a_wait(self) -> bool:
        frame = sys._current_frames().get(self._main)
        name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        return name.partition(".")[0] in WAITS_IN


class NoBatches:
    """The data loader of a script that must not train."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def __iter__(self) -> "NoBatches":
        return self

    def __next__(self) -> NoReturn:
        self._script.ask()
        raise FirstBatch
