"""The judge against anything: any logits against float64, any behaviour of the workers.

GLOVEBOX_FUZZ_EXAMPLES=20000 asks for as many random examples of each; by default a few fixed ones are tried.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange import HEADER_BYTES
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nats import Refused, token_nats, widen
from numpy.typing import NDArray

import judge
from judge import account
from tests.harness.hostile import (
    ANSWER_BYTES,
    Answer,
    Become,
    Hostile,
    Kind,
    Stall,
    Step,
    Storm,
    Truncate,
    Write,
)
from tests.harness.scoring import Scoring, make_data, reference_nats

EXAMPLES = int(os.environ.get("GLOVEBOX_FUZZ_EXAMPLES", "0"))


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# --- the arithmetic ------------------------------------------------------------

LARGEST = 0x7F7FFFFF  # the bits of the largest finite float32; with the sign bit, of the smallest
SIGN = 1 << 31
LEAST = 1e-300  # near the smallest float64, where that itself is not good to a millionth
NOT_FINITE = [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F810000, 0xFFFFFFFF]  # ±inf, quiet and signalling NaN


def as_float32(bits: NDArray[np.uint32], bfloat16: bool) -> NDArray[np.float32]:
    """What the judge makes of a payload with these bits; of bfloat16 the upper halves."""
    return widen((bits >> 16).astype(np.uint16) if bfloat16 else bits.view(np.float32))


def bits_of(number: float) -> int:
    return int(np.float32(number).view(np.uint32))


any_finite = st.one_of(
    st.integers(0, LARGEST),
    st.integers(SIGN, SIGN + LARGEST),
    st.integers(0, 0x007FFFFF),  # denormals and zero
    st.sampled_from([0, SIGN, 1, SIGN + 1, LARGEST, SIGN + LARGEST, bits_of(1.0), bits_of(-1.0)]),
)
usual = st.one_of(st.floats(-60, 60, width=32), st.integers(-40, 40)).map(bits_of)
SHAPE = (6, 9)


@st.composite
def finite_logits(draw: st.DrawFn) -> NDArray[np.uint32]:
    """uint32 [6, 9], bits of finite numbers: of any kind, usual ones, or many that are equal."""
    few = draw(st.lists(st.one_of(any_finite, usual), min_size=1, max_size=3))
    element = draw(st.sampled_from([any_finite, usual, st.one_of(any_finite, usual), st.sampled_from(few)]))
    return draw(arrays(np.uint32, SHAPE, elements=element))


tokens = arrays(np.int64, (1, SHAPE[0] + 1), elements=st.integers(0, SHAPE[1] - 1))


@fuzz(400)
@given(
    bits=finite_logits(),
    bfloat16=st.booleans(),
    row=tokens,
    sizes=arrays(np.int64, SHAPE[1], elements=st.integers(0, 40)),
)
def test_bits_per_byte_are_those_of_float64_to_a_millionth(
    bits: NDArray[np.uint32], bfloat16: bool, row: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    logits, targets = as_float32(bits, bfloat16), row[0, 1:]
    exact = reference_nats(logits, targets)
    nats = token_nats(logits, targets)
    for ours, theirs in zip(nats.tolist(), exact, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=LEAST)

    size = int(sizes[targets].sum())
    if size == 0:
        with pytest.raises(ValueError, match="any byte"):
            account(row[:, 1:], nats[None], sizes)
        return
    counted = [nat for nat, true in zip(exact, targets, strict=True) if sizes[true]]
    expected = math.fsum(counted) / (math.log(2) * size)
    found = account(row[:, 1:], nats[None], sizes)
    assert found.bits_per_byte == pytest.approx(expected, rel=1e-6, abs=LEAST)
    assert (found.bytes, found.tokens) == (size, len(counted))


@fuzz(150)
@given(
    gap=st.floats(0, 100, width=32),
    top=st.floats(-30, 30, width=32),
    vocab=st.sampled_from([2, 300, 1024, 8192]),
)
def test_the_sum_over_a_whole_vocabulary_is_good_to_a_millionth(gap: float, top: float, vocab: int) -> None:
    """Equal terms are the worst case: all are rounded to the same side."""
    logits = np.full((2, vocab), np.float32(top) - np.float32(gap), np.float32)
    logits[:, 0] = top
    targets = np.array([0, vocab - 1])
    exact = reference_nats(logits, targets)
    ours = token_nats(logits, targets).tolist()
    errors = [abs(a - b) / max(b, LEAST) for a, b in zip(ours, exact, strict=True)]
    target(max(errors))
    assert max(errors) <= 1e-6


@fuzz(100)
@given(
    bits=finite_logits(),
    bfloat16=st.booleans(),
    bad=st.sampled_from(NOT_FINITE),
    place=st.integers(0, SHAPE[0] * SHAPE[1] - 1),
)
def test_anything_not_finite_is_refused_wherever_it_is(
    bits: NDArray[np.uint32], bfloat16: bool, bad: int, place: int
) -> None:
    bits.flat[place] = bad
    with pytest.raises(Refused) as refusal:
        token_nats(as_float32(bits, bfloat16), np.zeros(SHAPE[0], np.int64))
    assert refusal.value.cause == "not-finite"


# --- the exchange --------------------------------------------------------------

CAUSES = {
    "worker-timeout", "worker-failed", "wrong-shape", "wrong-dtype", "protocol", "not-finite",
    "stateful", "batch-dependent", "non-causal",
}  # fmt: skip
LIMIT_SECONDS = 0.4  # for each worker
MEMORY_BYTES = 32 << 20  # judge and both workers together, in NumPy's and Python's memory

slots = st.sampled_from([0, 1])
offsets = st.sampled_from([0, 1, 3, 4, 8, 12, 16, 20, 24, HEADER_BYTES - 1, HEADER_BYTES, ANSWER_BYTES - 2])
sizes = st.sampled_from(
    [0, 1, 15, 24, HEADER_BYTES, ANSWER_BYTES - 1, ANSWER_BYTES, ANSWER_BYTES + 1, 1 << 40]
)
numbers = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1]))
answers = st.one_of(
    st.just(Answer()),
    st.builds(
        Answer,
        bfloat16=st.booleans(),
        mark=st.sampled_from([0, 0, 0, 1, 2, -2, 254]),
        header=st.lists(st.tuples(st.integers(0, 5), numbers), max_size=2).map(tuple),
        bits=st.lists(
            st.tuples(st.integers(0, 1 << 20), st.sampled_from([LARGEST, bits_of(3.0), *NOT_FINITE])),
            max_size=3,
        ).map(tuple),
        surplus=st.sampled_from([0, 0, 0, 1, -1, 4, -4, 1 << 16, -(1 << 16)]),
        header_first=st.booleans(),
    ),
)
kinds: st.SearchStrategy[Kind] = st.sampled_from(
    ["nothing", "file", "directory", "fifo", "zeros", "other slot", "loop", "dangling", "locked"]
)
touches = st.one_of(
    st.builds(Write, slots, offsets, st.binary(min_size=1, max_size=30)),
    st.builds(Truncate, slots, sizes),
    st.builds(Become, st.sampled_from([0, 1, None]), kinds),
)
scripts = st.lists(
    st.one_of(answers, answers, touches, st.builds(Storm, touches), st.just(Stall())), max_size=8
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def judged(data: Path, scripts: tuple[list[Step], list[Step]], seconds: float) -> list[dict[str, Any]]:
    """What the judge says about two workers that follow these scripts."""
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as workers:
        config = Scoring(data, Path(work)).judge
        config |= {"score_tokens": 200, "holdout_score_tokens": 100, "leak_fraction": 0.3, "leak_reach": 8}
        config |= dict.fromkeys(("first_batch_seconds", "batch_seconds", "total_seconds"), seconds)
        with _own_argv(["judge.py", json.dumps(config)]), _no_files_left_open():
            for script, which in zip(scripts, ("", "second_"), strict=True):
                folders = Path(config[f"{which}requests"]), Path(config[f"{which}replies"])
                workers.enter_context(Hostile(*folders, script, patience=2 * seconds))
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                judge.main()
            workers.close()
    return [json.loads(line) for line in said.getvalue().splitlines()]


@contextlib.contextmanager
def _own_argv(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _no_files_left_open() -> Iterator[None]:
    """The judge leaves it to the end of its process to close slots; here the process goes on."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for file in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(OSError):
            os.close(int(file))


def test_workers_without_a_script_get_their_score(data: Path) -> None:
    first, second = judged(data, ([], []), seconds=60.0)
    assert (first["status"], second["status"]) == ("scored", "confirmed")


@fuzz(40)
@given(first=scripts, second=scripts)
def test_any_behaviour_ends_in_a_score_or_in_a_refusal_with_a_cause(
    data: Path, first: list[Step], second: list[Step]
) -> None:
    began = time.monotonic()
    tracemalloc.start()
    try:
        lines = judged(data, (first, second), LIMIT_SECONDS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 2 * LIMIT_SECONDS + 10  # a busy machine's share
    assert peak < MEMORY_BYTES
    assert [line["status"] for line in lines] in (["refused"], ["scored", "refused"], ["scored", "confirmed"])
    if lines[0]["status"] == "scored":
        assert 0 <= lines[0]["val_bpb"] < math.inf and 0 <= lines[0]["holdout_bpb"] < math.inf
    if lines[-1]["status"] == "refused":
        assert lines[-1]["cause"] in CAUSES
        assert lines[-1]["detail"].isprintable() and len(lines[-1]["detail"]) < 300
