"""worker.log: what the workers of one scoring printed, for people only.

The workers had seen validation text. No program of ours reads this file, and none of it goes into run.log,
the journal, a view or a prompt: docs/decisions/words-of-a-worker.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from controller.core.scoring.runlog import MAX_WORKER_LOG_BYTES
from controller.files import write_atomic

log = structlog.stdlib.get_logger(__name__)

NAME = "worker.log"
_HEADING = (
    b"Output of code that had seen validation text. For a person only: no program reads it, and none may.\n"
)


def write(run_log: Path, outputs: Sequence[bytes]) -> None:
    """Write the ends of the workers' output beside run.log, replacing those of an earlier scoring.

    If it cannot be written, only the file is lost.
    """
    path = run_log.with_name(NAME)
    try:
        if not any(outputs):
            path.unlink(missing_ok=True)
            return
        room = (MAX_WORKER_LOG_BYTES - 1024) // len(outputs)
        parts = (b"\n=== worker %d ===\n" % n + output[-room:] for n, output in enumerate(outputs, 1))
        write_atomic(path, _HEADING + b"".join(parts), mode=0o600)
    except OSError as error:
        log.warning("worker_log_not_written", error=error.strerror)
