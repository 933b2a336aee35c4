"""The worker: both forms of train.py, hostile checkpoints, exit statuses; scored by a real judge."""

import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import prepare
import worker
from tests.harness.scoring import FLAT, IMPORTABLE, Scoring, make_data, reference_bpb, rows_of, tiny_model

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def scoring(data: Path, tmp_path: Path) -> Scoring:
    scoring = Scoring(data, tmp_path)
    scoring.train.write_text(IMPORTABLE)
    save_file(tiny_model().state_dict(), scoring.checkpoint)
    return scoring


def test_score_is_that_of_a_plain_evaluation(scoring: Scoring) -> None:
    result, status, errors = scoring.run()
    drawn = rows_of(scoring.data)
    for name, rows in (("val_bpb", drawn.scored), ("holdout_bpb", drawn.first.rows)):
        assert result[name] == pytest.approx(reference_bpb(tiny_model(), scoring.data, rows), rel=1e-6)
    assert (status, errors) == (-signal.SIGKILL, "")


#: Fetched ahead in a thread, as scripts for a GPU like to.
PREFETCHED = FLAT.replace(
    "train_loader = make_dataloader(tokenizer, 4",
    """
import queue, threading
def prefetched(loader):
    batches = queue.Queue(3)
    def fetch():
        for batch in loader:
            batches.put(batch)
    threading.Thread(target=fetch, daemon=True).start()
    while True:
        yield batches.get()
train_loader = prefetched(make_dataloader(tokenizer, 4""",
).replace('MAX_SEQ_LEN, "train")', 'MAX_SEQ_LEN, "train"))')


@pytest.mark.parametrize("script", [FLAT, PREFETCHED])
def test_flat_script_trains_and_is_scored_unedited(script: str, scoring: Scoring) -> None:
    scoring.train.write_text(script)
    trainer = [sys.executable, "-O", str(scoring.train)]  # -O: uncompiled here, compiled in the worker
    subprocess.run(trainer, env=scoring.environment(), cwd=scoring.work, check=True, timeout=60)
    result, status, _ = scoring.run()
    model = tiny_model()
    model.load_state_dict(worker.parse_checkpoint(scoring.checkpoint.read_bytes()))
    assert status == -signal.SIGKILL
    scored = rows_of(scoring.data).scored
    assert result["val_bpb"] == pytest.approx(reference_bpb(model, scoring.data, scored), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "cause", "status"),
    [
        (("logits = self", "raise ValueError('no'); logits = self"), "worker-failed", 13),
        (("logits = self", "raise MemoryError; logits = self"), "worker-failed", 14),
        (("return logits", "return logits[:, -1:]"), "wrong-shape", -signal.SIGKILL),
        (("return logits", "return logits[0]"), "wrong-shape", -signal.SIGKILL),
        (("return logits", "return logits[..., :-1]"), "wrong-shape", -signal.SIGKILL),
        (("return logits", "return torch.nn.functional.pad(logits, (0, 3))"), "wrong-shape", -signal.SIGKILL),
        (("return logits", "return logits.long()"), "wrong-dtype", -signal.SIGKILL),
        (("return logits", "return None"), "wrong-dtype", -signal.SIGKILL),
        (("return logits", "return logits / 0"), "not-finite", -signal.SIGKILL),
    ],
)
def test_what_the_model_may_not_return(
    scoring: Scoring, change: tuple[str, str], cause: str, status: int
) -> None:
    scoring.train.write_text(IMPORTABLE.replace(*change))
    result, got, errors = scoring.run()
    assert (result["status"], result["cause"], got) == ("refused", cause, status), errors


def test_logits_with_a_loss_beside_them_are_scored(scoring: Scoring) -> None:
    scoring.train.write_text(IMPORTABLE.replace("return logits", "return logits, None"))
    scoring.judge["batch_rows"] = None
    result, _, errors = scoring.run()
    assert result["status"] == "scored", errors
    scored = rows_of(scoring.data).scored
    assert result["val_bpb"] == pytest.approx(reference_bpb(tiny_model(), scoring.data, scored), rel=1e-6)


