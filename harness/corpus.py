"""Where the text comes from: the corpora that `prepare.py` can turn into token shards.

A corpus is a list of parts. A part is one unit of work for one process: it can be pickled, and it yields
documents (`str`, not empty), always in the same order. Three corpora exist:

- `stdlib`: library sources and documentation of the Python installation that runs this file; no download.
- `climbmix`: the shards that upstream trains on; the split of each shard is pinned, so scores compare.
- a folder of .parquet (column `text`), .jsonl (field `text`) and .txt (a file is a document).

Only preparation imports this module; it is not mounted into an experiment.
"""

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq
from download import BadInput, download_shards

CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
CLIMBMIX_HELD_BACK = {6540: "dev", 6541: "holdout", 6542: "validation"}  # 6542 is upstream's validation shard
CLIMBMIX_DEFAULT_SHARDS = 10

LIBRARY_SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt"}
LIBRARY_FILE_BYTES = range(512, 128 * 1024)  # smaller files are stubs, larger ones are mostly tables
PART_BYTES = 4_000_000  # text files are grouped into parts of about this size


class Part(Protocol):
    """One unit of work for one process."""

    @property
    def split(self) -> str | None:
        """The split that all its documents belong to; None lets each document's hash decide."""

    def documents(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class Corpus:
    name: str
    origin: str
    """One line that tells two different requests apart; it goes into the manifest."""
    parts: Sequence[Part]
    inputs: dict[str, dict[str, int | str]]
    """For downloads: file name -> {"bytes", "sha256"}."""


def open_corpus(
    request: str, downloads: Path, shards: int | None, workers: int, max_bytes: int | None
) -> Corpus:
    """The corpus named `stdlib` (at most `max_bytes` of it) or `climbmix`, or else the folder at that path.

    Raises BadInput.
    """
    if request == "climbmix":
        return climbmix_corpus(downloads, CLIMBMIX_DEFAULT_SHARDS if shards is None else shards, workers)
    if shards is not None:
        raise BadInput("--shards only means something with --corpus climbmix")
    if request == "stdlib":
        return library_corpus(max_bytes)
    return folder_corpus(Path(request))


def origin_of(request: str, shards: int | None) -> str:
    """`Corpus.origin` without reading or downloading the text, to recognise data that is already prepared."""
    if request == "climbmix":
        return climbmix_origin(CLIMBMIX_DEFAULT_SHARDS if shards is None else shards)
    if request == "stdlib":
        return library_origin()
    return folder_origin(Path(request), folder_files(Path(request)))


# --- the library of this Python installation ----------------------------------------------------------------


def library_origin() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"library sources and documentation of Python {version} and its installed packages"


def library_corpus(max_bytes: int | None) -> Corpus:
    """Every distinct library file, or as many as fit `max_bytes`, in the order of their content hashes.

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
    return Corpus("stdlib", library_origin(), _text_parts(chosen), {})


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
class TextFiles:
    """UTF-8 text files, one document each."""

    paths: tuple[Path, ...]
    split: str | None = None

    def documents(self) -> Iterator[str]:
        for path in self.paths:
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(f"{path} is not UTF-8 text (byte {error.start})") from None
            if text:
                yield text


def _text_parts(files: Sequence[tuple[Path, int]]) -> list[TextFiles]:
    """Group (path, size) pairs, in their order, into parts of about PART_BYTES."""
    groups: list[list[Path]] = []
    room = 0
    for path, size in files:
        if room <= 0:
            groups.append([])
            room = PART_BYTES
        groups[-1].append(path)
        room -= size
    return [TextFiles(tuple(group)) for group in groups]


# --- a folder of the user's ---------------------------------------------------------------------------------


def folder_files(folder: Path) -> list[Path]:
    """The corpus files below `folder`, sorted by their path in it. Raises BadInput if there are none."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a corpus: give stdlib, climbmix or a folder")
    if not os.access(folder, os.R_OK | os.X_OK):  # a search would pass over it without a word
        raise BadInput(f"{folder} may not be read by user {os.getuid()}; let others read it")
    try:
        files = sorted(
            p for p in folder.rglob("*") if p.suffix in {".parquet", ".jsonl", ".txt"} and p.is_file()
        )
    except OSError as error:
        raise BadInput(f"cannot read {folder}: {error.strerror}") from None
    if not files:
        raise BadInput(f"no .parquet, .jsonl or .txt file in {folder}")
    return files


def folder_origin(folder: Path, files: Sequence[Path]) -> str:
    """Names the folder and hashes its listing, so that files added later are noticed."""
    listing = "\n".join(f"{p.relative_to(folder)}\t{p.stat().st_size}" for p in files)
    digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    return f"folder {folder.resolve().name} with {len(files)} files, listing {digest[:16]}"


def folder_corpus(folder: Path) -> Corpus:
    files = folder_files(folder)
    for path in files:
        if not os.access(path, os.R_OK):
            raise BadInput(f"cannot read {path}: permission denied")
    parts: list[Part] = []
    parts.extend(ParquetFile(p) for p in files if p.suffix == ".parquet")
    parts.extend(JsonLines(p) for p in files if p.suffix == ".jsonl")
    texts = [(p, p.stat().st_size) for p in files if p.suffix == ".txt"]
    # In hash order a part is a mixture of the whole folder, however its files are named.
    texts.sort(key=lambda item: hashlib.sha256(item[0].read_bytes()).digest())
    parts.extend(_text_parts(texts))
    return Corpus("folder", folder_origin(folder, files), parts, {})


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line, the document in its field `text`."""

    path: Path
    split: str | None = None

    def documents(self) -> Iterator[str]:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:  # bad JSON or bad UTF-8
                    raise BadInput(f"{self.path} line {number} is not JSON") from None
                text = record.get("text") if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise BadInput(f'{self.path} line {number} has no field "text" holding a string')
                if text:
                    yield text


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file, the documents in its column `text`."""

    path: Path
    split: str | None = None

    def documents(self) -> Iterator[str]:
        try:
            file = pq.ParquetFile(self.path)
            if "text" not in file.schema_arrow.names:
                raise BadInput(f'{self.path} has no column "text"')
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if text is not None and not isinstance(text, str):
                        raise BadInput(f'the column "text" of {self.path} does not hold strings')
                    if text:
                        yield text
        except (OSError, ValueError) as error:  # pyarrow's own errors are of these two kinds
            raise BadInput(f"{self.path} is not a readable parquet file: {error}") from None


# --- upstream's shards --------------------------------------------------------------------------------------


def climbmix_url() -> str:
    """A mirror with the same file names may be named in the environment."""
    return os.environ.get("GLOVEBOX_CLIMBMIX_URL", CLIMBMIX_URL).rstrip("/")


def climbmix_origin(shards: int) -> str:
    return f"{climbmix_url()} training shards 0 to {shards - 1}, dev 6540, hold-out 6541, validation 6542"


def climbmix_corpus(downloads: Path, shards: int, workers: int) -> Corpus:
    if not 1 <= shards <= min(CLIMBMIX_HELD_BACK):
        raise BadInput(f"--shards must be between 1 and {min(CLIMBMIX_HELD_BACK)}")
    splits = {**dict.fromkeys(range(shards), "train"), **CLIMBMIX_HELD_BACK}
    names = {f"shard_{index:05d}.parquet": split for index, split in splits.items()}
    inputs = download_shards(climbmix_url(), list(names), downloads / "climbmix", workers)
    parts = [ParquetFile(downloads / "climbmix" / name, split) for name, split in names.items()]
    return Corpus("climbmix", climbmix_origin(shards), parts, inputs)
