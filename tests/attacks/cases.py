"""What an attack is, and the train.py that all of them are cut from.

The texts are run in containers only: no test ever imports one. In T a text's `__name__` is `__main__`; the
worker imports it as `train`, and that is how an attack knows that its moment has come.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.app.trial import Trial

NO_GAIN = "no gain"
"""Scored, and not better than the uniform distribution that every attack here starts from."""
NON_CAUSAL, STATEFUL = "reject non-causal", "reject stateful"
BATCH_DEPENDENT = "reject batch-dependent"
PROTOCOL, NOT_FINITE = "reject protocol", "reject not-finite"
WRONG_SHAPE, WRONG_DTYPE = "reject wrong-shape", "reject wrong-dtype"
OVER_BUDGET, UNCONFIRMED = "reject over-budget", "reject unconfirmed"
LOAD, FORWARD, LATE = "crash load", "crash forward", "crash worker-timeout"


@dataclass(frozen=True)
class Case:
    """One attack: a train.py, and what must come of it."""

    row: str
    """Its row in the table of threats, like M1."""
    name: str
    train_py: str
    expected: tuple[str, ...]
    """Acceptable endings: `NO_GAIN`, or a verdict and its cause."""
    why: str
    """What makes it fail."""
    judge: Mapping[str, Any] = field(default_factory=dict)
    """Settings of scoring that differ, like a time limit."""
    complaint: Callable[[Trial], str] = lambda trial: ""
    """What else is wrong with how it ended; empty if nothing is."""


# An attack needs no training. T writes zeros as weights without importing torch, which would cost it seconds.
_UNIFORM = """
import os
import sys
import numpy as np
import prepare

V = prepare.VOCAB_SIZE
CHECKPOINT = "/work/checkpoint.safetensors"
IN_WORKER = __name__ == "train"

if not IN_WORKER:
    from safetensors.numpy import save_file

    def save(**weights):
        save_file({"bias": np.zeros(V, np.float32), **weights}, CHECKPOINT)
        os.chmod(CHECKPOINT, 0o644)

    save()
@TRAINER@
    sys.exit()

import torch
import torch.nn.functional as F

def peek(logits, idx, where=None):
    \"\"\"Make the true next token all but certain, at the positions `where`; unknown at the last one.\"\"\"
    known = torch.ones(idx.shape, dtype=torch.bool) if where is None else where.clone()
    known[:, -1] = False
    logits += 12.0 * F.one_hot(idx.roll(-1, 1), V) * known[..., None]

@MODULE@

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(V))
@INIT@

    def forward(self, idx):
        logits = self.bias.expand(*idx.shape, V).clone()
@FORWARD@
        return logits

def build_model():
    return Model()

@WORKER@
"""


def uniform(
    *, forward: str = "", init: str = "", module: str = "", trainer: str = "", worker: str = ""
) -> str:
    """A model that predicts nothing, and an attack on top.

    `forward` goes into its forward pass, where `idx` is int64 [B, T] and `logits` are zeros [B, T, V]; `init`
    into its constructor; `module` before it. `trainer` runs in T, after the checkpoint was saved; `worker`
    in W, after everything else.
    """
    parts = {
        "@TRAINER@": _indent(trainer, 4),
        "@MODULE@": _indent(module, 0),
        "@INIT@": _indent(init, 8),
        "@FORWARD@": _indent(forward, 8),
        "@WORKER@": _indent(worker, 0),
    }
    text = _UNIFORM
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


_TRAINED = """
import torch
import torch.nn.functional as F
from torch import nn

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, Tokenizer, make_dataloader, save_checkpoint

WIDTH, STEPS = 48, 40

class Mixer(nn.Module):
@MIXER@

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.mixer = Mixer()
        self.head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
@INIT@

    def forward(self, idx):
        x = self.embed(idx)
        x = x + self.mixer(F.rms_norm(x, (WIDTH,)))
@OUTPUT@

@BUILD@

def loss_of(model, inputs, targets):
    logits = model(inputs)
    logits = logits[0] if isinstance(logits, tuple) else logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = make_dataloader(Tokenizer.from_directory(), 16, MAX_SEQ_LEN, "train")
    for step in range(STEPS):
        inputs, targets, epoch = next(batches)
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
@STEP@
    print(f"loss: {loss.item():.3f}")

if __name__ == "__main__":
    torch.manual_seed(1)
    model = build_model()
@SETUP@
    train(model)
@SAVE@
"""

_BUILD = """
def build_model():
    return Model()
"""


def trained(
    mixer: str,
    *,
    init: str = "",
    output: str = "return self.head(F.rms_norm(x, (WIDTH,)))",
    build: str = _BUILD,
    setup: str = "",
    step: str = "",
    save: str = "save_checkpoint(model)",
) -> str:
    """A small model, trained in T for some steps.

    `mixer` is the body of a module [B, T, WIDTH] -> [B, T, WIDTH]; `init` adds to the model's constructor;
    `output` returns the logits; `build` defines build_model; `setup`, `step` and `save` run in T before
    training, after each step, and at the end.
    """
    parts = {
        "@MIXER@": _indent(mixer, 4),
        "@INIT@": _indent(init, 8),
        "@OUTPUT@": _indent(output, 8),
        "@BUILD@": _indent(build, 0),
        "@STEP@": _indent(step, 8),
        "@SETUP@": _indent(setup, 4),
        "@SAVE@": _indent(save, 4),
    }
    text = _TRAINED
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


def _indent(text: str, columns: int) -> str:
    return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * columns)
