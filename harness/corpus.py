"""The corpora that `prepare.py` can turn into token shards.

A corpus is a list of parts. A part is one unit of work for one process: it can be pickled, and it yields
non-empty documents (`str`), always in the same order. There are three corpora:

- `stdlib`: library sources and documentation of the Python installation that runs this file; no download.
- `climbmix`: the shards that upstream trains on; the split of each shard is pinned, so scores compare.
- a folder, or a file, of .parquet, .jsonl, .json and .txt: see `documents.py` for how each is read.

Only preparation imports this module; it is not mounted into an experiment.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from documents import END_OF_TEXT, BadInput, Tally, documents_of, shown
from download import download_shards
from folder import Source, find

CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
CLIMBMIX_HELD_BACK = {6540: "dev", 6541: "holdout", 6542: "validation"}  # 6542 is upstream's validation shard
CLIMBMIX_DEFAULT_SHARDS = 10

LIBRARY_SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt"}
LIBRARY_FILE_BYTES = range(512, 128 * 1024)  # smaller files are stubs, larger ones are mostly tables
PART_BYTES = 4_000_000  # small files are grouped into parts of about this size

Item = TypeVar("Item")


class Part(Protocol):
    """One unit of work for one process. Its str() names the files, for messages."""

    @property
    def split(self) -> str | None:
        """The split of all its documents; None: each document's hash decides."""

    @property
    def files(self) -> int:
        """How many files it reads."""

    def documents(self, tally: Tally) -> Iterator[str]:
        """Raises BadInput."""


@dataclass(frozen=True)
class Corpus:
    name: str
    origin: str
    """One line that identifies the request; stored in the manifest."""
    parts: Sequence[Part]
    inputs: dict[str, dict[str, int | str]] = field(default_factory=dict)
    """For downloads: file name -> {"bytes", "sha256"}."""
    measured: bool = False
    """Its parts may be of any size, so they have to be measured to share a cap."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reason -> names of what was found but is not read."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    corpus: str
    """`stdlib`, `climbmix` or a path."""
    shards: int | None = None
    """Number of climbmix shards."""
    separator: str | None = None
    """Between the documents of a .txt; None: END_OF_TEXT."""
    links: Path | None = None
    """A folder with the targets of links, see `folder.find`."""

    @property
    def is_path(self) -> bool:
        return self.corpus not in ("stdlib", "climbmix")

    def check(self) -> None:
        """Raises BadInput."""
        if self.shards is not None and self.corpus != "climbmix":
            raise BadInput("--shards only means something with --corpus climbmix")
        if self.separator is not None and not self.is_path:
            raise BadInput("--separator only means something with a folder or a file of texts")
        if self.separator == "":
            raise BadInput("--separator is empty: give the text between two documents, blank-lines or none")


def open_corpus(request: Request, downloads: Path, workers: int, max_bytes: int | None) -> Corpus:
    """The requested corpus; of `stdlib`, at most `max_bytes`. Raises BadInput."""
    request.check()
    if request.corpus == "climbmix":
        return climbmix_corpus(downloads, _shards(request), workers)
    if request.corpus == "stdlib":
        return library_corpus(max_bytes)
    return path_corpus(request)


def origin_of(request: Request) -> str:
    """`Corpus.origin` without reading or downloading any text, to recognise already prepared data."""
    request.check()
    if request.corpus == "climbmix":
        return climbmix_origin(_shards(request))
    if request.corpus == "stdlib":
        return library_origin()
    return path_origin(request, find(Path(request.corpus), request.links).files)


def _shards(request: Request) -> int:
    return CLIMBMIX_DEFAULT_SHARDS if request.shards is None else request.shards


# --- the library of this Python installation ----------------------------------------------------------------


def library_origin() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"library sources and documentation of Python {version} and its installed packages"


def library_corpus(max_bytes: int | None) -> Corpus:
    """Every distinct library file, or as many as fit `max_bytes`, in order of content hash.

    Hash order makes the selection a fair sample that does not depend on paths, dates or the file system.
    """
    roots = sorted({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    distinct: dict[str, tuple[Path, int]] = {}
    for path in _library_files(roots):
        data = path.read_bytes()
        if _is_utf8(data):
            distinct.setdefault(hashlib.sha256(data).hexdigest(), (path, len(data)))
    chosen: list[tuple[Path, int]] = []
    total = 0
    for _, (path, size) in sorted(distinct.items()):
        if max_bytes is not None and total + size > max_bytes:
            break
        chosen.append((path, size))
        total += size
    parts = [LibraryFiles(tuple(group)) for group in _grouped(chosen)]
    return Corpus("stdlib", library_origin(), parts)


def _library_files(roots: Sequence[str]) -> Iterator[Path]:
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                usable = path.suffix in LIBRARY_SUFFIXES and path.is_file() and os.access(path, os.R_OK)
                if usable and path.stat().st_size in LIBRARY_FILE_BYTES:
                    yield path


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class LibraryFiles:
    """UTF-8 text files, one document each."""

    paths: tuple[Path, ...]
    split: str | None = None

    def __str__(self) -> str:
        return _named(self.paths)

    @property
    def files(self) -> int:
        return len(self.paths)

    def documents(self, tally: Tally) -> Iterator[str]:
        for path in self.paths:
            tally.begin()
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise BadInput(f"{shown(path)} was changed while it was read") from None
            yield from tally.accept(text, shown(path))
            tally.finished += 1


def _grouped(files: Iterable[tuple[Item, int]]) -> list[list[Item]]:
    """Group (file, size) pairs, in their order, into parts of about PART_BYTES."""
    groups: list[list[Item]] = []
    room = 0
    for file, size in files:
        if room <= 0:
            groups.append([])
            room = PART_BYTES
        groups[-1].append(file)
        room -= size
    return groups


# --- the user's texts ---------------------------------------------------------------------------------------


def path_corpus(request: Request) -> Corpus:
    listing = find(Path(request.corpus), request.links)
    separator = (request.separator or END_OF_TEXT).replace("\r\n", "\n")  # newlines as in the decoded text
    parts = [Texts(tuple(group), separator) for group in _groups(listing.files)]
    return Corpus(
        "folder", path_origin(request, listing.files), parts, measured=True, left_out=listing.left_out
    )


def path_origin(request: Request, files: Sequence[Source]) -> str:
    """The folder's name and a hash of its listing, so that changes are noticed."""
    path = Path(request.corpus)
    listing = "\n".join(f"{source.name}\t{source.size}" for source in files)
    listing += f"\nseparator {request.separator or END_OF_TEXT}"
    digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    kind = "folder" if path.is_dir() else "file"
    return f"{kind} {shown(path.resolve().name)} with {len(files)} files, listing {digest[:16]}"


