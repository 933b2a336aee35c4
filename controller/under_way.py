"""The actions that are under way, each in a thread of its own, and how the loop waits for them."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from controller.core import plan
from controller.core.errors import Interrupted
from controller.core.plan import Action

_GLANCE = 0.2
"""Seconds within which a stop is noticed while actions are under way."""
_GRACE_SECONDS = 5.0
"""How long the threads get to notice that they are to end."""


@dataclass(frozen=True)
class UnderWay:
    """One action that is under way."""

    action: Action
    proposal: int | None
    """The proposal that it is about."""


class ActionThreads:
    """Starts them, and tells what has become of them. Thread-safe."""

    def __init__(self, person: threading.Event) -> None:
        """`person` is set when a person asks to stop."""
        self.halt = Halt(person)
        self._person = person
        self._threads: dict[threading.Thread, UnderWay] = {}
        self._changed = threading.Condition()
        self._woken = False
        self._failure: BaseException | None = None

    def __iter__(self) -> Iterator[UnderWay]:
        with self._changed:
            return iter([*self._threads.values()])

    def start(self, action: Action, work: Callable[[], None], proposal: int | None = None) -> None:
        """Carry out `action` by calling `work`."""

        def run() -> None:
            try:
                work()
            except Interrupted:
                if isinstance(action, plan.OnSlot):  # a question may be broken off for other reasons
                    self._failure = self._failure or Interrupted("stopped by a person")
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                with self._changed:
                    del self._threads[thread]
                self.notify()

        # A daemon, because a read from a dead peer may hang for longer than anybody waits for an exit.
        thread = threading.Thread(target=run, name=type(action).__name__.lower(), daemon=True)
        with self._changed:
            self._threads[thread] = UnderWay(action, proposal)
        thread.start()

    def notify(self) -> None:
        """The situation is another one: there is something new to plan."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until `notify`, or for so long, or until a person asks to stop."""
        if not self._threads and not self._woken:
            self._person.wait(seconds)
        with self._changed:
            for _ in range(math.ceil(seconds / _GLANCE)):
                if self._woken or not self._threads or self._person.is_set():
                    break
                self._changed.wait(_GLANCE)
            self._woken = False

    def raise_failure(self) -> None:
        """Raises Interrupted if a person asked to stop, and what a thread could not cope with."""
        if self._failure is not None:
            raise self._failure
        if self._person.is_set():
            raise Interrupted("stopped by a person")

    def join(self) -> None:
        """Wait for all of them to end, once `halt` is set; for what is about a proposal, not long."""
        end = time.monotonic() + _GRACE_SECONDS
        with self._changed:
            on_slots = [
                thread for thread, one in self._threads.items() if isinstance(one.action, plan.OnSlot)
            ]
            others = [thread for thread in self._threads if thread not in on_slots]
        for thread in on_slots:
            thread.join()  # which comes soon: it has to leave its slot in order
        for thread in others:
            thread.join(max(0.0, end - time.monotonic()))


class Halt(threading.Event):
    """Set if a person asks to stop, or if the loop ends for another reason."""

    def __init__(self, person: threading.Event) -> None:
        super().__init__()
        self._person = person

    def is_set(self) -> bool:
        return super().is_set() or self._person.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Both are looked at each fifth of a second, so `timeout` is rounded up to that."""
        slices = itertools.count() if timeout is None else range(math.ceil(timeout / _GLANCE))
        for _ in slices:
            if self.is_set():
                break
            self._person.wait(_GLANCE)
        return self.is_set()
