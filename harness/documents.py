"""Extracts documents from the files of a corpus, with the same rules for .txt, .jsonl, .json and .parquet.

Text is UTF-8; a leading byte order mark is dropped. The rules:

- documents without text are skipped and counted: empty or null ones, and those with half of a surrogate pair,
  which JSON can express and UTF-8 cannot;
- a file that does not match its suffix ends the preparation with one sentence that gives the place: bytes
that
  are not UTF-8, a line that is not JSON, a record without a string called `text`, a damaged archive. Skipping
  those could mean training on a random remainder of a corpus in another encoding;
- a document longer than DOCUMENT_CHARS is cut into documents of that length, which bounds memory use and lets
a
  single long text serve as a corpus.

A .txt is also split at a separator; each piece is a document. Reading is lazy: at most one block, line or row
group of a file is in memory.
"""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENT_CHARS = 1_000_000
BLOCK_BYTES = 1 << 20
RECORD_BYTES = 1 << 28  # the longest line of a .jsonl or value in a .json
PARQUET_ROWS = 128  # read at a time

END_OF_TEXT = "<|endoftext|>"
BLANK_LINES = "blank-lines"  # as a separator
NO_SEPARATOR = "none"

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n)++")
_SPACE = re.compile(r"[ \t\r\n]*")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class BadInput(Exception):
    """The user's request cannot be fulfilled; the message is one sentence for them."""


def shown(name: object) -> str:
    """A file name, whatever its bytes, as printable text."""
    text = os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass
class Tally:
    """Counts of what was read; tallies can be added."""

    begun: int = 0
    """Files from which something was read."""
    finished: int = 0
    """Files that were read to the end."""
    documents: int = 0
    empty: int = 0
    """Documents that are empty or null."""
    halves: int = 0
    """Documents with half of a surrogate pair."""
    long: int = 0
    """Documents that were longer than DOCUMENT_CHARS."""
    first: str = ""
    """Where the first skipped document was."""
    of_file: int = 0
    """Documents of the current file."""

    def begin(self) -> None:
        """A new file is opened."""
        self.begun += 1
        self.of_file = 0

    def take_back(self) -> None:
        """The last document read is not used."""
        self.documents -= 1
        self.of_file -= 1
        self.begun -= not self.of_file

    def __add__(self, other: "Tally") -> "Tally":
        numbers = {key: value + vars(other)[key] for key, value in vars(self).items() if key != "first"}
        return Tally(**numbers, first=self.first or other.first)

    def accept(self, text: str | None, place: str) -> Iterator[str]:
        """The documents in a text: none, itself, or the pieces of a long one."""
        if not text:
            self.empty += 1
        elif _has_half_a_pair(text):
            self.halves += 1
        else:
            self.long += len(text) > DOCUMENT_CHARS
            for start in range(0, len(text), DOCUMENT_CHARS):
                self.documents += 1
                self.of_file += 1
                yield text[start : start + DOCUMENT_CHARS]
            return
        self.first = self.first or place


