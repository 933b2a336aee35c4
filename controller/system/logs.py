"""Operational logs: one JSON object per line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO, cast

import structlog

from controller.files import drop_link


def configure(stream: TextIO, level: int = logging.INFO) -> None:
    """Send this process's log to `stream`, at `level` and above."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _LossyStream(stream))),
        cache_logger_on_first_use=False,
    )


class _LossyStream:
    """A stream that drops what it cannot write: a lost log collector must not stop the research."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._closed = False

    def write(self, text: str) -> None:
        try:
            if not self._closed:
                self._stream.write(text)
        except BrokenPipeError:
            self._closed = True
        except (OSError, UnicodeEncodeError):
            pass  # a full disk, say; the next line may fit

    def flush(self) -> None:
        try:
            if not self._closed:
                self._stream.flush()
        except BrokenPipeError:
            self._closed = True
        except OSError:
            pass


def stream_of_run(home: Path) -> TextIO:
    """Where `run` logs to: stdout for a log collector; a file if stdout is a terminal with the live view."""
    if sys.stdout.isatty():
        drop_link(home / "glovebox.log")
        return (home / "glovebox.log").open("a", encoding="utf-8", buffering=1)
    return sys.stdout
