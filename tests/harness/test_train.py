"""The baseline: its model, its optimizer, its clock, and whole runs of it in processes of their own."""

import importlib.util
import itertools
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import flex_attention

from controller.agents import search_space as constants
from controller.core.scoring.curve import CurveReader

TRAIN = Path(__file__).parents[2] / "harness" / "train.py"
SUMMARY = (
    "val_bpb",
    "training_seconds",
    "total_seconds",
    "startup_seconds",
    "compile_seconds",
    "peak_vram_mb",
    "mfu_percent",
    "total_tokens_M",
    "num_steps",
    "num_params_M",
    "depth",
)


def load(path: Path, name: str = "train_under_test") -> ModuleType:
    """Import a train.py from where it lies."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(public_data: Path) -> ModuleType:
    torch.set_num_threads(1)  # small models; and threads of several test processes would wait for each other
    return load(TRAIN)


def small_model(train: ModuleType, windows: tuple[int, ...] = (8, 32)) -> torch.nn.Module:
    """Every layer does something: fresh ones are the identity, and would pass any test of causality."""
    torch.manual_seed(0)
    model: torch.nn.Module = train.GPT(train.ModelConfig(64, 128, 32, 64, 32, windows))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(1))


# --- the model ---


def test_build_model_gives_the_same_weights_every_time(train: ModuleType) -> None:
    first, second = train.build_model().state_dict(), train.build_model().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_importing_does_nothing_but_define(harness_environment: dict[str, str], tmp_path: Path) -> None:
    code = "import train; train.build_model()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=harness_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])


def test_logits_and_losses_have_the_agreed_shapes(train: ModuleType) -> None:
    model, tokens = small_model(train), random_tokens(3, 20)
    targets = tokens.roll(-1, 1)
    logits = model(tokens)
    assert (logits.shape, logits.dtype) == ((3, 20, 64), torch.float32)
    each = model(tokens, targets, reduction="none")
    assert each.numel() == 60
    torch.testing.assert_close(model(tokens, targets), each.mean())
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(each, expected)
    targets[:, 5:] = -1
    torch.testing.assert_close(model(tokens, targets), each.view(3, 20)[:, :5].mean())


@pytest.mark.parametrize("cut", [1, 2, 9, 31])
def test_the_future_changes_nothing_before_it(train: ModuleType, cut: int) -> None:
    model, tokens = small_model(train), random_tokens(2, 32)
    other = torch.cat((tokens[:, :cut], (tokens[:, cut:] + 1) % 64), dim=1)
    with torch.no_grad():
        before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :cut], after[:, :cut], rtol=0, atol=1e-5)
    assert (before[:, cut:] - after[:, cut:]).abs().max() > 1e-2


def test_a_layer_sees_its_window_and_no_further(train: ModuleType) -> None:
    model, tokens = small_model(train, windows=(8,)), random_tokens(1, 32)
    reach = 8 - 1 + 1  # the window's oldest key, and the token that this key's pair starts with
    logits = {}
    for age in (reach, reach + 1):
        other = tokens.clone()
        other[0, 31 - age] = (other[0, 31 - age] + 1) % 64
        with torch.no_grad():
            logits[age] = (model(other) - model(tokens))[0, 31].abs().max()
    assert logits[reach] > 1e-4
    assert logits[reach + 1] < 1e-6


def queries_keys_values(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = torch.randn(3, 2, 2, tokens, 16, generator=torch.Generator().manual_seed(2))
    return q, k, v


def with_dense_mask(train: ModuleType, tokens: int, window: int) -> torch.Tensor:
    mask = train.window_mask(tokens, tokens, window, torch.device("cpu"))
    q, k, v = queries_keys_values(tokens)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("tokens", [1, 2, 49, 50, 51, 99, 100, 101, 150, 199, 200])
@pytest.mark.parametrize("window", [1, 7, 50])
def test_attention_in_blocks_and_the_dense_mask_agree(train: ModuleType, tokens: int, window: int) -> None:
    blocks = train.attend(*queries_keys_values(tokens), window=window)
    torch.testing.assert_close(blocks, with_dense_mask(train, tokens, window), rtol=1e-5, atol=1e-6)


def test_flex_attention_and_the_dense_mask_agree(train: ModuleType) -> None:
    blocks, (q, k, v) = train.window_blocks(200, 50, torch.device("cpu")), queries_keys_values(200)
    with warnings.catch_warnings():
        # That it is slow without torch.compile; torch says so once in a process, whichever test comes first.
        warnings.simplefilter("ignore", UserWarning)
        sparse: Any = flex_attention(q, k, v, block_mask=blocks)
    torch.testing.assert_close(sparse, with_dense_mask(train, 200, 50), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 23, 31])
def test_a_shorter_row_is_answered_like_the_head_of_a_longer_one(train: ModuleType, length: int) -> None:
    model, tokens = small_model(train, windows=(8, 8, 32)), random_tokens(2, 32)
    with torch.no_grad():
        head, whole = model(tokens[:, :length]), model(tokens)[:, :length]
    torch.testing.assert_close(head, whole, rtol=0, atol=1e-5)


def test_windows_follow_the_pattern_and_end_with_the_whole_context(train: ModuleType) -> None:
    assert train.windows_of("SSL", 5, 256) == (64, 64, 256, 64, 256)
    assert train.windows_of("S", 1, 256) == (256,)


# --- the hardware ---


@pytest.mark.parametrize(
    ("capability", "dtype", "ways"),
    [
        (None, torch.float32, 1),  # no card
        ((6, 1), torch.float32, 1),  # Pascal: its float16 is slow
        ((7, 0), torch.float16, 1),  # Volta
        ((7, 5), torch.float16, 1),  # Turing: Triton has dropped it
        ((8, 0), torch.bfloat16, 3),
        ((8, 9), torch.bfloat16, 3),
        ((9, 0), torch.bfloat16, 3),
        ((12, 0), torch.bfloat16, 3),
    ],
)
def test_a_card_is_used_for_what_it_is_good_at(
    train: ModuleType, capability: tuple[int, int] | None, dtype: torch.dtype, ways: int
) -> None:
    assert train.cuda_dtype(capability) == dtype
    assert len(train.ways(capability, True)) == ways
    assert train.ways(capability, True)[-1] == train.PLAIN
    assert train.ways(capability, False) == (train.PLAIN,)


GPU_SIZE = (8192, 65536, 2048, 512, 128, (512, 512, 512, 2048) * 2)
"""Vocabulary, pairs, context, width, channels of a head and windows at the default size of the GPU scale."""


@pytest.mark.parametrize(
    ("gigabytes", "dtype", "compiled", "rows"),
    [
        (140, torch.bfloat16, True, 128),
        (78, torch.bfloat16, True, 128),
        (47, torch.bfloat16, True, 64),
        (23, torch.bfloat16, True, 32),
        (15, torch.bfloat16, True, 32),
        (11, torch.bfloat16, True, 16),
        (7.3, torch.bfloat16, True, 16),
        (5.5, torch.bfloat16, True, 8),
        (15, torch.float16, False, 8),
        (7.3, torch.float16, False, 4),
        (7.3, torch.float32, False, 4),
        (0.1, torch.bfloat16, True, 1),
    ],
)
def test_a_smaller_card_takes_fewer_rows_at_a_time(
    train: ModuleType, gigabytes: float, dtype: torch.dtype, compiled: bool, rows: int
) -> None:
    each = train.row_bytes(train.ModelConfig(*GPU_SIZE), dtype, compiled)
    assert train.rows_that_fit(train.FREE_SHARE * gigabytes * 1e9, each, 256) == rows


@pytest.mark.parametrize(
    ("room", "wanted", "rows"),
    [(128, 256, 128), (128, 64, 64), (10, 256, 8), (10, 250, 10), (100, 131, 66), (1, 256, 1), (0, 7, 1)],
)
def test_rows_divide_a_step_if_they_can(train: ModuleType, room: int, wanted: int, rows: int) -> None:
    assert train.rows_that_fit(room, 1, wanted) == rows


@pytest.mark.parametrize("ratio", [2, 4])
def test_what_a_pass_keeps_is_what_is_reckoned_with(
    train: ModuleType, ratio: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "MLP_RATIO", ratio)
    monkeypatch.setattr(train, "LOGIT_SOFTCAP", 15.0)
    config = train.ModelConfig(512, 128, 64, 128, 64, (16, 16, 64, 64))
    model, tokens = train.GPT(config), torch.randint(512, (2, 64))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, tokens)
    assert 0.5 < sum(kept.values()) / (2 * train.row_bytes(config, torch.float32, compiled=False)) < 1.0


# --- the optimizer ---


def test_the_optimizers_fit_a_batch(train: ModuleType) -> None:
    torch.manual_seed(0)
    model = train.GPT(train.ModelConfig(64, 128, 32, 64, 32, (8, 32)))
    tokens = random_tokens(4, 32)
    optimizers = train.build_optimizers(model)
    owned = [p for group in train.groups_of(optimizers) for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    assert len(owned) == len(list(model.parameters()))
    losses = []
    for _ in range(40):
        train.set_rates(optimizers, 0.3)
        loss = model(tokens, tokens.roll(-1, 1))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 3 < losses[0]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalise_makes_all_singular_values_about_one(
    train: ModuleType, shape: tuple[int, int, int]
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(train.orthogonalise(matrices))
    assert values.shape == (shape[0], 16)
    assert 0.6 < values.min() <= values.max() < 1.4


def test_rates_fall_to_zero_over_the_training_time(train: ModuleType) -> None:
    assert train.lr_multiplier(0.0) == 1.0
    assert train.lr_multiplier(1 - train.WARMDOWN_FRACTION) == pytest.approx(1.0)
    assert train.lr_multiplier(1 - train.WARMDOWN_FRACTION / 2) == pytest.approx(0.5)
    assert train.lr_multiplier(1.0) == 0.0


def test_a_loss_that_is_not_finite_ends_the_run(train: ModuleType) -> None:
    assert train.finite(torch.tensor(2.5), 7) == 2.5
    with pytest.raises(SystemExit, match="training diverged: the loss of step 7 is nan") as end:
        train.finite(torch.tensor(float("nan")), 7)
    assert isinstance(end.value.code, str)  # the interpreter prints it and exits with status 1


# --- the constants ---


def test_every_choice_of_a_cpu_constant_trains(public_data: Path, tmp_path: Path) -> None:
    source = TRAIN.read_text()
    tunable = constants.tunable(constants.find(source), "cpu")
    assert len(tunable) > 15
    for constant in tunable:
        if isinstance(constant.domain, constants.Choices):
            for value in constant.domain.values:
                path = tmp_path / "train.py"
                path.write_text(constants.replace(source, {constant.name: value}))
                train = load(path, "train_with_another_constant")
                tokens = torch.zeros(1, train.MAX_SEQ_LEN, dtype=torch.int64)
                loss = train.build_model()(tokens, tokens)
                assert loss.isfinite(), f"{constant.name} = {value}"


# --- whole runs ---


def start_run(environment: dict[str, str], budget: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(TRAIN)],
        env=environment | {"GLOVEBOX_BUDGET_SECONDS": str(budget)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_ends_in_time_with_a_checkpoint_and_a_claim(
    train: ModuleType, harness_environment: dict[str, str], tmp_path: Path
) -> None:
    began = time.monotonic()
    run = start_run(harness_environment, budget=18)
    output, _ = run.communicate(timeout=120)
    assert time.monotonic() - began < 18
    assert run.returncode == 0, output
    claim = dict(line.split(":") for line in output.split("\n---\n")[1].splitlines())
    assert tuple(claim) in (SUMMARY, SUMMARY[1:])  # no estimate on a machine too busy for it
    assert output.splitlines()[-1] == "depth:            " + str(train.DEPTH)
    assert 0.5 < float(claim.get("val_bpb", "1")) < 8
    assert int(claim["num_steps"]) > train.SETTLING_STEPS
    reader = CurveReader(18.0)
    reader.feed(output.encode())
    known = [loss for loss in reader.curve.losses if loss is not None]
    assert len(known) > 5 and known[-1] < known[0]
    train.build_model().load_state_dict(load_file(tmp_path / "checkpoint.safetensors"), strict=True)


def test_a_run_killed_long_before_its_end_leaves_a_checkpoint(
    train: ModuleType, harness_environment: dict[str, str], tmp_path: Path
) -> None:
    run = start_run(harness_environment, budget=300)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    train.build_model().load_state_dict(load_file(tmp_path / "checkpoint.safetensors"), strict=True)


# --- compiled ---

HAS_COMPILER = shutil.which("g++") is not None
torchs_own_warnings = pytest.mark.filterwarnings("default")  # what its compiler warns about is not ours


class Counting:
    """A backend of torch.compile that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def go_counted(model: Any, way: object) -> Counting:
    """`model.go(way)` with that backend."""
    torch.compiler.reset()
    backend = Counting()
    model.go(way)
    for part in (model.stem, *model.blocks, model.head):
        part.compile(dynamic=False, fullgraph=True, backend=backend)
    return backend


