"""The requests a runner is working on, so that an answer can wait for the requests before it."""

from __future__ import annotations

import threading


class PendingRequests:
    """The requests in progress. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: set[object] = set()

    def begin(self) -> object:
        """Register a request; its ticket."""
        ticket = object()
        with self._changed:
            self._tickets.add(ticket)
        return ticket

    def end(self, ticket: object) -> None:
        """Idempotent."""
        with self._changed:
            self._tickets.discard(ticket)
            self._changed.notify_all()

    def settled(self, seconds: float) -> bool:
        """True once everything that is pending now has ended; False if that takes longer than `seconds`."""
        with self._changed:
            now = frozenset(self._tickets)
            return self._changed.wait_for(lambda: now.isdisjoint(self._tickets), seconds)
