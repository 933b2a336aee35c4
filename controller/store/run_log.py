"""run.log while it is written: its size is bounded, whatever the run prints."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from controller.files import drop_link, sync_folder


class RunLog:
    """Keeps the first and the last bytes of a stream in a file, with a line between that counts the rest.

    The file can be followed with `tail -f` while it grows. It never holds more than head + 2 * tail bytes:
    at that size its middle is removed in place. Memory use is constant. Other threads may write.
    """

    def __init__(self, path: Path, *, head_bytes: int, tail_bytes: int) -> None:
        """Replaces whatever is at `path`, even a link. Raises OSError."""
        drop_link(path)
        self._head, self._tail = head_bytes, tail_bytes
        self._lock = threading.Lock()
        self._file = open(path, "wb+", buffering=0)  # noqa: SIM115 - closed by `close`
        sync_folder(path.parent)
        self._size = 0
        self.total = 0
        """Bytes written so far, removed ones included."""
        self.failure: OSError | None = None
        """Why the file could not be written: a full disk, for instance."""

    def write(self, block: bytes) -> None:
        """Append, with NUL replaced by `?`: a single NUL makes grep treat the file as binary.

        Never raises: nobody would catch it in a reader thread.
        """
        block = block.replace(b"\0", b"?")
        with self._lock:
            self.total += len(block)
            if self._file.closed or self.failure:
                return
            try:
                self._append(block)
                if self._size > self._head + 2 * self._tail:
                    self._cut()
            except OSError as error:
                self.failure = error

    def close(self) -> None:
        """Cut to the final size and make it durable; later writes are dropped. Never raises."""
        with self._lock:
            if self._file.closed:
                return
            try:
                if self.failure is None and self.total > self._head + self._tail:
                    self._cut()
                os.fsync(self._file.fileno())
            except OSError as error:
                self.failure = self.failure or error
            finally:
                self._file.close()

    def _append(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._size += len(block)

    def _cut(self) -> None:
        descriptor = self._file.fileno()
        tail = os.pread(descriptor, self._tail, self._size - self._tail)
        left_out = self.total - self._head - self._tail
        self._file.seek(self._head)
        self._size = self._head
        self._append(b"\n[... %d bytes left out ...]\n" % left_out)
        self._append(tail)
        os.ftruncate(descriptor, self._size)


def tail_text(path: Path, limit: int) -> str:
    """The last `limit` bytes of a log as text; what is not UTF-8 is replaced. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - limit, 0))
        return file.read(limit).decode("utf-8", errors="replace")


def sha256(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
