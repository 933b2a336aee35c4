"""What train.py imports: clock, tokenizer, packing, batches, the dev score, the checkpoint."""

import functools
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

import prepare
from controller.core.scoring.curve import POINTS, CurveReader
from controller.core.scoring.runlog import crash_cause
from controller.core.values import TRIVIAL_CAUSES, Cause

BOS = 0  # in the packing tests
Document = NDArray[np.uint16]


def python(code: str, environment: dict[str, str]) -> list[float]:
    """Run code in a fresh interpreter; the numbers it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return [float(word) for word in done.stdout.split()]


def reported(code: str, environment: dict[str, str]) -> list[str]:
    """What prepare.report prints in a fresh interpreter whose budget is 64 s."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import prepare\nclock = [0.0]\nprepare.time_left = lambda: 64 - clock[0]\n{code}",
        ],
        env=environment | {"GLOVEBOX_BUDGET_SECONDS": "64"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


# --- the training loss ---


def test_losses_are_averaged_between_lines_that_the_controller_reads(
    harness_environment: dict[str, str],
) -> None:
    code = """
for step in range(64_000):
    clock[0] = step / 1000
    prepare.report(step, 4.0 if step % 2 else 2.0)
"""
    lines = reported(code, harness_environment)
    assert prepare.REPORT_LINES - 2 <= len(lines) <= prepare.REPORT_LINES
    reader = CurveReader(64.0)
    reader.feed(("\n".join(lines) + "\n").encode())
    assert len(reader.curve.losses) == POINTS
    assert reader.curve.losses[5:] == pytest.approx((3.0,) * (POINTS - 5), abs=0.01)


def test_a_loss_that_is_no_number_is_reported_at_once_and_does_not_flood(
    harness_environment: dict[str, str],
) -> None:
    code = """
prepare.report(0, 3.0)
for step in range(1, 1000):
    clock[0] = step * 1e-6
    prepare.report(step, 3.0 if step < 500 else float("nan"))
"""
    lines = reported(code, harness_environment)
    assert lines == ["report: step=0 seconds=0.00 loss=3", "report: step=500 seconds=0.00 loss=nan"]


def test_a_loss_of_any_size_is_read(harness_environment: dict[str, str]) -> None:
    (line,) = reported("prepare.report(1, 1e30)", harness_environment)
    reader = CurveReader(64.0)
    reader.feed(f"{line}\n".encode())
    assert reader.curve.losses == (1e6,)


def test_a_tensor_can_be_reported(harness_environment: dict[str, str]) -> None:
    code = "import torch\nprepare.report(7, torch.tensor(2.5, requires_grad=True))"
    assert reported(code, harness_environment) == ["report: step=7 seconds=0.00 loss=2.5"]


# --- constants and the clock ---


def test_constants_come_from_the_manifest(public_data: Path) -> None:
    assert (prepare.SCALE, prepare.MAX_SEQ_LEN, prepare.VOCAB_SIZE) == ("cpu", 256, 1024)
    assert prepare.manifest()["constants"]["eval_tokens"] == prepare.EVAL_TOKENS


def test_import_works_without_data_and_says_what_is_missing(
    harness_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = harness_environment | {"GLOVEBOX_DATA": str(tmp_path / "nothing")}
    python("import prepare; prepare.pack_rows; prepare.time_left()", environment)
    code = """
import prepare
for name in ("MAX_SEQ_LEN", "VOCAB_SIZE", "EVAL_TOKENS"):
    try:
        getattr(prepare, name)
    except prepare.DataNotPreparedError as error:
        print("run `glovebox prepare`" in str(error) and 1)
"""
    assert python(code, environment) == [1, 1, 1]


def test_data_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    monkeypatch.setenv("GLOVEBOX_DATA", str(tmp_path))
    prepare.manifest.cache_clear()
    with pytest.raises(prepare.DataNotPreparedError, match="another version"):
        _ = prepare.MAX_SEQ_LEN


def test_importing_does_not_load_torch(harness_environment: dict[str, str]) -> None:
    assert python("import sys, prepare; print(int('torch' in sys.modules))", harness_environment) == [0]


def test_time_left_counts_from_the_start_of_the_container(harness_environment: dict[str, str]) -> None:
    started = time.monotonic() - 100
    environment = harness_environment | {"GLOVEBOX_STARTED": str(started), "GLOVEBOX_BUDGET_SECONDS": "250"}
    left, budget = python("import prepare; print(prepare.time_left(), prepare.TIME_BUDGET)", environment)
    assert 140 < left <= started + 250 - time.monotonic() + 10
    assert left < 150
    assert budget == pytest.approx(0.8 * 250 - 3)


def test_time_left_counts_from_the_start_of_the_process_otherwise(
    harness_environment: dict[str, str],
) -> None:
    code = """
import time
first_line = time.monotonic()
import prepare
print(first_line, time.monotonic() + prepare.time_left() - prepare.WALL_SECONDS)
"""
    before = time.monotonic()
    first_line, started = python(code, harness_environment)
    tick = 0.02  # /proc counts in hundredths of a second
    assert before - tick <= started <= first_line + tick


@pytest.mark.parametrize("wall", [1, 5, 20, 300])
def test_time_budget_leaves_a_reserve(harness_environment: dict[str, str], wall: int) -> None:
    environment = harness_environment | {"GLOVEBOX_BUDGET_SECONDS": str(wall)}
    (budget,) = python("import prepare; print(prepare.TIME_BUDGET)", environment)
    assert 0 < budget <= wall


# --- tokenizer ---


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_token_bytes_add_up_to_the_bytes_of_any_text(prepared: Path, text: str) -> None:
    tokenizer = prepare.Tokenizer.from_directory(prepared / "public" / "tokenizer")
    token_bytes = np.load(prepared / "public" / "tokenizer" / "token_bytes.npy")
    ids = tokenizer.encode(text)
    assert token_bytes[np.array(ids, dtype=int)].sum() == len(text.encode())
    assert tokenizer.decode(ids) == text  # type: ignore[arg-type]


def test_token_bytes_of_tokens_that_are_no_utf8_by_themselves(public_data: Path) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    token_bytes = prepare.get_token_bytes()
    assert (token_bytes.dtype, token_bytes.shape) == (torch.int32, (1024,))
    for byte in range(256):
        assert token_bytes[tokenizer.enc.encode_single_token(bytes([byte]))] == 1
    specials = [tokenizer.enc.encode_single_token(name) for name in prepare.SPECIAL_TOKENS]
    assert specials == [1020, 1021, 1022, 1023]
    assert token_bytes[specials].tolist() == [0, 0, 0, 0]
    assert int((token_bytes == 0).sum()) == 4


@pytest.mark.parametrize("unit", [" ", "a", "!", "\n", "_-"], ids=ascii)
def test_a_run_of_any_length_is_encoded(public_data: Path, unit: str) -> None:
    """tiktoken panics at a million characters of one class, and a panic is no Exception."""
    tokenizer = prepare.Tokenizer.from_directory()
    text = "some text" + unit * (1_000_001 // len(unit) + 1) + "more"
    [ids] = cast("list[list[int]]", tokenizer.encode([text]))
    assert tokenizer.decode(ids) == text


def test_a_text_without_long_runs_is_cut_nowhere(public_data: Path) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    text = (" " * 65_536 + "x" * 65_536) * 3 + " some words"
    assert tokenizer._pieces(text) == [text]
    assert tokenizer.encode([" " * 1_000_001]) == [tokenizer.encode(" " * 1_000_001)]
    assert len(tokenizer._pieces(text + "x" * 65_532)) == 2


def test_encode_prepends_and_takes_lists(public_data: Path) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    plain = tokenizer.encode("some text")
    bos = tokenizer.get_bos_token_id()
    assert tokenizer.encode("some text", prepend=bos) == [bos, *plain]
    assert tokenizer.encode(["some text", ""], prepend=prepare.BOS_TOKEN) == [[bos, *plain], [bos]]
    assert tokenizer.get_vocab_size() == prepare.VOCAB_SIZE
    assert bos not in tokenizer.encode(prepare.BOS_TOKEN)


# --- packing and batches ---


def pack_slowly(documents: list[Document], capacity: int, buffer_size: int) -> Iterator[list[Document]]:
    """The rule of pack_rows as a scan over the buffer; yields the pieces of each row."""
    source, waiting = iter(documents), list[Document]()
    row: list[Document] = []
    while True:
        waiting += itertools.islice(source, buffer_size - len(waiting))
        if not waiting:
            return
        room = capacity - sum(map(len, row))
        fitting = [len(document) for document in waiting if len(document) <= room]
        wanted = max(fitting) if fitting else min(map(len, waiting))
        index = next(i for i, document in enumerate(waiting) if len(document) == wanted)
        row.append(waiting.pop(index)[:room])
        if sum(map(len, row)) == capacity:
            yield row
            row = []


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), max_size=80),
    capacity=st.integers(2, 24),
    buffer_size=st.integers(1, 12),
)
def test_rows_are_full_and_made_of_documents(lengths: list[int], capacity: int, buffer_size: int) -> None:
    """Every document has its own number in all its tokens but the first, so that pieces can be told apart."""
    documents = [np.array([BOS] + [i + 1] * (length - 1), np.uint16) for i, length in enumerate(lengths)]
    rows = list(prepare.pack_rows(iter(documents), capacity, buffer_size))
    expected = list(pack_slowly(documents, capacity, buffer_size))
    assert len(rows) == len(expected)
    for row, pieces in zip(rows, expected, strict=True):
        assert row.dtype == np.int64 and row.shape == (capacity,) and row[0] == BOS
        starts = np.flatnonzero(row == BOS)
        assert np.diff([*starts, capacity]).tolist() == [len(piece) for piece in pieces]
        for piece in np.split(row, starts[1:]):
            assert len(set(piece[1:].tolist())) <= 1  # tokens of one document only
    used = [
        int(n) for row in rows for piece in np.split(row, np.flatnonzero(row == BOS)[1:]) for n in piece[1:2]
    ]
    assert len(used) == len(set(used))  # and each document once


