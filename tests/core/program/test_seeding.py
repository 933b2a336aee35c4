"""The controller's seed in place of a program's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.core.program.policy import digest
from controller.core.program.seeding import SEED_BITS, seeded

MODEL = "def build_model(): ...\n"
BASELINE = Path(__file__).parents[3] / "harness" / "train.py"


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("torch.manual_seed(42)", "torch.manual_seed(142)"),
        ("torch.cuda.manual_seed_all(0)", "torch.cuda.manual_seed_all(100)"),
        ("SEED = 1337", "SEED = 1437"),
        ("seed: int = 1_000", "seed: int = 1100"),
        ("rng = np.random.default_rng(7)", "rng = np.random.default_rng(107)"),
        ("rng = np.random.default_rng(seed=7)", "rng = np.random.default_rng(seed=107)"),
        ("g = torch.Generator().manual_seed(0x10)", "g = torch.Generator().manual_seed(116)"),
        ("torch.manual_seed(1337 + rank)", "torch.manual_seed(1437 + rank)"),
        ("config = {'seed': 3, 'depth': 3}", "config = {'seed': 103, 'depth': 3}"),
        ("def main(depth=2, seed=3): ...", "def main(depth=2, seed=103): ..."),
        ("for data_seed in (1, 2): ...", "for data_seed in (101, 102): ..."),
        ("größe = 'ä'; SEED = 5  # é", "größe = 'ä'; SEED = 105  # é"),
    ],
)
def test_every_literal_that_is_a_seed_is_moved(line: str, moved: str) -> None:
    assert seeded(f"{line}\n{MODEL}", 100) == f"{moved}\n{MODEL}"


@pytest.mark.parametrize(
    "line",
    [
        "DEPTH = 42",
        "RESEED_EVERY = 42",
        "SEED_TOKENS = 42",
        "torch.manual_seed(SEED)",
        "from prepare import SEED",
        "seed = 6 * epoch",
        "seed = -1",
        "seed = True",
        "seed = 1.5",
        "for step in range(10): ...",
        "def f(unread=3): ...\nf(3)",
        "def seed(width): return width\nlayer = seed(42)",
        "this is not Python",
    ],
)
def test_nothing_else_is_touched(line: str) -> None:
    assert seeded(f"{line}\n{MODEL}", 100) == f"{line}\n{MODEL}"


def test_what_was_apart_stays_apart() -> None:
    text = f"torch.manual_seed(1)\ng = torch.Generator().manual_seed(2)\n{MODEL}"
    assert seeded(text, 5) == f"torch.manual_seed(6)\ng = torch.Generator().manual_seed(7)\n{MODEL}"


def test_a_seed_may_be_multiplied_by_a_thousand() -> None:
    assert (1337 + 2**SEED_BITS) * 1000 < 2**32


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("SeedSequence(42, pool_size=8)", "SeedSequence(142, pool_size=8)"),
        ("random.seed(a=3, version=2)", "random.seed(a=103, version=2)"),
        ("run(torch.manual_seed, 3)", "run(torch.manual_seed, 3)"),
        ("seed = 0\nwhile go():\n    seed += 1", "seed = 100\nwhile go():\n    seed += 1"),
        ("SEED = 42\nif SEED == 42: go()", "SEED = 42\nif SEED == 42: go()"),
        ("seed = 0\nwhile seed < 5: seed += 1", "seed = 0\nwhile seed < 5: seed += 1"),
    ],
)
def test_only_the_seed_is_moved_and_only_if_nothing_hangs_on_it(text: str, moved: str) -> None:
    assert seeded(f"{text}\n{MODEL}", 100) == f"{moved}\n{MODEL}"


def test_a_place_that_is_reported_wrongly_is_left_alone() -> None:
    text = f'name = f"{{run(seed=3)}} of {{DEPTH}}"\n{MODEL}'
    moved = seeded(text, 100)
    assert moved in (text, text.replace("seed=3", "seed=103"))
    assert digest(moved) == digest(text)


def test_the_program_stays_the_same_but_for_its_seeds() -> None:
    text = f"import torch\ntorch.manual_seed(42)\nx = torch.randn(42)\n{MODEL}"
    assert digest(seeded(text, 9)) == digest(text) and "torch.randn(42)" in seeded(text, 9)


def test_the_baseline_takes_its_seed_from_prepare() -> None:
    text = BASELINE.read_text()
    assert seeded(text, 100) == text and "torch.manual_seed(SEED)" in text
