"""Folders of texts as people have them, and worse: hypothesis strategies, and how they are written."""

import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Write = Callable[[Path], object]


@dataclass(frozen=True)
class Entry:
    """One thing in a folder."""

    name: str
    """What its name ends with."""
    write: Write
    read: bool
    """True if it is of a kind that is read."""

    def __repr__(self) -> str:  # what hypothesis prints of a failure
        return f"Entry({self.name!r}, {self.write})"


@dataclass(frozen=True)
class Bytes:
    """A file with this content."""

    content: bytes

    def __call__(self, path: Path) -> None:
        path.write_bytes(self.content)


@dataclass(frozen=True)
class Repeated:
    """A file with one document, much too long to be printed: `unit` again and again."""

    unit: str
    times: int

    def __call__(self, path: Path) -> None:
        text = self.unit * self.times
        json_text = json.dumps({"text": text}, ensure_ascii=False)
        path.write_text(json_text if ".json" in path.name.lower() else text, encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """A parquet file with this column."""

    name: str
    values: tuple[Any, ...]
    type: str
    rows_in_group: int

    def __call__(self, path: Path) -> None:
        types = {
            "string": pa.string(),
            "large": pa.large_string(),
            "binary": pa.binary(),
            "int": pa.int64(),
            "list": pa.list_(pa.string()),
            "null": pa.null(),
            "dictionary": pa.dictionary(pa.int32(), pa.string()),
        }
        table = pa.table({self.name: pa.array(self.values, types[self.type]), "n": [1] * len(self.values)})
        with path.open("wb") as file:  # the name may be of any bytes
            pq.write_table(table, file, row_group_size=self.rows_in_group)


@dataclass(frozen=True)
class Damaged:
    """What `write` writes, cut off or with bytes changed."""

    write: Write
    cut: float
    flips: tuple[float, ...]

    def __call__(self, path: Path) -> None:
        self.write(path)
        content = bytearray(path.read_bytes())
        for place in self.flips:
            if content:
                content[int(place * (len(content) - 1))] ^= 0x55
        path.write_bytes(content[: int(self.cut * len(content))])


@dataclass(frozen=True)
class Link:
    target: str

    def __call__(self, path: Path) -> None:
        path.symlink_to(self.target)


@dataclass(frozen=True)
class Closed:
    """A file that nobody may read."""

    write: Write

    def __call__(self, path: Path) -> None:
        self.write(path)
        path.chmod(0)


def pages(seed: int, characters: int) -> list[str]:
    """Documents of a few hundred characters."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghijklmnopé", k=source.randint(1, 9))) for _ in range(300)]
    return [" ".join(source.choices(words, k=60)) for _ in range(characters // 350)]


odd_text = st.text(st.characters(), max_size=40)  # half of surrogate pairs included
text = st.text(st.characters(codec="utf-8"), max_size=200)
document = st.one_of(text, text, text, odd_text, st.none(), st.just(""))
wrong = st.one_of(
    st.integers(), st.booleans(), st.lists(text, max_size=2), st.dictionaries(text, text, max_size=1)
)
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1")
LINE_ENDS = ("\n", "\n", "\r\n", "\n\n", "\r")


@st.composite
def records(draw: st.DrawFn) -> list[str]:
    """JSON values, most of them with a text."""
    found = [{"text": one, "id": 1} for one in draw(st.lists(document, max_size=6))]
    odd = st.one_of(
        st.builds(lambda one: json.dumps({"text": one}), wrong),
        st.builds(lambda one: json.dumps({"body": one}), text),
        st.builds(json.dumps, wrong),
        st.sampled_from(
            ["{", '{"text": "a"', "[" * 5000, "NaN", '{"text": "a", "text": null}', "\0", "//", ","]
        ),
    )
    return [json.dumps(one, ensure_ascii=draw(st.booleans())) for one in found] + draw(
        st.one_of(st.just([]), st.just([]), st.lists(odd, max_size=1))
    )


@st.composite
def contents(draw: st.DrawFn, kind: str) -> bytes:
    line_end, encoding = draw(st.sampled_from(LINE_ENDS)), draw(st.sampled_from(ENCODINGS))
    if kind.startswith(".json"):
        values = draw(records())
        array = kind.startswith(".json") and not kind.startswith(".jsonl") and draw(st.booleans())
        whole = "[" + ("," + line_end).join(values) + "]" if array else line_end.join(values)
    else:
        separator = draw(st.sampled_from(["<|endoftext|>", "\n\n", "\n \n", " "]))
        whole = separator.join(draw(st.lists(text, max_size=6)))
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    content = whole.encode(encoding, errors)
    return (
        gzip.compress(content)
        if kind.endswith(".gz") and draw(st.sampled_from([True] * 9 + [False]))
        else content
    )


tables = st.one_of(
    st.builds(
        Table,
        name=st.sampled_from(["text"] * 9 + ["body"]),
        values=st.lists(st.one_of(text, st.none()), max_size=8).map(tuple),
        type=st.sampled_from(["string", "large", "dictionary"]),
        rows_in_group=st.integers(1, 4),
    ),
    st.builds(Table, st.just("text"), st.just((1, None)), st.just("int"), st.just(2)),
    st.builds(Table, st.just("text"), st.just((["a"], None)), st.just("list"), st.just(2)),
    st.builds(Table, st.just("text"), st.just((None, None)), st.just("null"), st.just(2)),
    st.builds(Table, st.just("text"), st.just((b"caf\xe9", b"a")), st.just("binary"), st.just(2)),
)


def in_any_case(kind: str) -> st.SearchStrategy[str]:
    return st.sampled_from([kind, kind, kind.upper(), kind.title()])


@st.composite
def files(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from([".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet"]))
    write: Write = draw(tables) if kind == ".parquet" else Bytes(draw(contents(kind)))
    fate = draw(st.sampled_from(["whole"] * 12 + ["damaged", "damaged", "closed"]))
    if fate == "damaged":
        fractions = st.floats(0, 1)
        write = Damaged(write, draw(fractions), tuple(draw(st.lists(fractions, max_size=3))))
    if fate == "closed":
        write = Closed(write)
    return Entry(draw(in_any_case(kind)), write, True)


long_ones = st.builds(
    Entry,
    st.sampled_from([".txt", ".jsonl", ".json"]),
    st.builds(
        Repeated,
        st.sampled_from(
            [" ", "a", "1", "!", "\n", "\t", "é", "\u0301", "\U0001f600", "字", "\0", "\u2028", "_-", " \n"]
        ),
        st.sampled_from([1000, 65_536, 65_537, 200_000, 1_000_001]),
    ),
    st.just(True),
)

others = st.sampled_from(
    [
        Entry(".md", Bytes(b"# Not read"), False),
        Entry("", Bytes(b""), False),
        Entry(".zst", Bytes(b"\x28\xb5\x2f\xfd"), False),
        Entry(".parquet.gz", Bytes(b""), False),
        Entry(".txt", os.mkfifo, False),
        Entry(".jsonl", Link("/nowhere/at/all"), False),
        Entry(".txt", Link("/proc/self/mem/x"), False),
        Entry(".loop", Link("."), False),
        Entry(".up", Link(".."), False),
    ]
)

names = st.one_of(
    st.sampled_from(
        ["a", "b c", "-x", "--out=y", "é", "\u202egnp", "line\nend", "\udcff\udcfe", "'\"`$(x)", "*"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
        lambda name: not name.startswith(".")
    ),
)
places = st.sampled_from(["", "", "", "deep/", "deep/er/", "A.txt/"])


@dataclass(frozen=True)
class Corpus:
    """What is in a folder, besides as much ordinary text as a preparation needs."""

    entries: tuple[tuple[str, Entry], ...]
    """(path in the folder without its end, what it is)"""
    plenty: int
    """Characters of ordinary text."""
    plenty_kind: str
    hidden: bool

    def write(self, folder: Path) -> tuple[int, int]:
        """Make the folder; returns how many files are to be read, and how many names are not."""
        read = left_out = 0
        folder.mkdir()
        for number, (place, entry) in enumerate(self.entries):
            path = folder / f"{place}{number}{entry.name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            entry.write(path)
            read, left_out = read + entry.read, left_out + (not entry.read)
        if self.plenty:
            texts = pages(1, self.plenty)
            if self.plenty_kind == ".jsonl":
                content = "\n".join(json.dumps({"text": one}) for one in texts)
            else:
                content = "<|endoftext|>".join(texts)
            (folder / f"plenty{self.plenty_kind}").write_text(content, encoding="utf-8")
            read += 1
        if self.hidden:
            (folder / ".hidden").mkdir()
            (folder / ".hidden" / "x.txt").write_text("not read")
            left_out += 1
        return read, left_out


folders = st.builds(
    Corpus,
    entries=st.lists(
        st.tuples(
            st.builds(lambda place, name: place + name, places, names),
            st.one_of(files(), files(), files(), long_ones, others),
        ),
        max_size=5,
    ).map(tuple),
    plenty=st.sampled_from([0, 120_000, 120_000, 900_000]),
    plenty_kind=st.sampled_from([".jsonl", ".txt"]),
    hidden=st.booleans(),
)
