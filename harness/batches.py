"""A flat script's first request for a batch: what tells that its training would begin, from any thread.

A script may ask in its main thread, from a thread of its own that prefetches, or from another process, as a
`DataLoader` with workers does. Only the first is where the training begins. Those who prefetch may ask while
the model is still being built, so their request is remembered, and the script ends when its main thread has
nothing left to do but wait.
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

LOOK_SECONDS = 0.25  # of the main thread, to see whether it works
WORK = 0.2  # share of a CPU above which it does
WAITS_SECONDS = 0.5  # without work in a wait of Python's, it waits for a batch
QUIET_SECONDS = 3.0  # the same anywhere else; a device may take a while to answer when it is set up
LIMIT_SECONDS = 30.0  # from the request to the end of a script that never waits, or has no model when it does
WAITS_IN = {"asyncio", "concurrent", "multiprocessing", "queue", "selectors", "threading"}
SIGNAL = signal.SIGUSR2


class FirstBatch(BaseException):
    """Ends a flat script where training would begin; no Exception, so `except Exception` lets it pass."""


class NeverWaited(BaseException):
    """Ends a flat script whose batches are fetched outside its main thread, where that was not found waiting
    for one with its model ready.
    """


class Script:
    """A flat script that runs in the main thread as `module`, until a batch is asked for."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module, self._process = module, os.getpid()
        thread = threading.current_thread()
        assert thread.ident is not None
        self._main = thread.ident
        self._clock = time.pthread_getcpuclockid(self._main)
        self._over = threading.Event()
        self._reason: type[BaseException] = NeverWaited
        self._asked, self._ask = os.pipe()  # a process that was forked from this one can write to it, too
        self._watcher = threading.Thread(target=self._watch, name="first batch", daemon=True)

    def make_dataloader(self, *_args: object, **_kwargs: object) -> "NoBatches":
        """To be called in place of `prepare.make_dataloader`."""
        return NoBatches(self)

    def ask(self) -> None:
        """Return to the main thread. Another one ends here, once nobody waits for it any more, and so does
        another process, at once: its owner may wait for its end.
        """
        if os.getpid() != self._process:
            os.write(self._ask, b"?")
            os._exit(0)
        if threading.get_ident() != self._main:
            os.write(self._ask, b"?")
            self._over.wait()
            raise SystemExit  # which a thread may raise without a word

    @contextlib.contextmanager
    def until_first_batch(self) -> Iterator[None]:
        """To run it under: leave where its training would begin. Raises NeverWaited."""
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
        """Interrupt the main thread, whatever it waits for, once somebody else has asked for a batch."""
        os.read(self._asked, 1)
        if self._over.is_set():
            return
        self._reason = FirstBatch if self._comes_to_wait() else NeverWaited
        if not self._over.is_set():
            signal.pthread_kill(self._main, SIGNAL)

    def _comes_to_wait(self) -> bool:
        """True once the main thread waits and there is a model; False if that takes too long."""
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
    """The data loader of a script that is not to train."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def __iter__(self) -> "NoBatches":
        return self

    def __next__(self) -> NoReturn:
        self._script.ask()
        raise FirstBatch