def test_bfloat16_logits_are_scored_as_they_are(scoring: Scoring) -> None:
    scoring.train.write_text(IMPORTABLE.replace("return logits", "return logits.bfloat16()"))
    result, _, _ = scoring.run()
    model = tiny_model()
    model.register_forward_hook(lambda _module, _inputs, logits: logits.bfloat16())
    scored = rows_of(scoring.data).scored
    assert result["val_bpb"] == pytest.approx(reference_bpb(model, scoring.data, scored), rel=1e-6)


def test_missing_checkpoint_ends_both_sides_at_once(scoring: Scoring) -> None:
    scoring.checkpoint.unlink()
    result, status, errors = scoring.run()
    assert (result["cause"], status) == ("worker-failed", 11)
    assert "the run left no checkpoint" in errors
    assert errors.splitlines()[-1] == "worker: - -"


@pytest.mark.parametrize(
    ("change", "last"),
    [
        (("logits = self", "raise ValueError('no'); logits = self"), "worker: ValueError {}"),
        (("self.head(self.drop(x))", "self.head(x[..., 1:])"), "worker: RuntimeError {}"),
        (("return logits", "return logits("), "worker: SyntaxError {}"),
        (("return Tiny()", "raise SystemExit('no')"), "worker: SystemExit {}"),
        (("return Tiny()", "raise type('Own', (Exception,), {})"), "worker: Own {}"),
        (("return Tiny()", "return None"), "worker: - -"),
    ],
)
def test_its_last_line_is_for_the_controller(scoring: Scoring, change: tuple[str, str], last: str) -> None:
    scoring.train.write_text(text := IMPORTABLE.replace(*change))
    _, _, errors = scoring.run()
    line = text[: text.index(change[1])].count("\n") + 1
    assert errors.splitlines()[-1] == last.format(line), errors


# --- train.py ------------------------------------------------------------------


@pytest.mark.usefixtures("_own_process_state")
@pytest.mark.parametrize("source", [IMPORTABLE, FLAT.replace("dynamic=False", "backend='eager'")])
def test_both_forms_build_an_uncompiled_model(
    source: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOVEBOX_DATA", str(data / "public"))
    prepare.manifest.cache_clear()
    (tmp_path / "train.py").write_text(source)
    _, model = worker.run_train(tmp_path / "train.py")
    prepare.manifest.cache_clear()
    assert list(model.state_dict()) == list(tiny_model().state_dict())


@pytest.mark.usefixtures("_own_process_state")
@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("import torch\ndef f(:", 10, "SyntaxError"),
        ("import nothing_like_it", 10, "ModuleNotFoundError"),
        ("raise SystemExit(0)", 10, "SystemExit"),
        ("x = 1", 10, "neither"),
        ("model = 'gpt'", 10, "neither"),
        ("def build_model(): return None", 10, "neither"),
        ("def build_model(): raise MemoryError", 14, "MemoryError"),
        ("def build_model(depth): ...\nmodel = depth", 10, "NameError"),
        ("import torch\ndef build_model(): return torch.empty(1 << 60)", 14, "RuntimeError"),
        ("import prepare\ndef build_model(): return next(prepare.make_dataloader())", 10, "FirstBatch"),
        ("x = '\udcff'", 10, "SyntaxError"),
    ],
)
def test_what_does_not_build(source: str, status: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(source, errors="surrogateescape")
    with pytest.raises(worker.Failure, match=reason) as failure:
        worker.run_train(tmp_path / "train.py")
    assert failure.value.status == status


@pytest.mark.parametrize(
    ("source", "importable"),
    [
        ("def build_model(): ...", True),
        ("def build_model(depth=4, *, width=8): ...", True),
        ("def build_model(depth): ...", False),
        ("def build_model(depth, width=8): ...", False),
        ("def build_model(*, width): ...", False),
        ("def build_model(*sizes): ...", True),
        ("class A:\n  def build_model(self): ...", False),
        ("if True:\n  def build_model(): ...", False),
        ("model = 1", False),
        ("build_model = functools.partial(Model, 4)", True),
        ("build_model: object = Model", True),
        ("build_model = lambda depth=4: Model(depth)", True),
        ("build_model = lambda depth: Model(depth)", False),
        ("build_model: object", False),
        ("self.build_model = Model", False),
    ],
)
def test_importable_form_needs_build_model_without_arguments(source: str, importable: bool) -> None:
    assert worker.is_importable(source) is importable


@pytest.mark.usefixtures("_own_process_state")
def test_what_was_assigned_to_build_model_is_called(tmp_path: Path) -> None:
    made = "import functools, torch\nbuild_model = functools.partial(torch.nn.Linear, 2, 3)"
    (tmp_path / "train.py").write_text(f"{made}\nif __name__ == '__main__': raise SystemExit('a script')")
    _, model = worker.run_train(tmp_path / "train.py")
    assert model.state_dict()["weight"].shape == (3, 2)


class Steps(torch.nn.Linear):
    """Knows more than its weights."""

    extra: object = None

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    )
)
def test_extra_state_comes_back_from_a_checkpoint(state: object) -> None:
    saved, loaded = Steps(2, 2), Steps(2, 2)
    saved.extra = state
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOVEBOX_OUT", folder)
        content = prepare.save_checkpoint(saved).read_bytes()
    worker.load_weights(loaded, worker.parse_checkpoint(content))
    assert loaded.extra == state and torch.equal(loaded.weight, saved.weight)


