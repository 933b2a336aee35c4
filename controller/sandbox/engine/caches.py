"""When the kernel's caches have to be emptied, and whether they can be.

File names that a container looked up, whether they existed or not, and the pages of files that it read stay
in the kernel after the container has ended, where any other container can detect them.
docs/decisions/channels.md says what an experiment could gain from that, and what remains of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress

import structlog

from controller.core.containers.domains import FORGOTTEN_BEFORE, Domain
from controller.core.errors import InfrastructureError, NotReady
from controller.core.untrusted import clean_line

log = structlog.stdlib.get_logger(__name__)

_LEAVE_TRACES = frozenset({*FORGOTTEN_BEFORE, Domain.JUDGE})
"""Domains that run an experiment's code, and the judge: pages that it has mapped are not dropped."""
EMPTIED, SHARED = "caches emptied", "shared caches"
"""How far experiments on this engine are isolated from each other."""


class Caches:
    """Tracks which domains may have left traces in the caches of the engine's machine. Thread-safe."""

    def __init__(
        self, off: str, *, empty: Callable[[bool], None], running: Callable[[], Set[Domain]]
    ) -> None:
        """`off`: why they are not to be emptied; an empty string if they are.

        `empty` empties the caches and, given True, reads back in what all containers need; it raises
        InfrastructureError or NotReady. `running` returns the domains of the containers that run now and are
        not waiting for their start signal.
        """
        self._enabled, self._empty, self._running = not off, empty, running
        self._lock = threading.Lock()
        self._traces: set[Domain] = set(FORGOTTEN_BEFORE)
        """At start-up it is not known what ran before."""
        self._ahead: threading.Thread | None = None
        self._emptied = False
        """They have been emptied successfully at least once."""
        self._obstacle = off

    @contextmanager
    def before(self, domain: Domain, *, warm: bool = True) -> Iterator[None]:
        """Hold this while a container of this domain starts: the caches hold no traces that matter to it.

        `warm`: the container will import Python and torch. Raises InfrastructureError or NotReady if the
        caches could be emptied before but cannot be now. If they never could, the container starts anyway.
        """
        if domain not in FORGOTTEN_BEFORE or not self._enabled:
            yield
            return
        with self._lock:
            if self._traces & FORGOTTEN_BEFORE[domain]:
                self._drop_traces(warm)
            self._traces.add(domain)
            yield

    def begin_ahead(self) -> None:
        """Call this after containers were removed. Empties the caches in the background if the next trainer
        would have to and nothing is running that could leave new traces. The trainer's start waits for it,
        and retries if it failed.
        """
        if Domain.WORKER in self._traces and self._emptied and not self._is_ahead:
            # Not a daemon thread: the process must wait for the container, which nothing else would remove.
            self._ahead = threading.Thread(target=self._empty_ahead, name="empty the caches")
            self._ahead.start()

    def close(self) -> None:
        """Wait for the background run."""
        if self._ahead is not None:
            self._ahead.join()

    @property
    def _is_ahead(self) -> bool:
        return self._ahead is not None and self._ahead.is_alive()

    def _empty_ahead(self) -> None:
        with self._lock, suppress(InfrastructureError, NotReady):
            if Domain.WORKER in self._traces and not self._running() & _LEAVE_TRACES:
                self._drop_traces(warm=True)

    def isolation(self) -> tuple[str, str]:
        """EMPTIED or SHARED, the latter with the reason. Tries to empty the caches if nobody has yet."""
        with self._lock:
            if not self._emptied and not self._obstacle:
                self._try(warm=False)
            return (EMPTIED, "") if self._emptied else (SHARED, self._obstacle)

    def _drop_traces(self, warm: bool) -> None:
        before = self._running()
        if self._try(warm=warm):
            self._traces = {*before, *self._running()}  # these kept running and may have left new traces

    def _try(self, *, warm: bool) -> bool:
        try:
            self._empty(warm)
        except (InfrastructureError, NotReady) as error:
            if self._emptied:
                raise
            self._obstacle = clean_line(str(error), 500)
            log.warning("shared_caches", reason=self._obstacle, advice="runs go on, and their scores say so")
            return False
        self._emptied, self._obstacle = True, ""
        return True
