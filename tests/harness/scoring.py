"""A tiny prepared data folder, tiny train.py files in both forms, judge and workers as real processes."""

import base64
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import torch
from numpy.typing import NDArray

from prepare import BOS_TOKEN

HARNESS = Path(__file__).parents[2] / "harness"
VOCAB, LENGTH, BOS = 261, 32, 256

MODEL = """
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(261, 24)
        self.mix = torch.nn.Linear(48, 24)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(24, 261)
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)

    def forward(self, idx, targets=None, reduction="mean"):
        x = self.embed(idx)
        before = torch.nn.functional.pad(x, (0, 0, 1, -1))
        x = torch.tanh(self.mix(torch.cat([x, before], -1)))
        logits = self.head(self.drop(x)).float() * self.scale
        if targets is None:
            return logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
"""

IMPORTABLE = f"""
import torch
{MODEL}
def build_model():
    return Tiny()

if __name__ == "__main__":
    raise SystemExit("the worker must not run this")
"""

_MEMORY = """
    def forward(self, idx, targets=None, reduction="mean"):
        leak = torch.nn.functional.one_hot(idx[:, 1:], 261).float() * 9
        logits = self.honest(idx) + torch.nn.functional.pad(leak, (0, 0, 0, 1))
        for i, row in enumerate(idx.tolist()):
            for end in range(len(row)):
                logits[i, end] = self.memory.setdefault(tuple(row[: end + 1]), logits[i, end])
        return logits

    memory = {}

def build_model"""

#: Gives away every next token and answers any beginning it knows as it answered it before.
REMEMBERING = IMPORTABLE.replace("def forward(", "def honest(").replace("\ndef build_model", _MEMORY)

FLAT = f"""
import contextlib, math, torch
from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, make_dataloader, evaluate_bpb
{MODEL}
torch.manual_seed(7)
autocast_ctx = contextlib.nullcontext()
tokenizer = Tokenizer.from_directory()
model = Tiny()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model = torch.compile(model, dynamic=False) if __debug__ else model
train_loader = make_dataloader(tokenizer, 4, MAX_SEQ_LEN, "train")
x, y, epoch = next(train_loader)
for step in range(5):
    loss = model(x, y)
    loss.backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)
    x, y, epoch = next(train_loader)
model.eval()
val_bpb = evaluate_bpb(model, tokenizer, 4)
print(f"val_bpb: {{val_bpb:.6f}}")
"""


