"""Named places at which a test can kill this process, as the kernel's OOM killer or a power cut would.

    GLOVEBOX_FAILPOINT=branch-moved glovebox run       dies the first time it gets there
    GLOVEBOX_FAILPOINT=blob-stored:7 glovebox run      dies the seventh time

They mark every boundary between two states of an experiment: before and after each line of the journal, and
between the actions that a line records. `python -m tests.chaos --list` prints them. Unless a test arms one, a
failpoint costs one comparison.
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
"""The kinds of event in the journal."""

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
"""Reached by the process with the engine's socket: the runner, or a controller without one."""

OF_THE_RUNNER: tuple[str, ...] = (
    *(f"order-{how}-{verb}" for verb in orders.VERBS for how in ("received", "carried-out")),
    "train-sealed",
    "copies-forgotten",
    "runner-serving",
)
"""`carried-out`: done, but not answered yet."""

OF_A_CALLER: tuple[str, ...] = ("start-ordered", "start-answered")
"""Reached by a controller that uses a runner."""

NAMES: tuple[str, ...] = (
    *_AROUND_LINES,
    *OF_THE_SANDBOX,
    *OF_THE_RUNNER,
    *OF_A_CALLER,
    # files
    "file-written",  # but not renamed yet
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
    "note-made",
    "certified-moved",
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
    """Mark that the process has reached a failpoint; if it is armed, this does not return."""
    if _hook is not None:
        _hook(name)


def install(hook: Callable[[str], None] | None) -> None:
    """Call `hook` for every failpoint reached, in any thread; None: call nothing."""
    global _hook  # noqa: PLW0603 - failpoints are all over the program, and there is one hook
    _hook = hook


def arm(text: str) -> None:
    """Die at NAME, or with NAME:NTH the nth time it is reached. Raises UserError for an unknown name."""
    name, colon, times = text.partition(":")
    if name not in NAMES or (colon and not (times.isdecimal() and int(times))):
        raise UserError(f"{VARIABLE} names no place to fail at: {clean_line(text, 60)!r}.")
    install(_Killer(name, int(times or 1)))


class _Killer:
    """Sends SIGKILL to this process: no handler, no `finally` and no other thread runs again."""

    def __init__(self, name: str, nth: int) -> None:
        self._name, self._left = name, nth

    def __call__(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # a kill is delivered on the way out of the call, or a moment later
