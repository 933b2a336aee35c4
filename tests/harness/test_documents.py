"""What is a document, and what is not: one rule for every kind of file."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import documents
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents import BLANK_LINES, END_OF_TEXT, NO_SEPARATOR, BadInput, Tally, documents_of, kind_of

Write = Callable[[Path], object]


def read(path: Path, separator: str = END_OF_TEXT) -> tuple[list[str], Tally]:
    tally = Tally()
    kind = kind_of(path.name)
    assert kind is not None
    return list(documents_of(path, kind, separator, tally)), tally


def in_each_kind(folder: Path, texts: list[str | None]) -> list[Path]:
    """The same documents in a file of each kind that can hold null."""
    records = [json.dumps({"text": text}) for text in texts]
    contents = {
        "a.jsonl": "\n".join(records),
        "b.json": "[" + ",".join(records) + "]",
        "c.json": "\n".join(records),
        "d.JSONL": "\ufeff" + "\r\n".join(records) + "\r\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode())
        (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    return [folder / name for name in contents] + [folder / f"{name}.gz" for name in contents]


def test_json_of_every_kind_is_read_alike(tmp_path: Path) -> None:
    for path in in_each_kind(tmp_path, ["one", None, "", "zwei\nü", "\ud800", "\U0001f600"]):
        found, tally = read(path)
        assert found == ["one", "zwei\nü", "\U0001f600"], path
        assert (tally.documents, tally.empty, tally.halves, tally.long) == (3, 2, 1, 0)
        assert (tally.begun, tally.finished) == (1, 1)
        assert tally.first == f"{path} line {1 if path.name.startswith('b') else 2}"


def test_parquet_is_read_by_the_same_rule(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "", "zwei"]}), tmp_path / "a.PARQUET")
    found, tally = read(tmp_path / "a.PARQUET")
    assert found == ["one", "zwei"]
    assert (tally.documents, tally.empty, tally.first) == (2, 2, f"{tmp_path}/a.PARQUET row 2")


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        (END_OF_TEXT, ["a\n\nb", "c\n \t\nd"]),
        (BLANK_LINES, ["a", "b\n<|endoftext|>\n<|endoftext|>\nc", "d"]),
        ("b", ["a", "<|endoftext|>\n<|endoftext|>\nc\n \t\nd"]),
        (NO_SEPARATOR, ["a\n\nb\n<|endoftext|>\n<|endoftext|>\nc\n \t\nd\n"]),
    ],
)
def test_a_text_is_cut_at_its_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, expected: list[str]
) -> None:
    """Whatever the blocks are in which it is read."""
    content = "\ufeffa\r\n\r\nb\r\n<|endoftext|>\n<|endoftext|>\nc\n \t\nd\n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    for block in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(documents, "BLOCK_BYTES", block)
        for name in ("a.txt", "a.txt.gz"):
            found, _ = read(tmp_path / name, separator)
            assert [text.rstrip("\n") for text in found] == [text.rstrip("\n") for text in expected], block


def test_a_text_without_a_separator_keeps_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\na\n\n")
    assert read(tmp_path / "a.txt")[0] == ["\na\n\n"]


def test_a_long_document_is_cut_and_nothing_of_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_CHARS", 10)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 7)
    text = "0123456789" * 5 + "rest"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "b.txt").write_text(text)
    for name in ("a.jsonl", "b.txt"):
        found, tally = read(tmp_path / name)
        assert found == ["0123456789"] * 5 + ["rest"]
        assert tally.documents == 6


def test_a_file_without_a_document(tmp_path: Path) -> None:
    for name, empty in (("a.txt", 1), ("b.jsonl", 0), ("c.json", 0), ("d.json", 0)):
        (tmp_path / name).write_text("[ ]" if name == "d.json" else "")
        assert (*read(tmp_path / name)[0], read(tmp_path / name)[1].empty) == (empty,)


def test_a_json_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number} é" * number for number in range(40)]
    for path in in_each_kind(tmp_path, [*texts]):
        for block in (1, 5, 64, 1000):
            monkeypatch.setattr(documents, "BLOCK_BYTES", block)
            assert read(path)[0] == texts[1:]


def parquet_of(column: pa.Array) -> Write:
    return lambda path: pq.write_table(pa.table({"text": column}), path)


def not_utf8() -> pa.Array:
    return pa.array([b"good", b"caf\xe9"]).cast(pa.string(), safe=False)


GZ = gzip.compress(
    b'{"text": "' + bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"") * 90 + b'"}\n'
)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"one\ncaf\xe9", "a.txt line 2 is not UTF-8"),
        ("a.txt", "text".encode("utf-16"), "a.txt line 1 is not UTF-8 text: convert it if it is UTF-16"),
        ("a.txt", b"one\n\xed\xa0\x80", "a.txt line 2 is not UTF-8"),
        ("a.txt", b"one\ncut off \xe2\x82", "a.txt line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}', "a.jsonl line 2 is not UTF-8"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "a.jsonl line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "y"', "a.jsonl line 3 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\0\0\0', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1 is not JSON"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "a.jsonl line 1 is not JSON"),
        ("a.jsonl", b'{"text": 7}', 'line 1 has no field "text" holding a string'),
        ("a.jsonl", b'{"text": ["x"]}', 'line 1 has no field "text" holding a string'),
        ("a.jsonl", b'{"body": "x"}', 'line 1 has no field "text" holding a string'),
        ("a.jsonl", b'"x"', 'line 1 has no field "text" holding a string'),
        ("a.json", b'[{"text": "x"},\n{"text": 7}]', 'a.json line 2 has no field "text"'),
        ("a.json", b'[{"text": "x"},\n\n{"text": "y"}', "a.json line 3 is not JSON"),
        ("a.json", b'[{"text": "x"},]', "a.json line 1 is not JSON"),
        ("a.json", b'[{"text": "x"} {"text": "y"}]', "a.json line 1 is not JSON"),
        ("a.json", b'[{"text": "x"}]\nmore', "a.json line 2 is not JSON"),
        ("a.json", b'{"text": "x"}\n{"text": "caf\xe9"}', "a.json line 2 is not UTF-8"),
        ("a.json", b"[" * 100_000, "a.json line 1 is not JSON"),
        ("a.json.gz", b"not gzip", "a.json.gz is damaged"),
        ("a.jsonl.gz", GZ[:-40], "a.jsonl.gz is damaged"),
        ("a.txt.gz", GZ[:60] + b"\0\1\2\3" + GZ[64:], "a.txt.gz is damaged"),
        ("a.parquet", b"PAR1", "a.parquet is not a readable parquet file"),
        ("a.parquet", parquet_of(pa.array([1, 2])), 'the column "text" of'),
        ("a.parquet", parquet_of(pa.array([["x"]])), 'the column "text" of'),
        ("a.parquet", parquet_of(not_utf8()), "a.parquet row 2 is not UTF-8"),
    ],
)
def test_what_a_file_is_not_is_said_with_its_place(
    tmp_path: Path, name: str, content: bytes | Write, sentence: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(BadInput) as refusal:
        read(path)
    assert sentence in str(refusal.value)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_parquet_may_have_any_name(tmp_path: Path) -> None:
    """Found by the fuzzer: to pyarrow a name is UTF-8."""
    path = tmp_path / "\udcff.parquet"
    with path.open("wb") as file:
        pq.write_table(pa.table({"text": ["one"]}), file)
    assert read(path)[0] == ["one"]


def test_a_record_that_is_too_long_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "RECORD_BYTES", 100)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 30)
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text('{"text": "x"}\n{"text": "' + "x" * 1000 + '"}')
        with pytest.raises(BadInput, match=f"{name} line 2 holds more than"):
            read(tmp_path / name)


def test_a_name_of_any_bytes_is_one_line_of_text() -> None:
    assert documents.shown("a\n\x1b[2Jé\udcff\u202e.txt") == "a\\n\\x1b[2Jé\\xff\\u202e.txt"
