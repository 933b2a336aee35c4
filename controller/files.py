"""Writing files so that a crash at any moment leaves the old content or the new, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from controller.failpoints import reach

PARTIAL = ".partial"
"""Suffix of files and folders that are not complete yet; their names begin with a dot."""


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content`, durably. A symlink at `path` is replaced, not followed.

    Raises OSError (disk full, no permission); `path` is then as it was.
    """
    descriptor, temporary = tempfile.mkstemp(PARTIAL, f".{path.name[:32]}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        reach("file-written")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def remove_partial(folders: Iterable[Path]) -> None:
    """Remove what a killed process left half-written there. Raises OSError."""
    for folder in filter(Path.is_dir, folders):
        with os.scandir(folder) as entries:
            partial = [entry for entry in entries if entry.name[0] == "." and entry.name.endswith(PARTIAL)]
        for entry in partial:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


def drop_link(path: Path) -> None:
    """Remove a symlink at the path of a file about to be opened for writing. Raises OSError."""
    if path.is_symlink():
        path.unlink()


def make_folder(path: Path) -> None:
    """Create `path` and its parents, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: otherwise a power cut can lose a new file entirely."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
