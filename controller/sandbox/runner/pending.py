"""Which requests a runner is at work on, so that an answer can wait for what was asked before it."""

from __future__ import annotations

import threading


class PendingRequests:
    """What is being asked for. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: set[object] = set()

    def begin(self) -> object:
        """A ticket."""
        ticket = object()
        with self._changed:
            self._tickets.add(ticket)
        return ticket

    def end(self, ticket: object) -> None:
        """Doing it twice changes nothing."""
        with self._changed:
            self._tickets.discard(ticket)
            self._changed.notify_all()

    def settled(self, seconds: float) -> bool:
        """True once everything has ended that is under way now; False if that takes longer."""
        with self._changed:
            now = frozenset(self._tickets)
            return self._changed.wait_for(lambda: now.isdisjoint(self._tickets), seconds)