def test_read_documents_gives_back_the_shards(public_data: Path) -> None:
    documents = list(prepare.read_documents(public_data / "dev", prepare.manifest()["bos_token_id"]))
    shards = np.concatenate([np.fromfile(p, "<u2") for p in sorted((public_data / "dev").glob("*.bin"))])
    assert np.array_equal(np.concatenate(documents), shards)


def test_batches_are_shifted_rows_and_epochs_count(public_data: Path) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    epochs = []
    for inputs, targets, epoch in prepare.make_dataloader(tokenizer, 8, 64, "val", buffer_size=50):
        assert inputs.shape == targets.shape == (8, 64)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.device.type == device and inputs.is_contiguous() and targets.is_contiguous()
        assert (inputs[:, 0] == tokenizer.get_bos_token_id()).all()
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        epochs.append(epoch)
        if epoch == 3:
            break
    assert sorted(set(epochs)) == [1, 2, 3] and epochs == sorted(epochs)


def test_the_dataloader_knows_two_splits(public_data: Path) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    train, _, _ = next(prepare.make_dataloader(tokenizer, 2, 32, "train"))
    dev, _, _ = next(prepare.make_dataloader(tokenizer, 2, 32, "val"))
    assert not torch.equal(train, dev)
    with pytest.raises(KeyError):
        next(prepare.make_dataloader(tokenizer, 2, 32, "holdout"))


