"""When the kernel's caches have to be emptied, and what is known about whether they can be.

Names that a container looked for, found or not, and pages of files that it read stay in the kernel after its
end, for every other container to find. What that is worth to an experiment, and what is left of it:
docs/decisions/channels.md.
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
"""Who runs an experiment's code; and the judge, since what it maps is not dropped."""
EMPTIED, SHARED = "caches emptied", "shared caches"
"""How far experiments on this engine are isolated from each other."""


class Caches:
    """Remembers whose traces may be in the caches of the engine's machine. Safe to use from any thread."""

    def __init__(
        self, enabled: bool, *, empty: Callable[[bool], None], running: Callable[[], Set[Domain]]
    ) -> None:
        """`empty` empties the caches, and reads in again what everybody needs if it is given true; raises
        InfrastructureError, NotReady. `running`: the domains of what runs now and does not wait for its word.
        """
        self._enabled, self._empty, self._running = enabled, empty, running
        self._lock = threading.Lock()
        self._traces: set[Domain] = set(FORGOTTEN_BEFORE)
        """At first nobody knows what ran before."""
        self._ahead: threading.Thread | None = None
        self._emptied = False
        """It has worked before."""
        self._obstacle = "" if enabled else "sandbox.empty_caches is off"

    @contextmanager
    def before(self, domain: Domain, *, warm: bool = True) -> Iterator[None]:
        """To be held while a container of this domain is started: nobody's traces that matter are left then.

        `warm`: it will read what Python and torch are imported from. Raises InfrastructureError or NotReady
        if the caches could be emptied before and cannot be now. Where they never could, it goes on without.
        """
        if domain not in FORGOTTEN_BEFORE:
            yield
            return
        with self._lock:
            if self._enabled and self._traces & FORGOTTEN_BEFORE[domain]:
                self._drop_traces(warm)
            self._traces.add(domain)
            yield

    def begin_ahead(self) -> None:
        """To be called when containers were removed. Begins to empty the caches, if a trainer's start would
        have to and nobody is there who could leave more. That start waits for what is under way, and tries
        again what failed.
        """
        if Domain.WORKER in self._traces and self._emptied and not self._is_ahead:
            # No daemon: a process that ends waits for the container, which nobody else would remove.
            self._ahead = threading.Thread(target=self._empty_ahead, name="empty the caches")
            self._ahead.start()

    def close(self) -> None:
        """Wait for what was begun ahead."""
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
        """EMPTIED or SHARED, and for the latter the reason. Tries it, if nobody has yet."""
        with self._lock:
            if not self._emptied and not self._obstacle:
                self._try(warm=False)
            return (EMPTIED, "") if self._emptied else (SHARED, self._obstacle)

    def _drop_traces(self, warm: bool) -> None:
        before = self._running()
        if self._try(warm=warm):
            self._traces = {*before, *self._running()}  # what ran on may have left some more

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
