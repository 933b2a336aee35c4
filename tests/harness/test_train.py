"""The baseline: its model, its optimizer, its clock, and whole runs of it in processes of their own."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import flex_attention

from controller.core import constants

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


def queries_keys_values(tokens: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(3, 2, 2, tokens, 16, generator=torch.Generator().manual_seed(2)).unbind()


def with_dense_mask(train: ModuleType, tokens: int, window: int) -> torch.Tensor:
    mask = train.window_mask(tokens, tokens, window, torch.device("cpu"))
    return torch.nn.functional.scaled_dot_product_attention(*queries_keys_values(tokens), attn_mask=mask)


@pytest.mark.parametrize("tokens", [1, 2, 49, 50, 51, 99, 100, 101, 150, 199, 200])
@pytest.mark.parametrize("window", [1, 7, 50])
def test_attention_in_blocks_and_the_dense_mask_agree(train: ModuleType, tokens: int, window: int) -> None:
    blocks = train.attend(*queries_keys_values(tokens), window=window)
    torch.testing.assert_close(blocks, with_dense_mask(train, tokens, window), rtol=1e-5, atol=1e-6)


def test_flex_attention_and_the_dense_mask_agree(train: ModuleType) -> None:
    blocks = train.window_blocks(200, 50, torch.device("cpu"))
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        sparse = flex_attention(*queries_keys_values(200), block_mask=blocks)
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
