"""The judge: the plan, the arithmetic, and hostile workers as real processes."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats import Refused, less_largest_nats, token_nats, widen
from numpy.typing import NDArray

from judge import account
from plan import Role, make_plan
from probes import Nats
from tests.harness.scoring import LENGTH, VOCAB, Scoring, make_data, reference_nats, rows_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def scoring(data: Path, tmp_path: Path) -> Scoring:
    return Scoring(data, tmp_path)


# --- the plan ------------------------------------------------------------------


def _rows(count: int, first: int) -> NDArray[np.int64]:
    return np.arange(first, first + count)[:, None] * 100 + np.arange(5)


@given(
    validation=st.integers(1, 9), holdout=st.integers(1, 9), batch=st.integers(1, 7), seed=st.integers(0, 99)
)
def test_plan_sends_every_row_once_and_full_batches(
    validation: int, holdout: int, batch: int, seed: int
) -> None:
    rows = {Role.VALIDATION: _rows(validation, 0), Role.HOLDOUT: _rows(holdout, 50)}
    plan = make_plan(rows[Role.VALIDATION], rows[Role.HOLDOUT], batch, seed, twins=1)
    assert len(plan.inputs) % batch == 0
    for role, expected in rows.items():
        sent = plan.roles == role
        both = np.concatenate([plan.inputs[sent], plan.targets[sent][:, -1:]], axis=1)
        assert sorted(both.tolist()) == expected.tolist()
    repeats = plan.inputs[plan.roles == Role.REPEAT]
    assert 1 <= len(repeats) <= batch
    assert {*repeats[:, 0].tolist()} <= {*np.concatenate([*rows.values()])[:, 0].tolist()}


def test_order_is_the_seeds_and_mixes_the_splits() -> None:
    validation, holdout = _rows(50, 0), _rows(50, 50)
    plans = [make_plan(validation, holdout, 4, seed, twins=5) for seed in (1, 1, 2)]
    assert (plans[0].inputs == plans[1].inputs).all()
    assert (plans[0].inputs != plans[2].inputs).any()
    assert 10 < (plans[0].roles[:50] == Role.HOLDOUT).sum() < 40


# --- the arithmetic ------------------------------------------------------------


def test_nats_of_a_realistic_model_agree_to_a_millionth() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (400, 2048)).astype(np.float32)
    targets = random.integers(0, 2048, 400)
    assert token_nats(logits, targets).sum() == pytest.approx(sum(reference_nats(logits, targets)), rel=1e-6)


def test_near_certain_predictions_keep_their_precision() -> None:
    logits = np.array([[20, 0, 0, 0]], np.float32)
    assert token_nats(logits, np.array([0]))[0] == pytest.approx(3 * math.exp(-20), rel=1e-6, abs=0)


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    numbers = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    assert widen(bits) == pytest.approx(numbers, rel=2**-7)
    assert widen(numbers) is numbers


def judged(sent: NDArray[np.float16], largest: list[int], targets: list[int] | NDArray[np.int64]) -> Nats:
    """In memory for two rows at a time."""
    memory = np.empty((2, sent.shape[1]), np.float32)
    return less_largest_nats(sent.copy(), np.array(largest, np.int32), np.array(targets), memory)


@pytest.mark.parametrize("vocab", [5, 2048, 8192])
@pytest.mark.parametrize("scale", [3, 30])
def test_float16_less_the_largest_is_judged_as_what_it_is(vocab: int, scale: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, scale, (31, vocab))
    sent = (logits - logits.max(axis=1, keepdims=True)).astype(np.float16)
    targets = random.integers(0, vocab, len(sent))
    nats = judged(sent, logits.argmax(axis=1).tolist(), targets)
    assert nats == pytest.approx(np.array(reference_nats(sent.astype(np.float32), targets)), rel=1e-6, abs=0)


def test_any_logit_of_0_may_be_called_the_largest() -> None:
    sent = np.array([[0, 3, -1], [0, 0, -1]], np.float16)
    exact = reference_nats(sent.astype(np.float32), np.array([2, 1]))
    assert judged(sent, [0, 1], [2, 1]) == pytest.approx(np.array(exact), rel=1e-6)


def test_float16_keeps_the_precision_of_near_certain_predictions() -> None:
    sent = np.array([[0, -20, -20, -20], [0, -20, -20, -65504], [0, -20, -20, -np.inf]], np.float16)
    expected = [3 * math.exp(-20), 65504 + 2 * math.exp(-20), 2 * math.exp(-20)]
    assert judged(sent, [0, 0, 0], [0, 3, 0]) == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("row", "largest", "target", "cause"),
    [
        ([0, -1, np.nan], 0, 1, "not-finite"),
        ([0, -1, -np.nan], 0, 1, "not-finite"),
        ([0, -1, np.inf], 0, 1, "not-finite"),
        ([0, -1, np.inf], 0, 2, "not-finite"),
        ([0, -1, -np.inf], 0, 2, "not-finite"),
        ([0, -1, 1000], 0, 1, "not-finite"),
        ([np.nan, -1, 0], 0, 1, "protocol"),
        ([0, -1, -2], 1, 1, "protocol"),
        ([0, -1, -2], 3, 1, "protocol"),
        ([0, -1, -2], -1, 1, "protocol"),
        ([-1, -1, -2], 0, 1, "protocol"),
        ([0, 11, -2], 0, 1, "protocol"),
    ],
)
def test_float16_must_be_finite_and_the_largest_0(
    row: list[float], largest: int, target: int, cause: str
) -> None:
    sent = np.array([[0, -1, -2], [0, -1, -2], row], np.float16)
    with pytest.raises(Refused) as refusal:
        judged(sent, [0, 0, largest], [0, 1, target])
    assert refusal.value.cause == cause


def test_account_counts_bytes_and_leaves_out_special_tokens() -> None:
    token_bytes = np.array([0, 2, 0])
    found = account(np.array([[1, 2]]), np.array([[4.0, 8.0]]), token_bytes)
    assert found == (4.0 / (2 * math.log(2)), 2, 1)
    with pytest.raises(ValueError, match="any byte"):
        account(np.array([[2, 2]]), np.array([[4.0, 8.0]]), token_bytes)


# --- hostile workers -----------------------------------------------------------

PRELUDE = """
import fcntl, json, os, struct, sys, time
from pathlib import Path
import numpy as np
from exchange import CLOSED, HEADER_BYTES, SLOTS, Header, SlotReader, SlotWriter
requests, replies = Path(sys.argv[1]), Path(sys.argv[2])
slot = replies / "slot-0"
reader, writer = SlotReader(requests), SlotWriter(replies)

