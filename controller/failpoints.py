"""Named places at which a test may end this process, as the kernel's OOM killer or a pulled plug would.

    GLOVEBOX_FAILPOINT=branch-moved glovebox run       dies the first time it comes there
    GLOVEBOX_FAILPOINT=blob-stored:7 glovebox run      dies the seventh time

They stand at every boundary between two states of an experiment: around each line of the journal and between
the deeds that a line stands for. `python -m tests.chaos --list` prints them. Where nothing is armed, a place
costs one comparison.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import get_args

from controller.core.containers import orders
from controller.core.containers.domains import Domain
from controller.core.errors import UserError
from controller.core.events import AnyEvent
from controller.core.untrusted import clean_line

VARIABLE = "GLOVEBOX_FAILPOINT"

EVENTS: tuple[str, ...] = tuple(event.model_fields["event"].default for event in get_args(AnyEvent))
"""What a line of the journal can be."""

_AROUND_LINES = tuple(f"{side}-{event}" for event in EVENTS for side in ("before", "after"))

OF_THE_SANDBOX: tuple[str, ...] = (
    *(f"container-{done}-{domain}" for domain in Domain for done in ("due", "created", "started")),
    "container-told",
    "container-kill-due",
    "container-killed",
    "container-removed",
    "volume-created",
    "volume-removed",
)
"""Whoever has the engine's socket comes there: the runner, or a controller that works without one."""

OF_THE_RUNNER: tuple[str, ...] = (
    *(f"order-{how}-{verb}" for verb in orders.VERBS for how in ("received", "carried-out")),
    "train-sealed",
    "copies-forgotten",
    "runner-serving",
)
"""`carried-out`: and the answer is not on its way yet."""

OF_A_CALLER: tuple[str, ...] = ("start-ordered", "start-answered")
"""A controller that works through a runner."""

NAMES: tuple[str, ...] = (
    *_AROUND_LINES,
    *OF_THE_SANDBOX,
    *OF_THE_RUNNER,
    *OF_A_CALLER,
    # files
    "file-written",  # and not yet in its place
    "blob-stored",
    "proposal-half-written",
    "summary-appended",
    "run-closed",
    "ledger-due",
    "ledger-written",
    "snapshot-due",
    "snapshot-written",
    "pruned-files-removed",
    # git
    "base-made",
    "commit-made",
    "branch-moved",
    "index-read",
    # containers
    "training-ended",
    "output-drained",
    "discarded",
    "exchange-made",
    "made-ready",
    "first-worker-done",
    "second-worker-done",
    "scoring-cleared",
    "rehearsal-cleared",
    # a start
    "reaped",
    "recovered",
)

_hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Say that the process has come to a place; if that one is armed, this does not return."""
    if _hook is not None:
        _hook(name)


def install(hook: Callable[[str], None] | None) -> None:
    """Let `hook` hear of every place that is reached, in whatever thread; None: nobody."""
    global _hook  # noqa: PLW0603 - the places are all over the program, and so is whoever listens
    _hook = hook


def arm(text: str) -> None:
    """Die at NAME, or the nth time it is reached with NAME:NTH. Raises UserError for what is no place."""
    name, colon, times = text.partition(":")
    if name not in NAMES or (colon and not (times.isdecimal() and int(times))):
        raise UserError(f"{VARIABLE} names no place to fail at: {clean_line(text, 60)!r}.")
    install(_Killer(name, int(times or 1)))


class _Killer:
    """SIGKILL to ourselves: no handler, no `finally` and no other thread gets a word in."""

    def __init__(self, name: str, nth: int) -> None:
        self._name, self._left = name, nth

    def __call__(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # a kill is delivered on the way out of the call, or a moment later
