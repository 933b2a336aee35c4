"""The table of experiments: what an address asks for is found, in order, page by page."""

from __future__ import annotations

from typing import Any

import pytest

from controller.core.errors import UserError
from controller.web.rows import Query, Row


def row(number: int, kind: str = "discard", score: float | None = 2.0, **told: Any) -> Row:
    values: dict[str, Any] = {
        "slot": number % 2,
        "cause": "",
        "phase": "done",
        "effect": None,
        "seconds": 300.0,
        "agent": "claude",
        "description": f"idea {number}",
        "idea": "",
        "proposal": number,
        "repeats": None,
        "marks": (),
        "opened_at": "",
        "finished_at": None,
    }
    return Row(number=number, kind=kind, val_bpb=score, **{**values, **told})


ROWS = [
    row(0, "keep", 2.0, description="baseline"),
    row(1, "discard", 2.2, cause="worse"),
    row(2, "crash", None, cause="oom", agent="tuner"),
    row(3, "keep", 1.9, description="Wider BLOCK"),
    row(4, "open", None),
]


@pytest.mark.parametrize(
    ("address", "numbers"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"order": "asc"}, [0, 1, 2, 3, 4]),
        ({"verdict": "keep"}, [3, 0]),
        ({"cause": "oom"}, [2]),
        ({"agent": "tuner"}, [2]),
        ({"slot": "1"}, [3, 1]),
        ({"q": "block wider"}, [3]),
        ({"q": "#3"}, [3]),
        ({"q": "nothing like it"}, []),
        ({"sort": "val_bpb", "order": "asc"}, [3, 0, 1, 2, 4]),
        ({"sort": "val_bpb", "order": "desc"}, [1, 0, 3, 2, 4]),
        ({"sort": "verdict", "order": "asc"}, [0, 3, 1, 2, 4]),
        ({"verdict": "keep", "q": "base", "other": "x"}, [0]),
    ],
)
def test_what_an_address_asks_for(address: dict[str, str], numbers: list[int]) -> None:
    assert [found.number for found in Query.read(address).select(ROWS)] == numbers


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ({"verdict": "best"}, "verdict"),
        ({"cause": "bad luck"}, "cause"),
        ({"sort": "holdout_bpb"}, "sort"),
        ({"order": "up"}, "order"),
        ({"slot": "²"}, "slot"),
        ({"slot": "-1"}, "slot"),
        ({"page": "0"}, "page"),
        ({"page": "two"}, "page"),
        ({"page": "9" * 9}, "page"),
    ],
)
def test_what_can_be_nothing_of_the_kind_is_refused(address: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Query.read(address)


def test_an_address_says_what_differs_from_the_usual() -> None:
    query = Query.read({"verdict": "keep", "q": "a b&c", "page": "3"})
    assert query.address() == "verdict=keep&q=a+b%26c&page=3"
    assert query.address(page=1, verdict="") == "q=a+b%26c"
