"""What a program may hold: room for ideas, none for weights."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest

from controller.core.program.literals import TEXT_LIMIT, WHOLE_LIMIT, excess, text_bytes
from controller.core.program.policy import check

HARNESS = (Path(__file__).parents[3] / "harness" / "train.py").read_text(encoding="utf-8")
DATA = random.Random(1).randbytes(60_000)
TEXT = base64.b85encode(DATA[:30_000]).decode()
FULL = f"model = {TEXT!r}\n"


def test_our_own_file_has_room_for_more_than_twice_as_much() -> None:
    assert text_bytes(HARNESS) < TEXT_LIMIT / 2
    assert excess(HARNESS, "") is None


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        f"model = 1\n# {TEXT}\n",
        f"model = 1\ndef f():\n    {TEXT!r}\n",
        f"model = 0x{DATA[:30_000].hex()}\n",
        f"model = {[*DATA[:30_000]]}\n",
        f"model = {DATA[:30_000]!r}\n",
        f"model = {[random.Random(n).random() for n in range(6000)]}\n",
        "model = [" + ", ".join(f"n{DATA[n : n + 9].hex()}" for n in range(0, 36_000, 9)) + "]\n",
    ],
)
def test_data_is_found_wherever_it_is(text: str) -> None:
    objection = check(text, HARNESS)
    assert objection is not None and objection.cause == "literals"


def test_the_sentence_has_both_numbers() -> None:
    detail = excess(FULL, "")
    assert detail is not None and str(text_bytes(FULL)) in detail and str(TEXT_LIMIT) in detail
    dense = "model = [" + ",".join("abcdefghijklmnop"[byte % 16] for byte in DATA * 2) + "]\n"
    assert text_bytes(dense) < 1000
    detail = excess(dense, "")
    assert detail is not None and str(WHOLE_LIMIT) in detail


def test_what_repeats_itself_holds_little() -> None:
    assert excess("model = 1\n" + "# a long thought\n" * 10_000, "") is None


def test_what_a_persons_baseline_holds_its_successors_may_hold() -> None:
    assert check(FULL, None) is not None
    assert check(FULL + "print(1)\n", FULL) is None
    assert check(FULL + f"# {base64.b85encode(DATA[40_000:]).decode()}\n", FULL) is not None


def test_a_frontier_that_does_not_parse_is_no_obstacle() -> None:
    assert excess("model = 1\n", "not python (") is None
