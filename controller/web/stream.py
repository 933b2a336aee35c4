"""Server-sent events: tells open pages that something has changed; they fetch what."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from starlette.responses import PlainTextResponse, Response, StreamingResponse

MOST = 64
"""Pages that are told at a time."""
_POLL_SECONDS = 0.1
_HEARTBEAT_SECONDS = 15.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Changes(Protocol):
    """What is compared to find out whether something has changed."""

    version: int
    printed: int


class Stream:
    """Everybody who listens. Its coroutines only read two numbers, so that no client can hold anybody up."""

    def __init__(self, changes: Changes, boot: str, ended: Callable[[], bool]) -> None:
        """`boot` tells one process from the next; `ended`: whether the server is about to end."""
        self._changes, self._boot, self._ended = changes, boot, ended
        self.listeners = 0

    def version(self) -> str:
        """Another one once anything has changed but what runs have printed."""
        return f"{self._boot}.{self._changes.version}"

    def open(self) -> Response:
        """One client's stream."""
        if self.listeners >= MOST:
            return PlainTextResponse("Too many pages are open.\n", 503, {"retry-after": "30"})
        return StreamingResponse(self._events(), media_type="text/event-stream", headers=_HEADERS)

    async def _events(self) -> AsyncIterator[str]:
        self.listeners += 1
        try:
            told, spoke = "", time.monotonic()
            while not self._ended():
                now = json.dumps({"version": self.version(), "printed": self._changes.printed})
                if now != told:
                    told, spoke = now, time.monotonic()
                    yield f"data: {now}\n\n"
                elif time.monotonic() - spoke > _HEARTBEAT_SECONDS:
                    spoke = time.monotonic()
                    yield ": still here\n\n"
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self.listeners -= 1
