"""Decode train.py as the interpreter does. Pure.

The result can be treated as plain UTF-8: no byte order mark, newlines only, no declaration of another
encoding. It is the same program: the interpreter does the same before it reads the first token.
"""

from __future__ import annotations

import ast
import codecs
import re
import warnings

_NEWLINE = re.compile("\r\n?")
#: PEP 263, as the interpreter looks for it: in a comment alone on the first or second line.
_DECLARATION = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)
_NO_STATEMENT = re.compile(r"[ \t\f]*(?:#.*)?")
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


def decode(content: bytes) -> str:
    """The program's text. Raises SyntaxError, with one sentence, where the interpreter would."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SyntaxError("the file is UTF-16; save it as UTF-8")
    encoding = _encoding(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some codecs warn about their input
            text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if _passed_over(content):
            return plain_text(content.decode(encoding, "replace"))
        line = _NEWLINE.sub("\n", content[: error.start].decode("latin-1")).count("\n") + 1
        raise SyntaxError(
            f"line {line}: the byte 0x{content[error.start]:02x} is not {encoding}; save the file as UTF-8"
        ) from None
    except (LookupError, ValueError) as error:
        raise SyntaxError(f"it declares the encoding {encoding}, which cannot be read: {error}") from None
    return plain_text(text)


def _passed_over(content: bytes) -> bool:
    """Whether the undecodable bytes are all in comments, and the file is marked or declared as UTF-8.

    The interpreter ignores them there; without a mark or a declaration it refuses them anywhere.
    """
    said = content.startswith(codecs.BOM_UTF8) or _declared(_as_lines(content)) is not None
    try:
        return said and bool(_parse(content))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def parse(text: str) -> ast.Module:
    """The program as a tree. Raises SyntaxError, ValueError, RecursionError, MemoryError."""
    return _parse(plain_text(text).encode("utf-8"))


def _parse(content: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in strings do not matter here
        return ast.parse(content, "train.py")


def plain_text(text: str) -> str:
    """The same program, declared as UTF-8 and with newlines alone. Idempotent."""
    text = _NEWLINE.sub("\n", text.lstrip(_MARK))
    found = _declared(text)
    if found is None or _usual_name(text[found]) == "utf-8":
        return text
    return f"{text[: found.start]}utf-8{text[found.stop :]}"


def _encoding(content: bytes) -> str:
    """The encoding with which the interpreter reads `content`."""
    marked = content.startswith(codecs.BOM_UTF8)
    text = _as_lines(content)
    found = _declared(text)
    encoding = "utf-8" if found is None else _usual_name(text[found])
    if marked and encoding != "utf-8":
        raise SyntaxError(f"it begins with UTF-8's byte order mark and declares {encoding}; declare utf-8")
    return encoding


def _as_lines(content: bytes) -> str:
    """Text in which to look for a declaration, whatever the encoding."""
    return _NEWLINE.sub("\n", content.removeprefix(codecs.BOM_UTF8).decode("latin-1"))


def _declared(text: str) -> slice | None:
    """Where the first two lines declare an encoding, if they do."""
    first = text.partition("\n")[0]
    if (match := _DECLARATION.match(first)) is not None:
        return slice(*match.span(1))
    if len(first) < len(text) and _NO_STATEMENT.fullmatch(first):
        start = len(first) + 1
        if (match := _DECLARATION.match(text[start:].partition("\n")[0])) is not None:
            return slice(start + match.start(1), start + match.end(1))
    return None


def _usual_name(name: str) -> str:
    """The encoding's name as normalised by the interpreter's tokenizer."""
    short = name[:12].lower().replace("_", "-")
    if short == "utf-8" or short.startswith("utf-8-"):
        return "utf-8"
    latin = ("latin-1", "iso-8859-1", "iso-latin-1")
    return "iso-8859-1" if short in latin or short.startswith(tuple(f"{n}-" for n in latin)) else name
