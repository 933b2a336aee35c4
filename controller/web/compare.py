"""Experiments side by side: what differs between them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from controller.core.experiment import Experiment
from controller.views.tables import detail_lines
from controller.web.experiment import SKETCH, Context, Line, diff_lines, find, text_of
from controller.web.follower import Standing


def context(standing: Standing, numbers: Sequence[int]) -> Context:
    """For the template `compare.html`; what the others change against the first. Raises Unknown."""
    experiments = [find(standing, number) for number in numbers]
    texts = [text_of(standing, experiment.train_sha256).splitlines() for experiment in experiments]
    return {
        "rows": [standing.rows[number] for number in numbers],
        "address": "&".join(f"n={number}" for number in numbers),
        "details": _side_by_side(standing, experiments),
        "diffs": [
            (number, _changes(texts[0], text, numbers[0], number))
            for number, text in zip(numbers[1:], texts[1:], strict=True)
        ],
    }


def _changes(one: Sequence[str], other: Sequence[str], first: int, second: int) -> list[Line]:
    names = f"train.py of {first}", f"train.py of {second}"
    return diff_lines("\n".join(difflib.unified_diff(one, other, *names, lineterm="")))


def _side_by_side(standing: Standing, experiments: Sequence[Experiment]) -> list[tuple[str, list[str]]]:
    """Each detail that not all have in common, with its value for each."""
    told = [dict(detail_lines(standing.state, experiment)) for experiment in experiments]
    names = dict.fromkeys(name for details in told for name in details if name != SKETCH)
    values = [(name, [details.get(name, "") for details in told]) for name in names]
    return [(name, found) for name, found in values if len(set(found)) > 1]