@pytest.mark.parametrize("state", [{3}, (1, 2), {1: "one"}, b"bytes", float("nan"), object()])
def test_extra_state_that_json_would_change_is_refused(state: object, tmp_path: Path) -> None:
    model = Steps(2, 2)
    model.extra = {"kept": state}
    with pytest.raises(TypeError, match=r"a dict under '_extra_state'.*get_extra_state\(\)"):
        prepare.save_checkpoint(model)


class Holding(torch.nn.Module):
    """A model with one more entry in its state."""

    held: torch.Tensor

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.layer = self.tied = torch.nn.Linear(2, 2)
        self.register_buffer("held", tensor)


NOT_STORABLE: dict[str, Callable[[], torch.Tensor]] = {
    "no memory": lambda: torch.empty(2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
    "expanded": lambda: torch.ones(1).expand(3),
    r"torch\.complex128": lambda: torch.ones(2, dtype=torch.complex128),
}


@pytest.mark.filterwarnings("ignore")  # of torch about kinds of tensors that it gives up or that are young
@pytest.mark.parametrize("reason", NOT_STORABLE)
def test_a_tensor_that_a_checkpoint_cannot_hold_is_refused_by_name(reason: str, tmp_path: Path) -> None:
    model = Holding(NOT_STORABLE[reason]())
    with pytest.raises(TypeError, match=f"under 'held' that .*{reason}"):
        prepare.save_checkpoint(model)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_lazy_module_is_refused_until_it_has_run() -> None:
    with pytest.raises(TypeError, match=r"under '0\.weight' that has no memory: .*run a lazy module once"):
        prepare.save_checkpoint(torch.nn.Sequential(torch.nn.LazyLinear(2)))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(4, 3).t(), torch.arange(8)[::2], torch.ones(2, 2)[0], torch.ones(2, dtype=torch.complex64)],
)
def test_tensors_of_any_strides_come_back(tensor: torch.Tensor, tmp_path: Path) -> None:
    saved, loaded = Holding(tensor), Holding(torch.zeros_like(tensor))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOVEBOX_OUT", str(tmp_path))
        content = prepare.save_checkpoint(saved).read_bytes()
    worker.load_weights(loaded, worker.parse_checkpoint(content))
    assert torch.equal(loaded.held, tensor) and torch.equal(loaded.layer.weight, saved.layer.weight)
    assert loaded.tied is loaded.layer


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained(public_data: Path) -> None:
    tokenizer = prepare.Tokenizer.from_directory()

    def train(model: torch.nn.Module) -> int:
        return sum(1 for _ in itertools.islice(prepare.make_dataloader(tokenizer, 1, 8, "train"), 2))

    for without_memory in (Holding(torch.empty(2, device="meta")), torch.nn.LazyLinear(2)):
        assert train(without_memory) == 2, "it may get memory before it is saved"
    with pytest.raises(TypeError, match="under 'held' that is expanded"):
        train(Holding(torch.ones(1).expand(3)))
    state = Steps(2, 2)
    state.extra = {"seen": {1, 2}}
    with pytest.raises(TypeError, match=r"a dict under '_extra_state'"):
        train(state)


