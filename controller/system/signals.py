"""Requests to stop from a person, a service manager or a closed terminal."""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType


def stop_on_signals() -> threading.Event:
    """An event set by Ctrl-C, SIGTERM or a closed terminal; a second Ctrl-C ends the process at once.

    Under `nohup`, which ignores SIGHUP, SIGHUP stays ignored.
    """
    stop = threading.Event()
    asked: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        # Not here: the interrupted thread may be about to wait for the event, and hold its lock.
        _thread.start_new_thread(stop.set, ())

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handle)
    return stop