def request(number):
    return reader.wait(number, time.monotonic() + 60)

def logits_for(number):
    header = request(number)
    logits = np.random.default_rng(1).normal(size=(header.length, header.vocab)).astype(np.float32)
    return np.tile(logits, (header.rows, 1, 1))

def reply(number, logits, **changes):
    shape = dict(zip(("rows", "length", "vocab"), logits.shape))
    header = Header(**({"dtype": 2} | shape | changes))
    writer.write(number, header, np.ascontiguousarray(logits).data.cast("B"))

def requested():
    number = 0
    while True:
        yield number, request(number)
        number += 1

"""


def another(scoring: Scoring) -> Scoring:
    """A second scoring on the same data."""
    (scoring.work / "another").mkdir()
    return Scoring(scoring.data, scoring.work / "another")


def hostile(scoring: Scoring, code: str) -> dict[str, Any]:
    command = [sys.executable, "-c", PRELUDE + code, str(scoring.requests), str(scoring.replies)]
    result, _, errors = scoring.run(command)
    assert not errors, errors
    return result


#: Every number that a refusal may tell: what was asked for, and names of types.
ASKED_FOR = {"4", str(LENGTH), str(VOCAB), str(4 * LENGTH * VOCAB * 4), "16", "32"}


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("time.sleep(60)", "worker-timeout"),
        ("reply(0, logits_for(0)); time.sleep(60)", "worker-timeout"),
        ("slot.write_bytes(bytes(HEADER_BYTES + 9)); time.sleep(60)", "worker-timeout"),
        ("reply(0, logits_for(0)[..., 1:], vocab=request(0).vocab)", "protocol"),
        (
            "h = request(0); full = struct.pack('<BBxxIII', 1, 2, h.rows, h.length, h.vocab)\n"
            "slot.write_bytes(full.ljust(5000, b'\\0'))",
            "protocol",
        ),
        ("slot.mkdir()", "protocol"),
        ("os.mkfifo(slot)", "protocol"),
        ("slot.symlink_to('/dev/zero')", "protocol"),
        ("slot.write_bytes(b'\\x07' * 99999)", "protocol"),
        ("slot.write_bytes(b'\\x01' * 9)", "protocol"),
        ("reply(4, logits_for(0))", "protocol"),
        ("reply(0, logits_for(0), vocab=10)", "wrong-shape"),
        ("reply(0, logits_for(0), rows=2**32 - 1, length=2**32 - 1, vocab=2**32 - 1)", "wrong-shape"),
        ("reply(0, logits_for(0)[:1])", "wrong-shape"),
        ("reply(0, logits_for(0), dtype=7)", "wrong-dtype"),
        ("x = logits_for(0); x[-1, -1, -1] = np.nan; reply(0, x)", "not-finite"),
        ("x = logits_for(0); x[0, 0, 0] = np.inf; reply(0, x)", "not-finite"),
        ("x = logits_for(0); x[1, 2, 3] = -np.inf; reply(0, x)", "not-finite"),
        ("(replies / CLOSED).symlink_to('nowhere')", "worker-failed"),
    ],
)
def test_what_a_worker_may_not_do(scoring: Scoring, code: str, cause: str) -> None:
    limit = 2.0 if cause == "worker-timeout" else 20.0
    scoring.judge |= {"first_batch_seconds": limit, "batch_seconds": limit}
    result = hostile(scoring, code + "\ntime.sleep(60)")
    assert (result["status"], result["cause"]) == ("refused", cause), result
    assert not set(re.findall(r"\d+", str(result["detail"]))) - ASKED_FOR, "a number that it chose"


def test_slow_worker_meets_the_total_limit(scoring: Scoring) -> None:
    scoring.judge |= {"total_seconds": 2.0, "batch_rows": 1}
    result = hostile(scoring, "for n, _ in requested():\n    reply(n, logits_for(n)); time.sleep(0.2)")
    assert result["cause"] == "worker-timeout"


def test_logits_rewritten_after_the_judge_took_them_change_nothing(scoring: Scoring) -> None:
    honest = hostile(scoring, "for n, _ in requested():\n    reply(n, logits_for(n))")
    rewriting = """
