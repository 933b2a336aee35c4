"""What a run has printed so far: its training loss and its last lines, while run.log grows."""

from __future__ import annotations

import os
from pathlib import Path

from controller.core.scoring.curve import CurveReader
from controller.core.untrusted import clean_text, clip
from controller.core.values import Curve
from controller.store.run_log import tail_text

_BLOCK = 1 << 20
"""Most bytes that are read at a time; a run that prints more is caught up with later."""
_TAIL_BYTES = 16 * 1024
_LINE = 300
LINES = 16


class LiveLog:
    """Reads one attempt's run.log, each byte once. Another process writes to it, and cuts out its middle."""

    def __init__(self, path: Path, budget_seconds: float) -> None:
        self._path = path
        self._reader = CurveReader(budget_seconds)
        self._offset = 0
        self._file: tuple[int, int] | None = None

    def follow(self) -> bool:
        """Read on; whether there was anything. Never raises."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._file not in (None, (found.st_dev, found.st_ino)):
                    return False  # another attempt's; whoever made this one will make another
                self._file = found.st_dev, found.st_ino
                self._offset = min(self._offset, found.st_size)  # its middle was cut out
                file.seek(self._offset)
                block = file.read(_BLOCK)
        except OSError:
            return False
        self._offset += len(block)
        self._reader.feed(block)
        return bool(block)

    @property
    def curve(self) -> Curve:
        return self._reader.curve


def last_lines(path: Path) -> list[str]:
    """The end of a log, safe to show; empty if there is none yet."""
    try:
        text = tail_text(path, _TAIL_BYTES)
    except OSError:
        return []
    return [clip(line, _LINE) for line in clean_text(text, 2 * _TAIL_BYTES).split("\n")[-LINES:]]