# --- the dev score and the checkpoint ---


class Bigram(torch.nn.Module):
    """Upstream's interface: a loss with a reduction, or logits without targets."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(1024, 1024)
        self.calls = 0

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None, reduction: str = "mean"
    ) -> torch.Tensor:
        self.calls += 1
        logits: torch.Tensor = self.table(idx)
        if targets is None:
            return logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class LogitsOnly(torch.nn.Module):
    def __init__(self, bigram: Bigram) -> None:
        super().__init__()
        self.bigram = bigram

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.bigram(idx)  # type: ignore[no-any-return]


def test_evaluate_bpb_of_a_uniform_model(public_data: Path, tmp_path: Path) -> None:
    """A uniform model needs log2(V) bits a token, so its bpb follows from counting tokens and bytes."""
    tokenizer, model = prepare.Tokenizer.from_directory(), Bigram()
    torch.nn.init.zeros_(model.table.weight)
    token_bytes = prepare.get_token_bytes()
    batches = prepare.make_dataloader(tokenizer, 16, prepare.MAX_SEQ_LEN, "val")
    steps = prepare.EVAL_TOKENS // (16 * prepare.MAX_SEQ_LEN)
    counted = [token_bytes[targets] for _, targets, _ in itertools.islice(batches, steps)]
    text_tokens = sum(int((b > 0).sum()) for b in counted)
    expected = math.log2(1024) * text_tokens / sum(int(b.sum()) for b in counted)
    assert prepare.evaluate_bpb(model, tokenizer, 16) == pytest.approx(expected, rel=1e-6)
    assert model.calls == steps
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_evaluate_bpb_gives_both_interfaces_the_same_score(public_data: Path) -> None:
    tokenizer, model = prepare.Tokenizer.from_directory(), Bigram()
    score = prepare.evaluate_bpb(model, tokenizer, 16)
    assert prepare.evaluate_bpb(LogitsOnly(model), tokenizer, 16) == pytest.approx(score, rel=1e-6)
    assert score > 3.0


class Slow(Bigram):
    """After so many batches there is only the time left to leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
        super().__init__()
        self.patch, self.batches = monkeypatch, batches
        self.set_clock()

    def set_clock(self) -> None:
        left = 1e6 if self.calls < self.batches else prepare.LEAVE_SECONDS
        self.patch.setattr(prepare, "time_left", lambda: left)

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None, reduction: str = "mean"
    ) -> torch.Tensor:
        out = super().forward(idx, targets, reduction)
        self.set_clock()
        return out


