"""One attack of each row and two honest models; `make attacks` runs all of them."""

from __future__ import annotations

from collections import Counter

import pytest

from controller.core.policy import check
from tests.attacks.arena import Arena
from tests.attacks.cases import Case
from tests.attacks.honest import HONEST
from tests.attacks.suite import ATTACKS

FIRST_OF_ROW = {case.row: case for case in reversed(ATTACKS)}
QUICK = sorted(FIRST_OF_ROW.values(), key=ATTACKS.index)

TEXTS = {case.name: case.train_py for case in ATTACKS} | {model.name: model.train_py for model in HONEST}


def test_every_row_of_the_table_is_attacked() -> None:
    attacks = Counter(case.row for case in ATTACKS)
    assert set(attacks) == {f"M{number}" for number in range(1, 14)}
    assert all(attacks[row] >= 5 for row in ("M3", "M5", "M6", "M7", "M11", "M13"))
    assert len(ATTACKS) >= 40 and len(HONEST) >= 12


def test_names_are_unique() -> None:
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


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", ["small GPT", "flat script, upstream's form"])
def test_honest_model_gets_its_score(arena: Arena, name: str) -> None:
    [model] = [model for model in HONEST if model.name == name]
    found = arena.honest(model)
    assert found.agrees, found
