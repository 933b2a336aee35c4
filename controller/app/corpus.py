"""The corpus that a person names, as the preparer is given it.

A folder is mounted by itself, so links that lead out of it lead nowhere in the container; what a model hub
puts into a snapshot is nothing else. What they lead to is mounted as well, each under the name of its link;
`harness/folder.py` looks there.

A corpus comes from somewhere, and its text goes where the experiments' code reads it: a link in it must not
fetch what no one meant to be trained on. So links are not followed to files of the system or to hidden files,
unless the corpus itself lies in the same hidden folder. The preparation says which links it could not follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controller.core.containers.service_builders import PREPARE_CORPUS, PREPARE_LINKS
from controller.core.containers.spec import Mount
from controller.core.errors import UserError
from controller.system.text_files import is_text

NAMED = ("stdlib", "climbmix")
_SYSTEM = tuple(Path("/", name) for name in ("boot", "dev", "etc", "proc", "sys"))
"""Nothing there is text for a corpus."""


@dataclass(frozen=True)
class CorpusMounts:
    """A corpus of texts in the container."""

    source: Path
    """Where it lies on the host."""
    argument: str
    """What the preparer is told that it is called."""
    mounts: tuple[Mount, ...]


def find(corpus: str) -> CorpusMounts | None:
    """None for a corpus that has a name instead of a place. Raises UserError."""
    if corpus in NAMED:
        return None
    given = Path(corpus).expanduser().absolute()
    source = Path(os.path.realpath(given))
    _require_text(source)
    if source.is_file():
        _require_text(given)
        argument = f"{PREPARE_CORPUS}/{given.name}"  # a link may say what it is where its target does not
        return CorpusMounts(source, argument, (Mount(str(source), argument),))
    if not source.is_dir():
        raise UserError(
            f"There is no corpus {corpus!r}: choose stdlib, climbmix, or a folder or a file of txt, jsonl, "
            "json or parquet."
        )
    linked = tuple(Mount(str(target), f"{PREPARE_LINKS}/{name}") for name, target in _leading_out(source))
    return CorpusMounts(source, PREPARE_CORPUS, (Mount(str(source), PREPARE_CORPUS), *linked))


def _require_text(path: Path) -> None:
    """The engine takes names that are text."""
    if not is_text(str(path)):
        raise UserError(f"The name of the corpus {str(path)!r} is not UTF-8: give it another one.")


def _leading_out(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name in the folder, real path) of each link to a file or folder that leads nowhere in a container."""
    for place, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            link = Path(place, name)
            if link.is_symlink():
                target = Path(os.path.realpath(link))
                inside = target.is_relative_to(folder) and not os.path.isabs(os.readlink(link))
                if not inside and _may_be_read(target, folder):
                    relative = str(link.relative_to(folder))
                    if is_text(relative) and is_text(str(target)):
                        yield relative, target


def _may_be_read(target: Path, folder: Path) -> bool:
    if not target.is_file() and (not target.is_dir() or folder.is_relative_to(target)):
        return False
    if any(target.is_relative_to(place) for place in _SYSTEM):
        return False
    shared = os.path.commonpath([folder, target])
    return not any(part.startswith(".") for part in target.relative_to(shared).parts)