def _has_half_a_pair(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


KINDS = (".parquet", ".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
"""Suffixes of text files, in lower case."""


def kind_of(name: str) -> str | None:
    """The suffix in KINDS that a file name has, if any."""
    return next((kind for kind in KINDS if name.lower().endswith(kind)), None)


def documents_of(path: Path, kind: str, separator: str, tally: Tally) -> Iterator[str]:
    """The documents of a file, in order. Raises BadInput."""
    name = shown(path)
    tally.begin()
    try:
        with _open(path, kind) as file:  # opened by Python: pyarrow requires UTF-8 names
            if kind == ".parquet":
                yield from _parquet(file, name, tally)
            else:
                yield from _text(file, name, kind.removesuffix(".gz"), separator, tally)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{name} is damaged: {error}") from None
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror or error}") from None
    tally.finished += 1


def _open(path: Path, kind: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if kind.endswith(".gz") else path.open("rb")


def _text(file: BinaryIO, name: str, kind: str, separator: str, tally: Tally) -> Iterator[str]:
    if kind == ".txt":
        yield from _passages(_decoded(file, name), name, separator, tally)
        return
    records = _json_lines(file, name) if kind == ".jsonl" else _json_values(_decoded(file, name), name)
    for line, record in records:
        place = f"{name} line {line}"
        text = record.get("text", ...) if isinstance(record, dict) else ...
        if text is not None and not isinstance(text, str):
            raise BadInput(f'{place} has no field "text" holding a string')
        yield from tally.accept(text, place)


# --- text ---------------------------------------------------------------------------------------------------


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a file, block by block, with universal newlines."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    line, start = 1, b""
    while True:
        block = file.read(BLOCK_BYTES)
        start = start or block[:2]
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, line + error.object.count(b"\n", 0, error.start), start) from None
        if not block:
            return
        line += block.count(b"\n")


def _not_utf8(name: str, line: int, start: bytes) -> BadInput:
    found = "UTF-16" if start.startswith(_UTF16) else "in another encoding"
    return BadInput(f"{name} line {line} is not UTF-8 text: convert it if it is {found}")


def _passages(blocks: Iterator[str], name: str, separator: str, tally: Tally) -> Iterator[str]:
    """The pieces between separators, without adjacent newlines. A text without separators is one document."""
    rest, parted, begins = "", False, False
    for block in blocks:
        rest += block
        *whole, rest = _split(rest, separator)
        for between in whole:
            passage = (between.lstrip("\n") if begins else between).rstrip("\n")
            parted = begins = True
            if passage:  # consecutive separators have no document between them
                yield from tally.accept(passage, name)
        if begins:
            rest = rest.lstrip("\n")
            begins = not rest
        while len(rest) > 2 * DOCUMENT_CHARS:
            yield from tally.accept(rest[:DOCUMENT_CHARS], name)
            rest = rest[DOCUMENT_CHARS:]
    if rest or not parted:
        yield from tally.accept(rest, name)


def _split(text: str, separator: str) -> list[str]:
    if separator == BLANK_LINES:
        return _BLANK_LINES.split(text)
    return [text] if separator == NO_SEPARATOR else text.split(separator)


# --- JSON ---------------------------------------------------------------------------------------------------


def _json_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is not blank."""
    line = 0
    while content := file.readline(RECORD_BYTES):
        line += 1
        if len(content) == RECORD_BYTES:
            raise _too_long(name, line)
        try:
            text = content.decode().removeprefix("\ufeff").strip()
            if text:
                yield line, json.loads(text)
        except UnicodeDecodeError:
            raise _not_utf8(name, line, content) from None
        except (ValueError, RecursionError):
            raise BadInput(f"{name} line {line} is not JSON") from None


def _json_values(blocks: Iterator[str], name: str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each value: the elements of an array, or concatenated values."""
    text = _Ahead(blocks, name)
    if not text.take("["):
        while not text.at_end:
            yield text.value()
        return
    more = not text.take("]")
    while more:
        yield text.value()
        more = text.take(",")
        if not more and not text.take("]"):
            raise text.wrong()
    if not text.at_end:
        raise text.wrong()


class _Ahead:
    """A JSON text that is buffered only as far as the current value needs."""

    def __init__(self, blocks: Iterator[str], name: str) -> None:
        self._blocks, self._name = blocks, name
        self._text, self._at = "", 0
        self.line = 1
        self._decoder = json.JSONDecoder()

    @property
    def at_end(self) -> bool:
        """True if only white space is left; otherwise the next value begins at `line`."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._text):
                return False
            if not self._more():
                return True

    def take(self, mark: str) -> bool:
        """Consume the character `mark` if it comes next."""
        if self.at_end or self._text[self._at] != mark:
            return False
        self._advance(self._at + 1)
        return True

    def value(self) -> tuple[int, Any]:
        """(line number, value) of the next value."""
        if self.at_end:
            raise self.wrong()
        line = self.line
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if len(self._text) - self._at > RECORD_BYTES:
                    raise _too_long(self._name, self.line) from None
                if not self._more():
                    raise self.wrong() from None
            except RecursionError:
                raise self.wrong() from None
            else:
                self._advance(end)
                return line, value

    def wrong(self) -> BadInput:
        return BadInput(f"{self._name} line {self.line} is not JSON")

    def _advance(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """At least double the buffer; False at the end of the text."""
        parts = [self._text[self._at :]]
        wanted = max(len(parts[0]), 1)
        for block in self._blocks:
            parts.append(block)
            wanted -= len(block)
            if wanted <= 0:
                break
        self._text, self._at = "".join(parts), 0
        return len(parts[0]) < len(self._text)


def _too_long(name: str, line: int) -> BadInput:
    return BadInput(f"{name} line {line} holds more than {RECORD_BYTES >> 20} MiB in one record")


# --- parquet ------------------------------------------------------------------------------------------------


def _parquet(opened: BinaryIO, name: str, tally: Tally) -> Iterator[str]:
    """The column `text`. Raises BadInput."""
    row = 1
    try:
        file = pq.ParquetFile(opened)
        if "text" not in file.schema_arrow.names:
            raise BadInput(f'{name} has no column "text"')
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=["text"]):
            for text in _values(batch.column(0), name, row):
                if text is not None and not isinstance(text, str):
                    raise BadInput(f'the column "text" of {name} does not hold strings')
                yield from tally.accept(text, f"{name} row {row}")
                row += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise BadInput(f"{name} is not a readable parquet file: {shown(reason)}") from None


def _values(column: Any, name: str, row: int) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        pass
    for number, value in enumerate(column, row):
        try:
            value.as_py()
        except UnicodeDecodeError:
            raise BadInput(f"{name} row {number} is not UTF-8 text") from None
    raise BadInput(f"{name} is not UTF-8 text")
