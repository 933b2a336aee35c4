"""`replay:DIR`: proposes the Python files of a folder, in the order of their names.

Use it for tests, to import an existing history, or to reproduce a run.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from controller.core.errors import AgentExhausted, UserError
from controller.core.experiment import Experiment
from controller.core.program.source import decode, parse
from controller.core.values import Change
from controller.ports import Context


class Replay:
    """An `Agent` that proposes files. They are read once, at construction.

    Raises UserError if the folder is missing or holds no `*.py`, or if one of them cannot be read as text.
    """

    name = "replay"
    asks_ahead = False

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"replay:{folder} is not a folder; name one that holds train.py files")
        paths = sorted(path for path in folder.glob("*.py") if path.is_file())
        if not paths:
            raise UserError(f"replay:{folder} holds no *.py file to propose")
        self._folder = folder
        self._files = [(path.name, _read(path)) for path in paths]
        self._done: set[str] = set()
        self._known = 0
        """How many experiments of the history are in `_done`."""

    def propose(self, context: Context) -> Change:
        """The next file that no experiment has run yet. Raises AgentExhausted if there is none left."""
        self._done |= {experiment.proposal.train_sha256 for experiment in context.history[self._known :]}
        self._known = len(context.history)
        while self._files:
            name, train_py = self._files.pop(0)
            if hashlib.sha256(train_py.encode()).hexdigest() not in self._done:
                return Change(
                    train_py=train_py,
                    description=f"{name}: {title}" if (title := _title(train_py)) else name,
                    hypothesis=f"{name} is the next file of the replayed folder.",
                )
        raise AgentExhausted(f"every file of {self._folder} has been proposed")

    def combine(self, context: Context, behind: Experiment) -> None:
        """Its ideas are files, and none of them is made of two."""
        return None

    def fix(self, context: Context, crashed: Experiment) -> None:
        """Never: a replay runs its files as they are."""
        return None


def _read(path: Path) -> str:
    try:
        return decode(path.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{path} cannot be run: {error.msg}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _title(train_py: str) -> str:
    """First line of the module's docstring, or an empty string."""
    try:
        docstring = ast.get_docstring(parse(train_py))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return docstring.strip().split("\n")[0] if docstring and docstring.strip() else ""