def _groups(files: Sequence[Source]) -> Iterator[list[Source]]:
    """Large files one by one, so that a cap can be shared out; small ones in groups.

    Because of hash order, each group is a random sample of the folder, however its files are named.
    """
    ordered = sorted(files, key=lambda source: hashlib.sha256(os.fsencode(source.name)).digest())
    yield from ([source] for source in ordered if source.size >= PART_BYTES)
    small = [(source, source.size) for source in ordered if source.size < PART_BYTES]
    yield from _grouped(small)


@dataclass(frozen=True)
class Texts:
    """The user's files."""

    sources: tuple[Source, ...]
    separator: str
    split: str | None = None

    def __str__(self) -> str:
        return _named([source.path for source in self.sources])

    @property
    def files(self) -> int:
        return len(self.sources)

    def documents(self, tally: Tally) -> Iterator[str]:
        for source in self.sources:
            yield from documents_of(source.path, source.kind, self.separator, tally)


def _named(paths: Sequence[Path]) -> str:
    return shown(paths[0]) + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")


# --- upstream's shards --------------------------------------------------------------------------------------


def climbmix_url() -> str:
    """The download URL; the environment may name a mirror with the same file names."""
    return os.environ.get("GLOVEBOX_CLIMBMIX_URL", CLIMBMIX_URL).rstrip("/")


def climbmix_origin(shards: int) -> str:
    return f"{climbmix_url()} training shards 0 to {shards - 1}, dev 6540, hold-out 6541, validation 6542"


def climbmix_corpus(downloads: Path, shards: int, workers: int) -> Corpus:
    if not 1 <= shards <= min(CLIMBMIX_HELD_BACK):
        raise BadInput(f"--shards must be between 1 and {min(CLIMBMIX_HELD_BACK)}")
    splits = {**dict.fromkeys(range(shards), "train"), **CLIMBMIX_HELD_BACK}
    names = {f"shard_{index:05d}.parquet": split for index, split in splits.items()}
    inputs = download_shards(climbmix_url(), list(names), downloads / "climbmix", workers)
    parts = [Shard(downloads / "climbmix" / name, split) for name, split in names.items()]
    return Corpus("climbmix", climbmix_origin(shards), parts, inputs)


@dataclass(frozen=True)
class Shard:
    """A parquet file whose documents all belong to one split."""

    path: Path
    split: str
    files: int = 1

    def __str__(self) -> str:
        return shown(self.path)

    def documents(self, tally: Tally) -> Iterator[str]:
        return documents_of(self.path, ".parquet", "", tally)
