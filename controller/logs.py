"""Operational logs: one JSON object a line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

import structlog


def configure(stream: TextIO, level: int = logging.INFO) -> None:
    """Send this process's log to `stream`, from `level` on."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


def stream_of_run(home: Path) -> TextIO:
    """Where `run` logs to: stdout for a collector; a file if a terminal shows the progress view there."""
    if sys.stdout.isatty():
        return (home / "glovebox.log").open("a", encoding="utf-8", buffering=1)
    return sys.stdout
