"""Is a controller at work in a home, and on what: its lock and its sign of life, seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controller.observers import heartbeat
from controller.ports import Clock
from controller.store.lock import home_in_use, home_owner


@dataclass(frozen=True)
class Life:
    """What is known of the controller of a home."""

    running: bool
    doing: str | None
    """What its last sign of life says, or said while it was there; None: it never worked on an effort."""
    silent_seconds: float
    """For how long a sign of life has been due."""

    def as_json(self) -> dict[str, bool | str | float | None]:
        return {"running": self.running, "doing": self.doing, "silent_seconds": self.silent_seconds}

    def sentence(self, home: Path) -> str:
        """The same for people."""
        if not self.running:
            return f"No controller is at work in {home}{self._last_words()}."
        if self.doing is None:
            return f"A controller is at work in {home}."
        if self.silent_seconds > 0:
            return (
                f"The controller in {home} should have shown a sign of life {self.silent_seconds:.0f} s ago; "
                f"its last was: {self.doing}."
            )
        return f"A controller is at work in {home}: {self.doing}."

    def _last_words(self) -> str:
        if self.doing is None:
            return ""
        if self.doing.startswith(heartbeat.ENDED):
            return f"; the last one {self.doing.rstrip('.')}"
        return f"; the last sign of life of one was: {self.doing}"


def look(home: Path, clock: Clock) -> Life:
    """Asks nobody and waits for nothing."""
    sign, owner = heartbeat.read(home), home_owner(home)
    if not home_in_use(home):
        return Life(running=False, doing=sign.doing if sign else None, silent_seconds=0.0)
    if sign is None or owner not in (None, sign.process):
        return Life(running=True, doing=None, silent_seconds=0.0)
    return Life(running=True, doing=sign.doing, silent_seconds=max(0.0, clock.monotonic() - sign.due))
