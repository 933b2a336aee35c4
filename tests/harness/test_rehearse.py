"""Rehearsals: honest texts pass, broken ones get the line that breaks, everything else proves nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.dropin.shapes import OTHERWISE, WINDOWED
from tests.harness.scoring import FLAT, HARNESS, IMPORTABLE, make_data

MANY = """
import dataclasses, json, os, sys
from pathlib import Path
from rehearse import Config, rehearse
for folder in map(Path, sys.argv[1:]):
    os.environ["GLOVEBOX_OUT"] = str(folder)
    report = rehearse(Config.from_json((folder / "config.json").read_text()))
    (folder / "report.json").write_text(json.dumps(dataclasses.asdict(report)))
"""
"""Rehearses one text after the other from one process, which imports torch once for all of them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


Finding = tuple[str, str]
"""Result and detail."""


def rehearse(
    data: Path, out: Path, texts: Mapping[str, str], *, gpu: bool = False, checkpoint: int = 1 << 20
) -> dict[str, Finding]:
    folders = [out / str(number) for number in range(len(texts))]
    for folder, train_py in zip(folders, texts.values(), strict=True):
        folder.mkdir()
        (folder / "train.py").write_text(train_py)
        config = {"train": str(folder / "train.py"), "out": str(folder), "gpu": gpu}
        (folder / "config.json").write_text(json.dumps(config | {"max_checkpoint_bytes": checkpoint}))
    environment = os.environ | {
        "GLOVEBOX_DATA": str(data / "public"),
        "PYTHONPATH": str(HARNESS),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([sys.executable, "-c", MANY, *map(str, folders)], env=environment, timeout=200, check=True)
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    return {name: (r["result"], r["detail"]) for name, r in zip(texts, reports, strict=True)}


def changed(old: str, new: str, text: str = IMPORTABLE) -> str:
    assert old in text
    return text.replace(old, new)


IN_FORWARD = "        before = "
DECORATED = changed(IN_FORWARD, f"        x = torch.compile(dynamic=False)(f)(x)\n{IN_FORWARD}")
QUANTISED = """        x = x.cumsum(1) * torch.arange(1, idx.size(1) + 1)[:, None]
        scale = x.detach().abs().amax({}, keepdim=True) / 448
        rounded = (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale
        x = x + (rounded - x).detach()
"""
EXPERTS = """        flat = x.flatten(0, 1)
        second = (flat[:, 0] > 0).nonzero()[:{}, 0]
        x = flat.index_add(0, second, flat[second]).view_as(x)
"""
COUNTS = """
import torch
class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("pairs", torch.zeros(261, 261))
    def forward(self, idx):
        return (self.pairs[idx] + 1).log()
def build_model():
    return Counts()
"""
EXTRA = """    def get_extra_state(self):
        return {}

    def set_extra_state(self, state):
        assert state == {{"steps": [3, None]}}

    def forward("""


def with_part(lines: str) -> str:
    return changed(IN_FORWARD, lines + IN_FORWARD)


def masked(mask: str) -> str:
    """Rows mixed by a mask of ones below the diagonal, made as said."""
    mixed = with_part("        here = idx.size(1)\n        x = x + 0.3 * self.mask[:here, :here] @ x\n")
    made = f"mask = torch.ones(32, 32).tril()\n        {mask}\n        self.mix"
    return changed("self.mix =", f"{made} =", mixed)


def with_extra_state(state: str) -> str:
    return changed("    def forward(", EXTRA.format(state))


HONEST = {
    "counts, no gradient": COUNTS,
    "build_model assigned": changed(
        "def build_model():\n    return Tiny()", "import functools\nbuild_model = functools.partial(Tiny)"
    ),
    "extra state": with_extra_state('{"steps": [3, None]}'),
    "mask in a buffer": masked('self.register_buffer("mask", mask)'),
    "mask as a frozen parameter": masked("self.mask = torch.nn.Parameter(mask, requires_grad=False)"),
    "trained and masked in forward": changed(
        "self.mask[:here", "self.mask.tril()[:here", masked("self.mask = torch.nn.Parameter(mask)")
    ),
    "float8, a scale for each token": with_part(QUANTISED.format("-1")),
    "experts without a capacity": with_part(EXPERTS.format("")),
    "importable": IMPORTABLE,
    "flat, compiled": FLAT,
    "logits and a loss": changed("return logits\n", "return logits, None\n"),
    "no loss of its own": changed("idx, targets=None, reduction", "idx, cache=None, targets=None, reduction"),
    "prints a lot": 'print(\'{"result": "failed", "detail": ""}\' * 1000)\n' + IMPORTABLE,
    "zero at first": changed("x = torch.tanh", "x = 0 * torch.tanh"),
    "the full context only": changed(IN_FORWARD, f"        assert idx.size(1) == 32\n{IN_FORWARD}"),
    "looks at the length": changed("x = torch.tanh", "x = x * idx.size(1); x = torch.tanh"),
    "compiled functions": f"import torch\n@torch.compile\ndef f(x): return x\n{DECORATED}",
    "asks for the compiled": FLAT.replace(
        "\noptimizer", "\nmodel = torch.compile(model)._orig_mod\noptimizer", 1
    ),
}


def test_honest_texts_pass(data: Path, tmp_path: Path) -> None:
    assert rehearse(data, tmp_path, HONEST) == dict.fromkeys(HONEST, ("passed", ""))


def test_scripts_that_ask_for_flash_attention_pass(data: Path, tmp_path: Path) -> None:
    texts = {"as upstream": WINDOWED, "as forks do": OTHERWISE}
    assert rehearse(data, tmp_path, texts) == dict.fromkeys(texts, ("passed", ""))


def test_an_unknown_kernel_is_named(data: Path, tmp_path: Path) -> None:
    text = changed("get_kernel(repo)", 'get_kernel("kernels-community/activation")', WINDOWED)
    ((result, detail),) = rehearse(data, tmp_path, {"": text}).values()
    assert result == "failed" and "train.py, line 19" in detail
    assert "no kernel 'kernels-community/activation' here" in detail


BROKEN = {
    "extra state that is no JSON": (
        with_extra_state("{3}"),
        ("in training", "TypeError: state_dict() holds a set under '_extra_state'", "get_extra_state()"),
    ),
    "mask that is trained": (
        masked("self.mask = torch.nn.Parameter(mask)"),
        ("at scoring", "as soon as mask changes", "make it a buffer"),
    ),
    "float8, one scale for all": (
        with_part(QUANTISED.format("(0, 1, 2)")),
        ("at scoring", "among other rows", "scale by token, not by tensor"),
    ),
    "float8, a scale for each sequence": (
        with_part(QUANTISED.format("(1, 2)")),
        ("at scoring", "not causal"),
    ),
    "experts with a capacity": (
        with_part(EXPERTS.format("len(flat) // 3")),
        ("at scoring", "among other rows", "without a capacity"),
    ),
    "statistics of the batch": (
        with_part("        x = x - x.mean((0, 1))\n"),
        ("at scoring", "among other rows", "no statistics of the batch"),
    ),
    "build": (
        changed("        self.mix", "        self.nix = torch.nn.Lineal(1, 1)\n        self.mix"),
        ("in training: train.py, line", "in __init__: self.nix = torch.nn.Lineal(1, 1)", "AttributeError"),
    ),
    "no model": (IMPORTABLE.replace("return Tiny()", "return 3"), ("neither build_model() nor",)),
    "exit": ("import sys; sys.exit(3)\n" + IMPORTABLE, ("SystemExit: 3",)),
    "os._exit": ("import os; os._exit(0)\n" + IMPORTABLE, ("ended its process with status 0",)),
    "segfault": ("import ctypes; ctypes.string_at(0)\n" + IMPORTABLE, ("by signal SIGSEGV",)),
    "forward": (changed("Linear(48, 24)", "Linear(47, 24)"), ("in forward", "mat1 and mat2 shapes")),
    "loss": (
        changed("targets.flatten()", "targets.flaten()"),
        ("in training: train.py, line", "no attribute 'flaten'"),
    ),
    "backward": (
        "import torch\nclass Gate(torch.autograd.Function):\n"
        "    forward = staticmethod(lambda ctx, x: x.clone())\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g.nope()\n"
        + changed("x = torch.tanh", "x = Gate.apply(x); x = torch.tanh"),
        ("in training", "in backward: return g.nope()", "no attribute 'nope'"),
    ),
    "at the full context": (
        changed(IN_FORWARD, f"        x = x + torch.zeros(16, 24)[torch.arange(idx.size(1))]\n{IN_FORWARD}"),
        ("in training: train.py, line", "in forward", "index 16 is out of bounds"),
    ),
    "no gradient": (
        changed(
            "        return torch.nn",
            "        logits = logits.detach().requires_grad_()\n        return torch.nn",
        ),
        ("no parameter of the model gets a gradient",),
    ),
    "shape": (changed("return logits\n", "return logits[:, -1:]\n"), ("[1, 1, 261], not [1, 32, 261]",)),
    "no logits": (changed("return logits\n", "return logits.long()\n"), ("gives torch.int64",)),
    "nan": (changed("return logits\n", "return logits * float('nan')\n"), ("NaN or infinite",)),
    "nan gradient": (
        changed("before = ", "x = x + (x - x.detach()).sqrt() * 0; before = "),
        ("in training",),
    ),
    "sees the future": (
        changed("(0, 0, 1, -1)", "(0, 0, -1, 1)"),
        ("at scoring", "not causal"),
    ),
    "averages the whole row": (
        changed("x = self.embed(idx)", "x = self.embed(idx); x = x + 0.1 * x.mean(1, keepdim=True)"),
        ("not causal",),
    ),
    "created in forward": (
        changed(
            IN_FORWARD,
            "        if not hasattr(self, 'late'): self.late = torch.nn.Linear(24, 24)\n"
            f"        x = self.late(x)\n{IN_FORWARD}",
        ),
        ("at scoring", "checkpoint does not fit the model", "late.weight"),
    ),
    "not in the state": (
        changed(
            "return Tiny()", "model = Tiny(); model.scale *= os.getpid() % 1000 + 1; return model"
        ).replace("import torch\n", "import os, torch\n", 1),
        ("at scoring", "not in its state_dict()"),
    ),
    "too large": (
        changed("Embedding(261, 24)", "Embedding(26100, 24)"),
        ("at scoring", "allowed are 1048576"),
    ),
}


@pytest.fixture(scope="module")
def findings(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    texts = {name: train_py for name, (train_py, _) in BROKEN.items()}
    return rehearse(data, tmp_path_factory.mktemp("broken"), texts)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_texts_get_what_breaks(findings: dict[str, Finding], name: str) -> None:
    result, detail = findings[name]
    assert result == "failed", detail
    for words in BROKEN[name][1]:
        assert words in detail


CUDA_ONLY = {"": FLAT.replace("model = Tiny()", "model = Tiny().to('cuda')")}


def test_a_script_for_a_gpu_fails_only_where_a_run_has_none_either(data: Path, tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    result, detail = rehearse(data, tmp_path / "gpu", CUDA_ONLY, gpu=True)[""]
    assert (result, "needs the GPU" in detail) == ("inconclusive", True)
    result, detail = rehearse(data, tmp_path, CUDA_ONLY)[""]
    assert (result, "cuda" in detail.lower()) == ("failed", True)


def test_want_of_memory_or_disk_proves_nothing(data: Path, tmp_path: Path) -> None:
    errors = ("MemoryError", "OSError(28, 'No space left on device')")
    texts = {error: changed(IN_FORWARD, f"        raise {error}\n{IN_FORWARD}") for error in errors}
    texts["killed"] = "import os; os.kill(os.getpid(), 9)\n" + IMPORTABLE
    assert {result for result, _ in rehearse(data, tmp_path, texts).values()} == {"inconclusive"}


def test_the_shipped_baseline_passes(prepared: Path, tmp_path: Path) -> None:
    baseline = {"": (HARNESS / "train.py").read_text()}
    assert rehearse(prepared, tmp_path, baseline, checkpoint=1 << 30)[""] == ("passed", "")


def test_the_report_is_all_that_is_printed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('{}', flush=True)\n" + IMPORTABLE)
    config = {"train": str(tmp_path / "train.py"), "out": str(tmp_path), "gpu": False}
    command = [sys.executable, str(HARNESS / "rehearse.py"), json.dumps(config | {"max_checkpoint_bytes": 1})]
    folders = {"GLOVEBOX_DATA": str(data / "public"), "GLOVEBOX_OUT": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | folders, capture_output=True, timeout=100, check=True)
    report = json.loads(done.stdout)
    assert (report["result"], "allowed are 1" in report["detail"]) == ("failed", True)
    assert b"{}" in done.stderr
