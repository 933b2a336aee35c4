"""One experiment: its whole story in order, what it changed, what it printed, and what exactly ran."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from controller.core.errors import UserError, VerificationFailed
from controller.core.events import ApiAnswered, ApiRequested, ExperimentOpened, ProposalMade, Record
from controller.core.experiment import Experiment
from controller.core.keeps import keeps_of
from controller.core.scoring.curve import POINTS, thinned
from controller.core.untrusted import clean_text
from controller.core.values import Curve, Provenance
from controller.store.journal import read_blob
from controller.store.runs import Runs
from controller.views import audit, curves
from controller.views.facts import TEXT_LIMIT
from controller.views.tables import detail_lines, log_gone
from controller.web import steering
from controller.web.follower import Standing

SKETCH = "training loss"
"""Among the details, a line of bars; a chart says it better."""
_SHOWN = 8
"""Lines of one event that are shown at once."""
_MOST_SAID = 6000
_GONE = "This text is not in the home."
Context = dict[str, Any]


class Unknown(UserError):
    """There is no such experiment, or no such text of it."""


@dataclass(frozen=True)
class Line:
    """A line of a unified diff."""

    kind: str
    """`add`, `delete`, `hunk`, `file` or `same`."""
    text: str


def find(standing: Standing, number: int) -> Experiment:
    """Raises Unknown, VerificationFailed if the journal is damaged there."""
    if not 0 <= number < len(standing.rows):
        raise Unknown(f"There is no experiment {number}.")
    return standing.state.experiments[number]


def context(standing: Standing, number: int) -> Context:
    """For the template `experiment.html`. Raises Unknown, VerificationFailed."""
    experiment, state = find(standing, number), standing.state
    details = [line for line in detail_lines(state, experiment) if line[0] != SKETCH]
    records = trail(standing, number)
    curve = curve_of(standing, experiment)
    excerpt = Runs(standing.home).excerpt(number) or log_gone(state, number)
    return {
        "row": standing.rows[number],
        "standing": keeps_of(state).mark(number).strip() if experiment.commit else "",
        "details": [line for line in details if line[0] not in Provenance.model_fields],
        "provenance": [line for line in details if line[0] in Provenance.model_fields],
        "story": [_event(record) for record in records],
        "changed": diff_lines(text_of(standing, experiment.diff_sha256)),
        "log": clean_text(excerpt, TEXT_LIMIT),
        "sketch": curves.sketch(curve) if curve else "",
        "before": number - 1 if number else None,
        "after": number + 1 if number + 1 < len(standing.rows) else None,
        "compared": _compared(standing, experiment),
        "possible": steering.possible(state, number),
    }


def _compared(standing: Standing, experiment: Experiment) -> int | None:
    """The experiment whose program it repeats, or the keep it started from."""
    if experiment.repeats is not None:
        return experiment.repeats
    return standing.commits.get(experiment.parent)


def trail(standing: Standing, number: int) -> list[Record]:
    """Everything that led to an experiment, happened to it and came of it. Raises VerificationFailed."""
    records = {record.seq: record for record in [*standing.wishes, *standing.archive.around(number)]}
    return audit.trail([records[seq] for seq in sorted(records)], number)


def curve_of(standing: Standing, experiment: Experiment) -> Curve | None:
    """As far as it is known."""
    if experiment.number in standing.live:
        return standing.live[experiment.number][1].curve
    return experiment.outcome.curve if experiment.outcome else None


def loss_points(standing: Standing, numbers: Sequence[int]) -> Context:
    """For the chart of training losses: shares of the budget and losses. Raises Unknown."""
    found = {number: curve_of(standing, find(standing, number)) for number in numbers}
    return {
        "runs": [
            {"number": number, "points": thinned(curve, POINTS) if curve else []}
            for number, curve in found.items()
        ]
    }


def _event(record: Record) -> Context:
    event = record.data
    lines = clean_text("\n".join(audit.facts(event)), _MOST_SAID).split("\n")
    shown = len(lines) if len(lines) <= _SHOWN + 2 else _SHOWN
    return {
        "seq": record.seq,
        "time": record.time,
        "name": event.event.replace("_", " "),
        "said": "\n".join(lines[:shown]),
        "more": "\n".join(lines[shown:]),
        "texts": list(_texts(record)),
    }


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    """The texts that an event names, each with what it is."""
    match record.data:
        case ApiRequested(request_sha256=name):
            yield "request", name
        case ApiAnswered(reply_sha256=name):
            yield "reply", name
        case ProposalMade(train_sha256=name):
            yield "train.py as proposed", name
        case ExperimentOpened(train_sha256=kept, ran_sha256=ran):
            yield "train.py", kept
            if ran != kept:
                yield "train.py as it ran", ran
        case _:
            return


def named_text(standing: Standing, number: int, name: str) -> Context:
    """A text that the story of an experiment names, for the template `text.html`. Raises Unknown."""
    find(standing, number)
    named = {blob: what for record in trail(standing, number) for what, blob in _texts(record)}
    if name not in named:
        raise Unknown(f"Experiment {number} names no such text.")
    return {"number": number, "what": named[name], "text": _readable(text_of(standing, name)), "name": name}


def _readable(text: str) -> str:
    """Requests and replies are JSON on one line."""
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False).replace("\\n", "\n")
    return clean_text(text, TEXT_LIMIT)


def text_of(standing: Standing, name: str) -> str:
    """A blob as text; a sentence if it is not there."""
    try:
        return read_blob(standing.home, name).decode("utf-8", "replace")
    except VerificationFailed:
        return _GONE


def diff_lines(diff: str) -> list[Line]:
    return [Line(_kind(line), line) for line in clean_text(diff, TEXT_LIMIT).split("\n")]


def _kind(line: str) -> str:
    if line.startswith(("+++", "---")):
        return "file"
    return {"+": "add", "-": "delete", "@": "hunk"}.get(line[:1], "same")