# --- the checkpoint ------------------------------------------------------------


def test_compiled_names_fit_uncompiled_models_and_the_reverse() -> None:
    weights = {f"_orig_mod.{name}": tensor for name, tensor in tiny_model().state_dict().items()}
    parsed = worker.parse_checkpoint(save(weights))
    assert set(parsed) == set(tiny_model().state_dict())
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    assert isinstance(compiled, torch.nn.Module)
    partly = torch.nn.Sequential(compiled)
    worker.load_weights(partly, {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)})
    assert partly.state_dict()["0._orig_mod.weight"].sum() == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\x80\x04\x95" + b"pickle" * 9,
        struct.pack("<Q", worker.MAX_HEADER_BYTES + 1) + b" " * 100,
        struct.pack("<Q", 4000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,9999999]}}',
    ],
)
def test_what_is_no_safetensors_file(content: bytes) -> None:
    with pytest.raises(worker.Failure) as failure:
        worker.parse_checkpoint(content)
    assert failure.value.status == 12


@pytest.mark.parametrize(
    "weights",
    [
        {"weight": torch.ones(2, 2)},
        {"weight": torch.ones(2, 2), "bias": torch.ones(2), "more": torch.ones(1)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
        {},
    ],
)
def test_what_does_not_fit_the_model(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(worker.Failure) as failure:
        worker.load_weights(torch.nn.Linear(2, 2), weights)
    assert failure.value.status == 12


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(save({"a": torch.ones(1)}))
    path.symlink_to(target)


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, _sparse, _link, lambda path: path.symlink_to("/dev/zero")]
)
@pytest.mark.timeout(10)
def test_what_is_no_checkpoint_file(make: object, tmp_path: Path) -> None:
    assert callable(make)
    make(tmp_path / "checkpoint.safetensors")
    with pytest.raises(worker.Failure) as failure:
        worker.read_checkpoint(tmp_path / "checkpoint.safetensors", LIMIT)
    assert failure.value.status == 12


def test_size_limit_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"x" * 100)
    assert worker.read_checkpoint(path, 100) == b"x" * 100
    with pytest.raises(worker.Failure, match="100 bytes"):
        worker.read_checkpoint(path, 99)


# --- replies -------------------------------------------------------------------


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a tmpfs, as a workspace is."""
    folder = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(folder)
    subprocess.run(["rm", "-rf", folder], check=True)  # Python's own way ends where the folders are too deep


def holes(path: Path) -> bool:
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < path.stat().st_size


def test_no_holes_are_left_to_be_written_in_by_reading(in_memory: Path) -> None:
    (in_memory / "deep" / "er").mkdir(parents=True)
    for path in (in_memory / "sparse", in_memory / "deep" / "er" / "sparse"):
        with path.open("wb") as file:
            file.truncate(1_000_001)
    with (in_memory / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 16)
    (in_memory / "empty").touch()
    os.mkfifo(in_memory / "fifo")
    (in_memory / "link").symlink_to("/dev/zero")
    files = [path for path in in_memory.rglob("*") if path.is_file() and path.stat().st_size]
    assert all(map(holes, files)) and len(files) == 3
    worker.fill_holes(in_memory)
    assert not any(map(holes, files))


def test_holes_larger_than_the_room_are_refused(in_memory: Path) -> None:
    with (in_memory / "sparse").open("wb") as file:
        file.truncate(shutil.disk_usage(in_memory).free + (1 << 30))
    with pytest.raises(worker.Failure, match="do not fit") as caught:
        worker.fill_holes(in_memory)
    assert caught.value.status == worker.CHECKPOINT


def test_folders_deeper_than_can_be_looked_through_are_refused(in_memory: Path) -> None:
    here = os.open(in_memory, os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    with pytest.raises(worker.Failure, match="cannot be looked through"):
        worker.fill_holes(in_memory)
