"""Decode text files that a person wrote: UTF-8, with or without a byte order mark.

Uses only the standard library: the set-up scripts read `.env` with this before anything is installed.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NEWLINE = re.compile(rb"\r\n|\r|\n")


class Unreadable(Exception):
    """A file that cannot be read as text. The message names the file and, if known, the line."""


def read(path: Path) -> str:
    """The text of a regular file. Raises FileNotFoundError, Unreadable.

    Anything else is refused: opening a named pipe, for instance, would block until something writes to it.
    """
    try:
        content = _read_regular(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable(f"{path} is a broken link") from None
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
    return decode(content, path)


def _read_regular(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise Unreadable(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a text file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def is_text(name: str) -> bool:
    """False for a file name in another encoding: the engine takes only UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode(content: bytes, path: Path) -> str:
    """The text in `content`, without a byte order mark. Raises Unreadable."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable(f"{path} is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `utf-8-sig` counts positions from after the byte order mark.
        mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
        position = error.start + mark
        line = len(_NEWLINE.split(content[:position]))
        raise Unreadable(
            f"{path}, line {line}: the byte 0x{content[position]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
