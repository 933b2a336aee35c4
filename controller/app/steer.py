"""A person's requests to an effort: checked as far as they can be here, and put down for the controller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.app.home import read_standing, require_effort
from controller.app.run import read_train
from controller.core.errors import UserError
from controller.core.events import Verb
from controller.core.steering_request import limit_value, objection, slots_of
from controller.store import requests
from controller.store.lock import home_in_use
from controller.store.pause import who


def instruct(home: Path, text: str, reason: str) -> None:
    """Tell the agent something with its next question. Raises UserError."""
    ask(home, "instruct", reason, text=text)


def queue(home: Path, file: Path, description: str, reason: str) -> None:
    """Put a train.py in the queue. Raises UserError if it could not be run."""
    require_effort(home)
    ask(
        home,
        "queue",
        reason,
        train_py=read_train(file),
        text=description or f"{file.name}, queued by {who()}",
    )


def limit(home: Path, given: Mapping[str, str | None], reason: str) -> None:
    """Change limits; `given` by name, as the person wrote them. Raises UserError."""
    ask(home, "limit", reason, limits={name: limit_value(name, text) for name, text in given.items() if text})


def ask(home: Path, verb: Verb, reason: str, **fields: Any) -> None:
    """Put a request down, unless it is plain that it would be refused, and say what happens next.

    Raises UserError.
    """
    require_effort(home)
    request = requests.made(verb, who(), reason=reason, **fields)
    state, _ = read_standing(home)
    because = objection(state, request, slots_of(state))
    if because is not None:
        raise UserError(because)
    requests.submit(home, request)
    print("Asked." if home_in_use(home) else "No controller is at work; the next one will hear of it.")