for number, _ in requested():
    if number >= SLOTS:  # that this request is here says that the judge has taken reply number - SLOTS
        with open(replies / f"slot-{number % SLOTS}", "r+b") as old:
            old.seek(HEADER_BYTES)
            old.write(b"\\xff" * 10000)
    reply(number, logits_for(number))
"""
    forged = hostile(another(scoring), rewriting)
    assert forged["val_bpb"] == honest["val_bpb"]


def test_what_follows_the_payload_means_nothing(scoring: Scoring) -> None:
    honest = hostile(scoring, "for n, _ in requested():\n    reply(n, logits_for(n))")
    more = """
for number, _ in requested():
    logits = logits_for(number)
    reply(number, np.concatenate([logits, logits[::-1] * 9]), rows=len(logits))
    os.truncate(replies / f"slot-{number % SLOTS}", 1 << 40)
"""
    assert hostile(another(scoring), more)["val_bpb"] == honest["val_bpb"]


def test_sparse_logits_are_a_uniform_guess(scoring: Scoring) -> None:
    code = """
for number, header in requested():
    size = header.rows * header.length * header.vocab * 4
    with open(replies / f"slot-{number % SLOTS}", "ab") as file:
        os.truncate(file.fileno(), HEADER_BYTES + size)
    with open(replies / f"slot-{number % SLOTS}", "r+b", buffering=0) as file:
        file.write(struct.pack("<BBxxIII", 1 + number, 2, header.rows, header.length, header.vocab))
"""
    result = hostile(scoring, code)
    bits = result["tokens"] * math.log2(VOCAB)
    assert result["val_bpb"] == pytest.approx(bits / result["bytes"], rel=1e-6)


def test_score_depends_neither_on_order_nor_on_batching(scoring: Scoring) -> None:
    same_for_all = """
for number, header in requested():
    logits = np.linspace(0, 3, header.vocab, dtype=np.float32)
    reply(number, np.tile(logits, (header.rows, header.length, 1)))
"""
    first = hostile(scoring, same_for_all)
    other = another(scoring)
    other.judge |= {"seed": 12, "batch_rows": 7}
    second = hostile(other, same_for_all)
    for key in ("val_bpb", "holdout_bpb", "bytes", "tokens", "holdout_bytes"):
        assert first[key] == pytest.approx(second[key], rel=1e-12)


def test_a_request_holds_inputs_and_nothing_else(scoring: Scoring) -> None:
    scoring.judge |= {"batch_rows": 1, "score_tokens": 1, "holdout_score_tokens": 1}
    code = """
sent = []
for number, header in requested():
    tokens = bytearray(4 * header.length)
    reader.read(number, 0, memoryview(tokens))
    assert reader.payload_bytes(number) == len(tokens)
    sent.append(np.frombuffer(tokens, np.int32).tolist())
    Path(sys.argv[2], "sent").write_text(json.dumps(sent))
    reply(number, logits_for(number))
"""
    assert hostile(scoring, code)["status"] == "scored"
    sent = json.loads((scoring.replies / "sent").read_text())
    drawn = rows_of(scoring.data, score_tokens=1)
    rows = [drawn.scored[0, :-1].tolist(), drawn.first.rows[0, :-1].tolist()]
    assert all(row in sent for row in rows)
    twins = [one[:cut] + two[cut:] for one, two in (rows, rows[::-1]) for cut in range(LENGTH)]
    assert all(row in twins for row in sent)
