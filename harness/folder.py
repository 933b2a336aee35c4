"""Which files of a folder form its corpus, and which do not.

Nothing is skipped silently: each name found is either a file to read or listed in `left_out`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from documents import KINDS, BadInput, kind_of, shown

HIDDEN = "hidden"
OTHER = "of another kind"
AGAIN = "the same as another one"
LINK = "links that lead nowhere or cannot be followed"
SPECIAL = "no regular files"


@dataclass(frozen=True)
class Source:
    """One file to read."""

    name: str
    """Its path in the corpus."""
    path: Path
    """Where to read it: elsewhere if it is a link."""
    kind: str
    size: int


@dataclass
class Listing:
    """The content of a folder."""

    files: list[Source] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names that are not read, folders included."""

    def leave_out(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, []).append(name)


def find(corpus: Path, links: Path | None = None) -> Listing:
    """The files to read in a corpus, a folder or a single file. Raises BadInput if there are none.

    Links are followed, but no file or folder is read twice. In a container, a link that leads out of the
    corpus would resolve inside the container; `links` then holds the targets of such links, under the links'
    names.
    """
    if corpus.is_file():
        kind = kind_of(corpus.name)
        if kind is None:
            raise BadInput(f"{shown(corpus)} is of no kind that is read: {', '.join(KINDS)}")
        _require_readable(corpus)
        return Listing([Source(corpus.name, corpus, kind, corpus.stat().st_size)])
    if not corpus.is_dir():
        raise BadInput(f"{shown(corpus)} is not a corpus: give stdlib, climbmix, a folder or a file")
    listing = Listing()
    try:
        _Search(listing, corpus, links).run()
    except OSError as error:
        path = shown(error.filename or corpus)
        if isinstance(error, PermissionError):
            raise BadInput(f"{path} may not be read by user {os.getuid()}; let others read it") from None
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    if not listing.files:
        told = "; ".join(told_left_out(listing.left_out))
        raise BadInput(
            f"no .parquet, .jsonl, .json or .txt file in {shown(corpus)}"
            + (f"; not read: {told}" if told else "")
        )
    listing.files.sort(key=lambda source: source.name)
    return listing


def _require_readable(path: Path) -> None:
    if not os.access(path, os.R_OK):  # a search would silently skip it
        raise PermissionError(13, "Permission denied", str(path))


class _Search:
    """Walks through a folder in order of names."""

    def __init__(self, listing: Listing, corpus: Path, links: Path | None) -> None:
        self._listing, self._corpus, self._links = listing, corpus, links
        self._folders: list[tuple[Path, str]] = [(corpus, "")]
        self._seen: set[tuple[int, int]] = set()
        self._is_new(corpus)

    def run(self) -> None:
        while self._folders:
            folder, name = self._folders.pop()
            for entry in sorted(os.listdir(folder)):
                self._look(folder / entry, f"{name}{entry}")

    def _look(self, path: Path, name: str) -> None:
        if path.name.startswith("."):
            self._listing.leave_out(HIDDEN, name)
            return
        path = self._led_to(path, name)
        if not path.exists() or (path.is_symlink() and self._leads_out(path)):
            self._listing.leave_out(LINK, name)
        elif not path.is_dir() and not path.is_file():
            self._listing.leave_out(SPECIAL, name)
        elif path.is_file() and kind_of(name) is None:
            self._listing.leave_out(OTHER, name)
        elif self._is_new(path):
            self._take(path, name)
        else:
            self._listing.leave_out(AGAIN, name)

    def _led_to(self, path: Path, name: str) -> Path:
        return self._links / name if self._links and path.is_symlink() and self._leads_out(path) else path

    def _leads_out(self, link: Path) -> bool:
        """True if, in this container, a link resolves to something other than intended."""
        if self._links is None:
            return False
        target = Path(os.path.realpath(link))
        return not any(target.is_relative_to(os.path.realpath(root)) for root in (self._corpus, self._links))

    def _is_new(self, path: Path) -> bool:
        status = path.stat()
        identity = status.st_dev, status.st_ino
        new = identity not in self._seen
        self._seen.add(identity)
        return new

    def _take(self, path: Path, name: str) -> None:
        if path.is_dir():
            self._folders.append((path, f"{name}/"))
            return
        _require_readable(path)
        self._listing.files.append(Source(name, path, kind_of(name) or "", path.stat().st_size))


def told_left_out(left_out: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """One phrase for each reason: how many, and the first few names."""
    for why, names in sorted(left_out.items()):
        some = ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
        yield f"{why}: {len(names)} ({some})"
