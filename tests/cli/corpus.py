"""A corpus folder just large enough to be prepared, from the library of the Python that runs the tests."""

from __future__ import annotations

import sysconfig
from pathlib import Path

BYTES = 3_000_000


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    left = BYTES
    for number, path in enumerate(sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))):
        if left <= 0:
            return
        content = path.read_bytes()[:20_000]
        (folder / f"{number:04}.txt").write_text(content.decode(errors="ignore"), encoding="utf-8")
        left -= len(content)
