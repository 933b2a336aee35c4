"""Some attacks of each row and two honest models; `make attacks` runs all of them."""

from __future__ import annotations

from collections import Counter

import pytest

from controller.core.program.policy import check
from tests.attacks.arena import Arena
from tests.attacks.cases import Case
from tests.attacks.ground import Ground
from tests.attacks.honest import HONEST
from tests.attacks.suite import ASSAULTS, ATTACKS

FIRST_OF_ROW = {case.row: case for case in reversed(ATTACKS)}
REPLACES = next(case for case in ATTACKS if case.name == "answers too little")
"""It needs to know how a worker answers, and would notice if that was changed."""
QUICK = sorted([*FIRST_OF_ROW.values(), REPLACES], key=ATTACKS.index)

TEXTS = {case.name: case.train_py for case in ATTACKS} | {model.name: model.train_py for model in HONEST}


def test_every_row_of_the_table_is_attacked() -> None:
    attacks = Counter(case.row for case in ATTACKS)
    assert set(attacks) == {f"M{number}" for number in range(1, 18)}
    many = ("M3", "M5", "M6", "M7", "M11", "M13", "M14", "M15", "M16", "M17")
    assert all(attacks[row] >= 5 for row in many)
    assert len(ATTACKS) >= 40 and len(HONEST) >= 30


def test_clock_machine_and_people_are_attacked() -> None:
    assaults = Counter(case.row for case in ASSAULTS)
    rows = {f"C{number}" for number in range(1, 10)} | {f"A{number}" for number in range(1, 7)}
    assert set(assaults) == rows | {"M14", "M18"}
    assert (assaults["C6"], assaults["C7"]) == (40, 114)
    assert min(assaults.values()) >= 3


def test_names_are_unique() -> None:
    assert len({(case.row, case.name) for case in ASSAULTS}) == len(ASSAULTS)
    names = [case.name for case in ATTACKS] + [case.name for case in ASSAULTS]
    assert max(map(len, names)) <= 56, "wider than the table"
    assert len(TEXTS) == len(ATTACKS) + len(HONEST)


REFUSED = {case.name for case in ATTACKS if case.expected == ("refused",)}


@pytest.mark.parametrize("name", TEXTS)
def test_policy_refuses_what_it_is_to_refuse_and_nothing_else(name: str) -> None:
    assert (check(TEXTS[name], None) is not None) == (name in REFUSED)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.row}-{case.name}")
def test_attack_fails(arena: Arena, case: Case) -> None:
    ending = arena.attack(case)
    assert ending.got in case.expected, ending.detail


SAMPLE = (
    "has hundreds of children that multiply at the deadline",
    "nobody kills it, and it sends PID 1 every signal",
    "prints from a daemon after it closed its own output",
    "next run: names that are not there, image",
)
"""Those that no other test of the quick suite has a likeness of."""


@pytest.mark.engine
@pytest.mark.parametrize("name", SAMPLE)
def test_attack_on_the_machine_fails(ground: Ground, name: str) -> None:
    [case] = [case for case in ASSAULTS if case.name == name]
    ending = case.attack(ground)
    assert ending.got == case.expected, ending.detail


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", ["small GPT", "flat script, upstream's form"])
def test_honest_model_gets_its_score(arena: Arena, name: str) -> None:
    [model] = [model for model in HONEST if model.name == name]
    found = arena.honest(model)
    assert found.agrees, found