def eight_layers(train: ModuleType) -> Any:
    return train.GPT(train.ModelConfig(64, 128, 32, 64, 32, train.windows_of("SSSL", 8, 32)))


@torchs_own_warnings
def test_eight_layers_are_five_graphs_and_stay_so(train: ModuleType) -> None:
    """The beginning, the end, and a short or a whole window with a value embedding, a short one without."""
    model, tokens = eight_layers(train), random_tokens(2, 32)
    counting = go_counted(model, train.Way(compiled=True, flex=False))
    for _ in range(2):
        model(tokens, tokens).backward()
        model.zero_grad()
    with torch.no_grad():
        estimate = model(tokens, tokens, reduction="none")
    assert counting.graphs == 5
    assert not estimate.requires_grad
    model.go(train.PLAIN)
    torch.testing.assert_close(estimate, model(tokens, tokens, reduction="none"), rtol=1e-4, atol=1e-4)


@torchs_own_warnings
def test_a_mask_for_flex_attention_makes_no_more_of_them(train: ModuleType) -> None:
    model = eight_layers(train).requires_grad_(False)  # on a CPU flex attention cannot learn
    counting = go_counted(model, train.Way(compiled=True, flex=True))
    first, second = (model(random_tokens(rows, 32)[:2]) for rows in (2, 3))
    assert counting.graphs == 5
    model.go(train.PLAIN)
    torch.testing.assert_close(first, model(random_tokens(2, 32)), rtol=1e-4, atol=1e-4)
    assert second.shape == first.shape


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU")
@torchs_own_warnings
def test_what_fails_in_one_way_is_done_in_the_next(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flex attention cannot learn on a CPU; so it is what a card may be that the compiler fails on."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    tokens = random_tokens(2, 32)
    model: Any = small_model(train, windows=(8,))
    assert train.warm_up(model, train.ways((9, 0), True), wanted=2) == 2
    assert model.way == train.Way(compiled=True, flex=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "flex=True) with 2 rows: " in capsys.readouterr().out
    compiled = model(tokens)
    model.go(train.PLAIN)
    torch.testing.assert_close(compiled, model(tokens), rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_tried_with_fewer_rows(
    train: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    class Large(train.GPT):  # type: ignore[name-defined, misc]
        def forward(self, idx: torch.Tensor, *rest: object) -> object:
            if len(idx) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(idx, *rest)

    model = Large(train.ModelConfig(64, 128, 32, 64, 32, (8, 32)))
    assert train.warm_up(model, (train.PLAIN,), wanted=8) == 2
    assert capsys.readouterr().out.count("OutOfMemoryError") == 2


def test_gradients_that_overflow_in_float16_cost_a_step_and_no_weights(train: ModuleType) -> None:
    class Steep(train.GPT):  # type: ignore[name-defined, misc]
        def forward(self, *arguments: object) -> Any:
            return 1e5 * super().forward(*arguments)

    model, tokens = Steep(train.ModelConfig(64, 128, 32, 64, 32, (8, 32))), random_tokens(2, 32)
    optimizers, batch = train.build_optimizers(model), (tokens, tokens.roll(-1, 1), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    losses = []
    for _ in range(40):
        loss, _ = train.train_step(model, optimizers, scaler, batch, itertools.repeat(batch), 2)
        losses.append(loss.item())
        if len(losses) == 1:
            assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert losses[0] == losses[1] > losses[-1]
    assert scaler.get_scale() < 2.0**127
