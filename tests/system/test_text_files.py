"""What a person's text file may be: regular, UTF-8, with or without a mark; else a sentence with its line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from controller.system.text_files import Unreadable, decode, read


def test_a_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "program.md").write_bytes(b"\xef\xbb\xbf# T\xc3\xbc\r\n")
    assert read(tmp_path / "program.md") == "# Tü\r\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff", "program.md, line 1: the byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a\r\nb\rc\n\nd\xe4", "program.md, line 5: the byte 0xe4 is not UTF-8; save the file as UTF-8"),
        (b"\xef\xbb\xbf\n\xef\xbb", "program.md, line 2: the byte 0xef is not UTF-8; save the file as UTF-8"),
        ("a".encode("utf-16"), "program.md is UTF-16; save it as UTF-8"),
        (b"\xfe\xff\x00a", "program.md is UTF-16; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(content: bytes, sentence: str) -> None:
    with pytest.raises(Unreadable) as refused:
        decode(content, Path("program.md"))
    assert str(refused.value) == sentence


def test_a_socket_is_no_text_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(Unreadable, match="s cannot be read: "):
            read(tmp_path / "s")


def test_nothing_is_not_the_same_as_a_link_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a")
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(Unreadable, match="a is a broken link"):
        read(tmp_path / "a")