@pytest.mark.parametrize(("batches", "estimates"), [(0, False), (1, False), (2, True), (7, True)])
def test_evaluate_bpb_stops_and_says_so_when_time_is_up(
    batches: int,
    estimates: bool,
    public_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer, model = prepare.Tokenizer.from_directory(), Slow(monkeypatch, batches)
    assert math.isfinite(prepare.evaluate_bpb(model, tokenizer, 16)) == estimates
    assert model.calls == batches
    assert capsys.readouterr().out == f"evaluate_bpb: no time for more than {batches} of 8 batches\n"
    assert (tmp_path / "checkpoint.safetensors").exists()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(16, 4)
        self.head = torch.nn.Linear(4, 16, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("transposed", torch.arange(6.0).view(2, 3).T)


def test_checkpoint_of_a_tied_and_compiled_model(public_data: Path, tmp_path: Path) -> None:
    model = Tied()
    path = prepare.save_checkpoint(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    assert path == tmp_path / "checkpoint.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644
    weights = load_file(path)
    assert set(weights) == {"embed.weight", "head.weight", "transposed"}
    model.load_state_dict(weights, strict=True)
    assert torch.equal(weights["embed.weight"], weights["head.weight"])
    assert torch.equal(weights["transposed"], torch.arange(6.0).view(2, 3).T)


def test_checkpoint_of_compiled_submodules(public_data: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
    assert set(load_file(prepare.save_checkpoint(model))) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("attempt", range(3))
def test_a_run_killed_while_saving_leaves_a_whole_checkpoint(
    harness_environment: dict[str, str], tmp_path: Path, attempt: int
) -> None:
    code = """
import itertools, torch, prepare
model = torch.nn.Linear(2000, 1000)
for value in itertools.count(1):
    torch.nn.init.constant_(model.weight, value), torch.nn.init.constant_(model.bias, value)
    prepare.save_checkpoint(model)
    print(value, flush=True)
"""
    environment = harness_environment
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(2 + attempt):
            process.stdout.readline()
        while not list(
            tmp_path.glob(".checkpoint.safetensors.*")
        ):  # until it is in the middle of the next one
            assert process.poll() is None
        process.kill()
    weights = load_file(tmp_path / "checkpoint.safetensors")
    values = {value for tensor in weights.values() for value in np.unique(tensor.numpy()).tolist()}
    assert len(values) == 1
    assert values.pop() >= 2 + attempt


LOADER = """
import os, time, torch, prepare
from safetensors.torch import load_file

def saved():
    path = os.environ["GLOVEBOX_OUT"] + "/checkpoint.safetensors"
    return load_file(path)["bias"].item() if os.path.exists(path) else -1

def left_until_the_kill(seconds):
    prepare._STARTED = time.monotonic() + seconds - prepare.WALL_SECONDS

model = torch.nn.Linear(1, 1)
torch.nn.init.constant_(model.bias, 1)
batches = prepare.make_dataloader(prepare.Tokenizer.from_directory(), 1, 8, "train")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("thread", [False, True])
def test_a_run_that_is_meant_for_a_gpu_and_has_none_ends_at_once(
    prepared: Path, harness_environment: dict[str, str], tmp_path: Path, thread: bool
) -> None:
    shutil.copytree(prepared / "public", tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scale": "gpu"}))
    ask = "threading.Thread(target=next, args=(batches,)).start()" if thread else "next(batches)"
    code = f"""
import prepare, threading, time
print("step 1", end="")
batches = prepare.make_dataloader(prepare.Tokenizer.from_directory(), 1, 8, "train")
{ask}
time.sleep(60)
"""
    environment = harness_environment | {"GLOVEBOX_DATA": str(tmp_path / "data")}
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=60, check=False)
    ended = run([sys.executable, "-u", "-c", code], env=environment | {"GLOVEBOX_BUDGET_SECONDS": "100"})
    assert (ended.returncode, ended.stdout) == (1, f"step 1\n{prepare.NO_GPU}\n"), ended.stderr
    found = crash_cause(ended.stdout, exit_code=1, oom_killed=False, killed_at_limit=False)
    assert found == (Cause.NO_GPU, prepare.NO_GPU) and Cause.NO_GPU not in TRIVIAL_CAUSES
    if not thread:  # a rehearsal, a worker, a person: no run
        code = code.replace("time.sleep(60)", "")
        assert run([sys.executable, "-c", code], env=environment).returncode == 0


def test_the_loader_saves_for_a_script_that_does_not_when_the_kill_is_near(
    harness_environment: dict[str, str],
) -> None:
    code = """
left_until_the_kill(50); next(batches); print(saved())
left_until_the_kill(4.9); next(batches); print(saved())
model.bias.data.fill_(2); next(batches); print(saved())
left_until_the_kill(2.4); next(batches); print(saved())
model.bias.data.fill_(3); left_until_the_kill(-1); next(batches); print(saved())
"""
    environment = harness_environment | {"GLOVEBOX_BUDGET_SECONDS": "100"}
    assert python(LOADER + code, environment) == [-1, 1, 1, 2, 2]


def test_the_loader_saves_earlier_for_a_script_that_rarely_asks(harness_environment: dict[str, str]) -> None:
    code = """
left_until_the_kill(5.5); next(batches)
asked = time.monotonic()
while time.monotonic() < asked + 0.3: pass
next(batches); print(saved())
left_until_the_kill(7)
while time.monotonic() < asked + 3.0: pass
left_until_the_kill(5.1); next(batches); print(saved())
"""
    environment = harness_environment | {"GLOVEBOX_BUDGET_SECONDS": "100"}
    assert python(LOADER + code, environment) == [-1, 1]


def test_the_loader_leaves_alone_what_a_script_saved_itself(harness_environment: dict[str, str]) -> None:
    code = """
prepare.save_checkpoint(model)
model.bias.data.fill_(2); left_until_the_kill(2); next(batches); print(saved())
"""
    environment = harness_environment | {"GLOVEBOX_BUDGET_SECONDS": "100"}
    assert python(LOADER + code, environment) == [1]


def test_a_script_whose_model_cannot_be_saved_gets_its_batches(harness_environment: dict[str, str]) -> None:
    code = """
def ask(left):
    left_until_the_kill(left); next(batches); print(saved())

model.register_buffer("nowhere", torch.ones(1, device="meta")); ask(4.9)
model = "gpt"; ask(2.4)
del model; ask(1.2)
model = torch.nn.Linear(1, 1); os.environ["GLOVEBOX_OUT"] = "/nowhere"; ask(0.6)
"""
    environment = harness_environment | {"GLOVEBOX_BUDGET_SECONDS": "100"}
    assert python(LOADER + code, environment) == [-1, -1, -1, -1]
