"""`.env`, read in one place for the `glovebox` command and the make targets, so that both agree.

    python3 -m controller.system.dotenv NAME...    assignments of those that are set
    python3 -m controller.system.dotenv --service  what the service's containers get

Whatever it accepts, python-dotenv reads the same way; syntax that tools disagree about (a dollar, an escape,
a multi-line value) is an error with its line number, not a guess. Other programs' variables are ignored. Uses
only the standard library, from Python 3.8 on: the scripts run it with the system's Python.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from re import Match

from controller.system.text_files import Unreadable
from controller.system.text_files import read as read_text

FILE = Path(".env")
USAGE = 2  # exit status: usage or configuration

_OURS = ("GLOVEBOX_", "ANTHROPIC_")
_SECRETS = ("ANTHROPIC_API_KEY", "GLOVEBOX_ANTHROPIC_API_KEY_FILE")
"""Containers get the key as a separate file."""
_PATHS = (
    "GLOVEBOX_HOME",
    "GLOVEBOX_WHEELS",
    "GLOVEBOX_CA_BUNDLE",
    "GLOVEBOX_LOCK",
    "GLOVEBOX_ANTHROPIC_API_KEY_FILE",
)
_FOLDER_OR_WORD = ("GLOVEBOX_CORPUS",)

_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*)", re.DOTALL)
_FILLED_IN = re.compile(r"\$[A-Za-z_{(]")
_QUOTED = {
    "'": re.compile(r"'([^']*)'"),
    '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL),
}
_REST = re.compile(r"[ \t]*(?:#.*)?")


class _Wrong(Exception):
    """A line is invalid; the message says why."""


def read(path: Path = FILE) -> dict[str, str]:
    """Our variables in a `.env`, names in upper case, the last value of each; empty if there is no file.

    Raises Unreadable with a sentence that names the file and the line.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return {}
    found: dict[str, str] = {}
    lines = enumerate(re.split("\r\n|\r|\n", text), start=1)
    for number, line in lines:
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        try:
            name, written = _split(line)
            if name.upper().startswith(_OURS):
                found[name.upper()] = _value(written)
            else:
                _pass_over(written, (following for _, following in lines))
        except _Wrong as wrong:
            raise Unreadable(f"{path}, line {number}: {wrong}") from None
    return found


def _split(line: str) -> tuple[str, str]:
    match = _ASSIGNMENT.fullmatch(line)
    if match is None:
        raise _Wrong("this is neither NAME=value nor a comment; correct or remove it")
    return match[1], match[2]


def _value(written: str) -> str:
    if written[:1] in _QUOTED:
        return _printable(_quoted(written))
    if written.startswith("#"):
        return ""
    value = re.split(r"[ \t]+#", written, maxsplit=1)[0].rstrip(" \t")
    return _printable(_as_written(value))


def _quoted(written: str) -> str:
    mark = written[0]
    match = _QUOTED[mark].match(written)
    if match is None:
        raise _Wrong(f"the value begins with {mark} and does not end with it; close the quote on this line")
    if _REST.fullmatch(written, match.end()) is None:
        raise _Wrong("there is text after the closing quote; remove it or quote the whole value")
    if mark == '"':
        return re.sub(r"\\(.)", _unescaped, _as_written(match[1]))
    if "\\\\" in match[1] or match[1].endswith("\\"):
        raise _Wrong(
            "a backslash before a quote or another backslash has no single meaning here; use double quotes"
        )
    return match[1]


def _unescaped(match: Match[str]) -> str:
    if match[1] not in ('"', "\\"):
        raise _Wrong(f'in double quotes only \\" and \\\\ are allowed, not \\{match[1]}; use single quotes')
    return match[1]


def _as_written(value: str) -> str:
    if _FILLED_IN.search(value):
        raise _Wrong("variables are not expanded; write the value out, or put it in single quotes")
    return value


def _printable(value: str) -> str:
    for character in value:
        if not character.isprintable():
            raise _Wrong(f"the value contains the invisible character U+{ord(character):04X}; remove it")
    return value


def _pass_over(written: str, following: Iterator[str]) -> None:
    """Skip the value of another program's variable; a quoted one may span lines."""
    mark = written[:1]
    if mark in _QUOTED:
        while _QUOTED[mark].match(written) is None:
            try:
                written += "\n" + next(following)
            except StopIteration:
                raise _Wrong(
                    f"the value begins with {mark}, which is never closed; close the quote"
                ) from None


def full_path(value: str) -> str:
    """A path with `~` expanded. Raises ValueError for an unknown user."""
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise ValueError(f"no home folder is known for {value.split('/', maxsplit=1)[0]}")
    return path


def lookup(name: str, told: dict[str, str]) -> str | None:
    """The value from the environment, else from .env (`told`); an empty value counts as unset."""
    environment = {known.upper(): value for known, value in os.environ.items() if value}
    value = environment.get(name) or told.get(name)
    if value and name in (*_PATHS, *_FOLDER_OR_WORD):
        value = full_path(value)
    return os.path.abspath(value) if value and name in _PATHS else value


def line(name: str, value: str) -> str:
    """A `.env` line that this reader reads back as `value`."""
    if "'" in value or "\\\\" in value or value.endswith("\\"):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{name}="{escaped}"\n'
    return f"{name}='{value}'\n"


def _answer(arguments: list[str]) -> str:
    told = read()
    if arguments == ["--service"]:
        return "".join(line(name, value) for name, value in told.items() if name not in _SECRETS)
    values = {name: lookup(name, told) for name in arguments}
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items() if value)


def main() -> int:
    """Print the variables asked for, or one sentence about what is wrong."""
    try:
        answer = _answer(sys.argv[1:])
    except (Unreadable, ValueError) as error:
        sys.stderr.buffer.write(f"glovebox: {error}.\n".encode("utf-8", "backslashreplace"))
        return USAGE
    sys.stdout.buffer.write(answer.encode("utf-8", "surrogateescape"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
