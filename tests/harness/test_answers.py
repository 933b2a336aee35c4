"""What a worker makes of logits, and how it asks its model about rows of any length and number."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from answers import LOWEST, Lengths, Parts, Replies, less_largest
from exchange import BFLOAT16, FLOAT16_LESS_LARGEST, FLOAT32, Header, SlotReader
from safetensors.torch import save_file
from torch import Tensor

from tests.harness.scoring import IMPORTABLE, Scoring, make_data, reference_bpb, rows_of, tiny_model

ROWS, CONTEXT, VOCAB = 3, 8, 11
CPU = torch.device("cpu")
ASKED = Header(0, ROWS, CONTEXT, VOCAB, 0, CONTEXT)


def sent(
    folder: Path, logits: object, asked: Header = ASKED, *, compact: bool = False
) -> tuple[Header, bytes]:
    """What the judge finds of one reply."""
    Replies(folder, CPU, compact=compact).send(0, logits, asked)
    reader = SlotReader(folder)
    header = reader.poll(0)
    assert header is not None
    content = bytearray(reader.payload_bytes(0) if header.dtype else 0)
    reader.read(0, 0, memoryview(content))
    return header, bytes(content)


# --- encoding --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (torch.float32, FLOAT32),
        (torch.bfloat16, BFLOAT16),
        (torch.float16, FLOAT32),
        (torch.float64, FLOAT32),
    ],
)
def test_reply_holds_the_logits_in_a_type_the_judge_reads(
    dtype: torch.dtype, code: int, tmp_path: Path
) -> None:
    logits = torch.randn(ROWS, CONTEXT, VOCAB).to(dtype)
    turned = logits.transpose(0, 1).contiguous().transpose(0, 1)
    header, content = sent(tmp_path, turned)
    assert header == (code, ROWS, CONTEXT, VOCAB, 0, 0)
    found = torch.frombuffer(bytearray(content), dtype=torch.bfloat16 if code == BFLOAT16 else torch.float32)
    assert torch.equal(found.view(logits.shape), logits.to(found.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_compact_reply_takes_two_bytes_whatever_the_model_gives(dtype: torch.dtype, tmp_path: Path) -> None:
    logits = torch.randn(ROWS, CONTEXT, VOCAB).to(dtype) * 5
    header, content = sent(tmp_path, logits, compact=True)
    assert header == (FLOAT16_LESS_LARGEST, ROWS, CONTEXT, VOCAB, 0, 0)
    places, numbers = content[: 4 * ROWS * CONTEXT], content[4 * ROWS * CONTEXT :]
    largest = torch.frombuffer(bytearray(places), dtype=torch.int32).view(ROWS, CONTEXT)
    assert torch.equal(largest, logits.argmax(-1).int())
    found = torch.frombuffer(bytearray(numbers), dtype=torch.float16).view(logits.shape).double()
    assert torch.equal(found.amax(-1), torch.zeros(ROWS, CONTEXT, dtype=torch.float64))
    exact = logits.double() - logits.double().amax(-1, keepdim=True)
    assert ((found - exact).abs() <= exact.abs() * 2**-11 + 2**-24).all()


def test_reply_holds_the_columns_wanted_and_no_others(tmp_path: Path) -> None:
    logits = torch.randn(ROWS, CONTEXT, VOCAB)
    header, content = sent(tmp_path, logits, ASKED._replace(first=5, last=7))
    assert header == (FLOAT32, ROWS, 2, VOCAB, 0, 0)
    found = torch.frombuffer(bytearray(content), dtype=torch.float32).view(ROWS, 2, VOCAB)
    assert torch.equal(found, logits[:, 5:7])


@pytest.mark.parametrize("compact", [False, True])
def test_what_is_no_logits_has_no_payload(compact: bool, tmp_path: Path) -> None:
    logits = torch.randn(ROWS, CONTEXT, VOCAB)
    header, content = sent(tmp_path, logits.long(), ASKED._replace(first=5, last=7), compact=compact)
    assert (header.dtype, header.length, len(content)) == (0, 2, 0)


def test_less_largest_saturates_and_hides_nothing_that_is_not_finite() -> None:
    rows = torch.tensor(
        [
            [1e9, 0.0, 1e9 - 64],
            [3.0, -1e9, -3e38],
            [1.0, -math.inf, 0.0],
            [1.0, math.inf, 0.0],
            [1.0, math.nan, 0.0],
            [-math.inf, -math.inf, -math.inf],
        ]
    )
    coded, largest = less_largest(rows)
    assert (coded.dtype, largest.dtype) == (torch.float16, torch.int32)
    assert largest[:2].tolist() == [0, 0]
    assert coded[0].tolist() == [0, LOWEST, -64]
    assert coded[1].tolist() == [0, LOWEST, LOWEST]
    assert coded[2:].isnan().any(-1).all()


def test_less_largest_is_off_by_an_eighth_of_bfloat16() -> None:
    logits = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)) * 3
    below = logits - logits.amax(-1, keepdim=True)
    near = below > -16
    ours, theirs = (less_largest(logits)[0].float() - below)[near], (below.bfloat16().float() - below)[near]
    assert ours.abs().max() <= 2**-8
    assert ours.std().item() == pytest.approx(theirs.std().item() / 8, rel=0.1)
    assert ours.mean().abs() < 1e-5


# --- how many rows at a time -------------------------------------------------------


class Small:
    """A device whose memory holds logits of so many rows."""

    def __init__(self, holds: int) -> None:
        self.holds, self.asked = holds, [0][:0]

    def __call__(self, tokens: Tensor) -> Tensor:
        self.asked.append(len(tokens))
        if len(tokens) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens[..., None] * torch.ones(VOCAB)


def test_rows_are_asked_in_parts_that_fit_and_never_in_larger_ones_again() -> None:
    model = Small(2)
    parts, tokens = Parts(model), torch.arange(7 * CONTEXT).view(7, CONTEXT)
    for _ in range(2):
        found = parts(tokens)
        assert isinstance(found, Tensor)
        assert torch.equal(found, tokens[..., None] * torch.ones(VOCAB))
    assert model.asked == [7, 4, *[2, 2, 2, 1] * 2]


def test_a_row_that_does_not_fit_is_out_of_memory() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Parts(Small(0))(torch.zeros(5, CONTEXT))


# --- of what length ----------------------------------------------------------------


def sums(tokens: Tensor) -> Tensor:
    """Causal: of the tokens so far."""
    return tokens.cumsum(1)[..., None] * torch.linspace(0, 1, VOCAB)


def of_its_length(tokens: Tensor) -> Tensor:
    """Causal, but for how long the row is."""
    return sums(tokens) / tokens.size(1)


def of_whole_rows(tokens: Tensor) -> Tensor:
    """A weight for each place, as in a mixer."""
    return (tokens.float() @ torch.ones(CONTEXT, CONTEXT).triu())[..., None] * torch.linspace(0, 1, VOCAB)


class Counting:
    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model, self.shapes = model, [(0, 0)][:0]

    def __call__(self, tokens: Tensor) -> Tensor:
        self.shapes.append((tokens.size(0), tokens.size(1)))
        return self.model(tokens)


WHOLE = torch.arange(ROWS * CONTEXT).view(ROWS, CONTEXT) % VOCAB


def ask_short(model: Counting) -> list[Tensor]:
    """A whole batch, then two of six rows that are five tokens long."""
    lengths = Lengths(model, CONTEXT)
    answers = [lengths(WHOLE), *(lengths(torch.cat([WHOLE, WHOLE])[:, :5]) for _ in range(2))]
    assert all(isinstance(answer, Tensor) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Tensor)]


def test_short_rows_are_asked_as_they_are_where_it_makes_no_difference() -> None:
    model = Counting(sums)
    for answer in ask_short(model)[1:]:
        assert torch.equal(answer, torch.cat([sums(WHOLE)] * 2)[:, :5])
    assert model.shapes == [(3, 8), (3, 8), (3, 8), (6, 5), (6, 5)]


@pytest.mark.parametrize("model", [of_its_length, of_whole_rows])
def test_short_rows_are_filled_up_where_it_does(model: Callable[[Tensor], Tensor]) -> None:
    """Also where the model cannot be asked otherwise, and always in the shape of a whole batch."""
    counting = Counting(model)
    for answer in ask_short(counting)[1:]:
        assert torch.equal(
            answer, torch.cat([model(torch.nn.functional.pad(WHOLE[:, :5], (0, 3)))] * 2)[:, :5]
        )
    assert counting.shapes == [(3, 8), (3, 8), (3, 8), (6, 5), (3, 8), (3, 8)]


# --- as processes ------------------------------------------------------------------


@pytest.fixture
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    scoring = Scoring(make_data(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("work"))
    save_file(tiny_model().state_dict(), scoring.checkpoint)
    scoring.train.write_text(IMPORTABLE)
    return scoring


def test_compact_answers_are_scored_and_confirmed(scoring: Scoring) -> None:
    scoring.worker["compact"] = scoring.judge["compact"] = True
    scored, confirmed = scoring.confirm()
    assert (scored["status"], confirmed["status"]) == ("scored", "confirmed")
    expected = reference_bpb(tiny_model(), scoring.data, rows_of(scoring.data).scored)
    assert scored["val_bpb"] == pytest.approx(expected, abs=1e-5)
    assert scored["probes"]["repeat"]["largest_nats"] == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (("return logits", "return logits / 0"), "not-finite"),
        (("return logits", "logits[..., 5] = -float('inf')\n            return logits"), "not-finite"),
        (("return logits", "return logits.long()"), "wrong-dtype"),
    ],
)
def test_compact_answers_hide_nothing(scoring: Scoring, change: tuple[str, str], cause: str) -> None:
    scoring.worker["compact"] = scoring.judge["compact"] = True
    scoring.train.write_text(IMPORTABLE.replace(*change))
    result, _, errors = scoring.run()
    assert (result["status"], result.get("cause")) == ("refused", cause), errors


def test_a_large_negative_mask_is_an_honest_one(scoring: Scoring) -> None:
    scoring.worker["compact"] = scoring.judge["compact"] = True
    masked = "logits = torch.where(torch.arange(261) == 260, -1e9, logits)\n            return logits"
    scoring.train.write_text(IMPORTABLE.replace("return logits", masked))
    result, _, errors = scoring.run()
    assert result["status"] == "scored", errors


def test_a_worker_that_waits_reads_nothing_before_the_word(scoring: Scoring) -> None:
    """Neither train.py nor the checkpoint need be there; the word may come before it waits."""
    text, weights = scoring.train.read_bytes(), scoring.checkpoint.read_bytes()
    scoring.train.unlink()
    scoring.checkpoint.unlink()
    scoring.worker["waits"] = True
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with scoring.working() as worker:
            waits_for_signal(worker)
            assert not list(scoring.replies.iterdir())
            scoring.train.write_bytes(text)
            scoring.checkpoint.write_bytes(weights)
            worker.send_signal(signal.SIGUSR1)
            worker.send_signal(signal.SIGUSR1)  # a second one changes nothing
            with scoring.judging() as judge:
                assert judge.stdout is not None
                assert '"scored"' in judge.stdout.readline()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_judge_that_waits_reads_nothing_before_the_word(scoring: Scoring) -> None:
    hidden = scoring.data / "judge.hidden"
    (scoring.data / "judge").rename(hidden)
    scoring.judge["waits"] = True
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with scoring.judging() as judge:
            waits_for_signal(judge)
            hidden.rename(scoring.data / "judge")
            judge.send_signal(signal.SIGUSR1)
            with scoring.working():
                assert judge.stdout is not None
                assert '"scored"' in judge.stdout.readline()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def waits_for_signal(process: "subprocess.Popen[str]") -> None:
    """Returns when it sleeps in sigwait."""
    deadline = time.monotonic() + 60
    while "sigtimedwait" not in Path(f"/proc/{process.pid}/wchan").read_text(encoding="utf-8"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        os.sched_yield()


def test_importing_the_worker_starts_nothing_on_a_gpu() -> None:
    """What it does before the word; the driver would count it as a user of the GPU."""
    before = "import worker, torch; worker.get_ready(); print(torch.cuda.is_initialized())"
    run = subprocess.run(
        [sys.executable, "-c", before],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "harness")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "False"
