"""Whether a controller is running in a home, and what it is doing, from its lock and its heartbeat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controller.observers import heartbeat
from controller.ports import Clock
from controller.store.lock import home_in_use, home_owner


@dataclass(frozen=True)
class Liveness:
    """What is known about the controller of a home."""

    running: bool
    doing: str | None
    """What its last heartbeat said; None: it never sent one."""
    silent_seconds: float
    """How long its heartbeat has been overdue."""

    def as_json(self) -> dict[str, bool | str | float | None]:
        return {"running": self.running, "doing": self.doing, "silent_seconds": self.silent_seconds}

    def sentence(self, home: Path) -> str:
        """The same as a sentence for people."""
        if not self.running:
            return f"No controller is at work in {home}{self._last_words()}."
        if self.doing is None:
            return f"A controller is at work in {home}."
        if self.silent_seconds > 0:
            return (
                f"The heartbeat of the controller in {home} is {self.silent_seconds:.0f} s overdue; "
                f"the last one said: {self.doing}."
            )
        return f"A controller is at work in {home}: {self.doing}."

    def _last_words(self) -> str:
        if self.doing is None:
            return ""
        if self.doing.startswith(heartbeat.ENDED):
            return f"; the last one {self.doing.rstrip('.')}"
        return f"; the last heartbeat said: {self.doing}"


def check(home: Path, clock: Clock) -> Liveness:
    """Reads two files; never blocks."""
    beat, owner = heartbeat.read(home), home_owner(home)
    if not home_in_use(home):
        return Liveness(running=False, doing=beat.doing if beat else None, silent_seconds=0.0)
    if beat is None or owner not in (None, beat.process):
        return Liveness(running=True, doing=None, silent_seconds=0.0)
    return Liveness(running=True, doing=beat.doing, silent_seconds=max(0.0, clock.monotonic() - beat.due))
