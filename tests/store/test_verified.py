"""What `verify` said last can be read again, and a file that says anything else is no result."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from controller.core.state import ResearchState
from controller.store import verified

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert verified.read(tmp_path) is None
    verified.write(tmp_path, ["line 3\x1b[2J is damaged", "more"], ResearchState(seq=6, head="f" * 64), NOW)
    result = verified.read(tmp_path)
    assert result == verified.Verified("2026-03-01T12:00:00+00:00", 7, 0, 2, "line 3 is damaged", "f" * 64)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"at": "never"}', b"[" * 4096, b'{"at": 3}']
)
def test_what_is_no_result_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / verified.NAME).write_bytes(content)
    assert verified.read(tmp_path) is None
