"""Operational logs: JSON lines on stdout, unless a person watches the terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import structlog


def configure(home: Path, *, quiet: bool = False) -> None:
    """Set structlog up for this process: one JSON object a line.

    They go to stdout for a log collector. In a terminal, where stdout carries the progress view, and for
    commands whose stdout is their answer (`quiet`), they go to glovebox.log in the home.
    """
    if quiet or sys.stdout.isatty():
        home.mkdir(parents=True, exist_ok=True)
        stream = (home / "glovebox.log").open("a", encoding="utf-8", buffering=1)
    else:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper in every process
        stream = sys.stdout  # type: ignore[assignment]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