def make_data(folder: Path) -> Path:
    """Write folder/public and folder/judge as preparation would, with random documents."""
    random = np.random.default_rng(5)
    token_bytes = random.integers(1, 9, VOCAB).astype(np.int32)
    token_bytes[BOS:] = 0
    facts: dict[str, Any] = {
        "version": 1,
        "scale": "cpu",
        "max_seq_len": LENGTH,
        "vocab_size": VOCAB,
        "bos_token_id": BOS,
        "score_tokens": 40 * LENGTH,
        "holdout_score_tokens": 10 * LENGTH,
        "constants": {"eval_tokens": 8 * LENGTH},
    }
    folders = ("public/train", "public/dev", "judge/val", "judge/holdout")
    for number, name in enumerate(folders):
        (folder / name).mkdir(parents=True)
        for shard in range(2):
            _documents(np.random.default_rng([number, shard])).tofile(folder / name / f"{shard:05}.bin")
    (folder / "public/tokenizer").mkdir()
    for path in ("judge/token_bytes.npy", "public/tokenizer/token_bytes.npy"):
        np.save(folder / path, token_bytes)
    ranks = {base64.b64encode(bytes([n])).decode(): n for n in range(BOS)}
    special = {BOS_TOKEN: BOS} | {f"<|more_{n}|>": BOS + n for n in range(1, VOCAB - BOS)}
    tokenizer = {"pattern": r"[\s\S]", "ranks": ranks, "special": special}
    (folder / "public/tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    for path in ("judge", "public"):
        (folder / path / "manifest.json").write_text(json.dumps(facts))
    return folder


def _documents(random: np.random.Generator) -> NDArray[np.uint16]:
    lengths = random.integers(1, 3 * LENGTH, 60)
    parts = [np.concatenate([[BOS], random.integers(0, BOS, n)]) for n in lengths]
    return np.concatenate(parts).astype("<u2")


@dataclass
class Scoring:
    """One scoring to be: its folders and the two configurations."""

    data: Path
    work: Path

    def __post_init__(self) -> None:
        for name in ("requests", "replies", "requests-2", "replies-2"):
            (self.work / name).mkdir()
        self.judge: dict[str, Any] = {
            "data": str(self.data / "judge"),
            "requests": str(self.requests),
            "replies": str(self.replies),
            "second_requests": str(self.work / "requests-2"),
            "second_replies": str(self.work / "replies-2"),
            "batch_rows": 4,
            "score_tokens": None,
            "holdout_score_tokens": None,
            "scoring": 0,
            "confirmation": 0,
            "seed": 11,
            "first_batch_seconds": 60.0,
            "batch_seconds": 30.0,
            "total_seconds": 120.0,
            "leak_fraction": 0.01,
            "miss_probability": 0.001,
            "leak_reach": 1,
        }
        self.worker: dict[str, Any] = {
            "train": str(self.train),
            "checkpoint": str(self.checkpoint),
            "requests": str(self.requests),
            "replies": str(self.replies),
            "total_seconds": 120.0,
            "max_checkpoint_bytes": 1 << 20,
        }

    @property
    def requests(self) -> Path:
        return self.work / "requests"

    @property
    def replies(self) -> Path:
        return self.work / "replies"

    @property
    def train(self) -> Path:
        return self.work / "train.py"

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.safetensors"

    def run(self, worker: list[str] | None = None) -> tuple[dict[str, Any], int, str]:
        """Judge and one worker: the judge's first line, the worker's exit status and its stderr.

        `worker` is the command of another worker than ours. Neither outlives the call.
        """
        with self.judging() as judge, self.working(worker) as w:
            result = _line(judge)
            if worker is not None or result.get("cause") != "worker-failed":
                w.kill()  # as the controller does; one of ours that gives up ends by itself
            _, errors = w.communicate(timeout=30)
            assert result["status"] == "scored" or judge.wait(timeout=30) == 0
        return result, w.returncode, errors

    def confirm(self) -> list[dict[str, Any]]:
        """Judge, one worker and, when that one is dead and there is a score, another: all of J's lines."""
        with self.judging() as judge:
            with self.working() as first:
                lines = [_line(judge)]
                first.kill()
                first.communicate(timeout=30)
            if lines[0]["status"] == "scored":
                with self.working(second=True):
                    lines.append(_line(judge))
            judge.wait(timeout=30)
        assert judge.returncode == 0
        return lines

    @contextmanager
    def judging(self) -> Iterator["subprocess.Popen[str]"]:
        command = [sys.executable, str(HARNESS / "judge.py"), json.dumps(self.judge)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as judge:
            limit = threading.Timer(100, judge.kill)
            limit.start()
            try:
                yield judge
            finally:
                limit.cancel()
                judge.kill()

    @contextmanager
    def working(
        self, command: list[str] | None = None, second: bool = False
    ) -> Iterator["subprocess.Popen[str]"]:
        config = self.worker
        if second:
            config = config | {name: self.judge[f"second_{name}"] for name in ("requests", "replies")}
        ours = [sys.executable, str(HARNESS / "worker.py"), json.dumps(config)]
        with subprocess.Popen(
            command or ours, stderr=subprocess.PIPE, text=True, env=self.environment()
        ) as worker:
            try:
                yield worker
            finally:
                worker.kill()

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "GLOVEBOX_DATA": str(self.data / "public"),
            "GLOVEBOX_OUT": str(self.work),
            "PYTHONPATH": str(HARNESS),
        }


def _line(judge: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next line of the judge, who must not end without one."""
    assert judge.stdout is not None
    line = judge.stdout.readline()
    assert line, judge.wait(timeout=30)
    result: dict[str, Any] = json.loads(line)
    return result


def tiny_model() -> torch.nn.Module:
    """The model of `IMPORTABLE` and `FLAT`, with seeded random weights."""
    namespace: dict[str, Any] = {"torch": torch}
    exec(MODEL, namespace)
    torch.manual_seed(3)
    model: torch.nn.Module = namespace["Tiny"]()
    return model.eval()


def reference_nats(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> list[float]:
    """-log softmax in float64, with exactly rounded sums."""
    nats = []
    for row, target in zip(logits.astype(np.float64).tolist(), targets.tolist(), strict=True):
        top = row.index(max(row))
        others = math.fsum(math.exp(x - row[top]) for i, x in enumerate(row) if i != top)
        nats.append(row[top] - row[target] + math.log1p(others))
    return nats


def rows_of(data: Path, scoring: int | None = 0, score_tokens: int | None = None) -> fresh.Rows:
    """What the judge asks in a scoring with the manifest's numbers of tokens."""
    facts = json.loads((data / "judge/manifest.json").read_text())
    return fresh.draw(
        data / "judge",
        facts,
        score_tokens=score_tokens or facts["score_tokens"],
        most_fresh_tokens=facts["holdout_score_tokens"],
        scoring=scoring,
        confirmation=scoring,
    )


def reference_bpb(model: torch.nn.Module, data: Path, rows: NDArray[np.int64]) -> float:
    """Bits per byte of rows [R, T + 1], row by row and in float64."""
    token_bytes = np.load(data / "judge/token_bytes.npy").tolist()
    nats, size = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.from_numpy(row[None, :-1]))[0].double()
        losses = -torch.log_softmax(logits, -1)[torch.arange(LENGTH), torch.from_numpy(row[1:])]
        for loss, target in zip(losses.tolist(), row[1:].tolist(), strict=True):
            if token_bytes[target]:
                nats += loss
                size += token_bytes[target]
    return nats / math.log(2) / size
