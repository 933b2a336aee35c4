"""`python -m tests.attacks.plain TRAIN CHECKPOINT DATA`: bits per byte of a checkpoint, in one process.

No worker, no judge, no exchange: build the model, load the weights, sum up the losses in float64 row by row.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import fresh
import numpy as np
import torch
from safetensors.torch import load_file

import prepare


class _Training(BaseException):
    """A flat script has reached its first batch."""


def _no_batches(*_args: object) -> NoReturn:
    raise _Training


def build(train: Path) -> torch.nn.Module:
    """The model of train.py, in either of the two forms."""
    source = train.read_text(encoding="utf-8")
    module = types.ModuleType("train" if "build_model" in source else "__main__")
    prepare.make_dataloader = _no_batches  # type: ignore[assignment]
    sys.modules["train"] = module
    with contextlib.suppress(_Training):
        exec(compile(source, str(train), "exec"), module.__dict__)
    model: Any = module.build_model() if "build_model" in source else module.model
    uncompiled: torch.nn.Module = getattr(model, "_orig_mod", model)
    return uncompiled


def entry(name: str, tensor: torch.Tensor) -> tuple[str, Any]:
    """An entry of state_dict(): what is no tensor is stored as the bytes of a JSON text."""
    if name.endswith("#json"):
        return name.removesuffix("#json"), json.loads(bytes(tensor.tolist()))
    return name, tensor


def bits_per_byte(model: torch.nn.Module, data: Path) -> float:
    """Over the rows that the judge scores."""
    manifest = json.loads((data / "judge" / "manifest.json").read_bytes())
    numbers = {"score_tokens": manifest["score_tokens"], "most_fresh_tokens": 1}
    rows = fresh.draw(data / "judge", manifest, **numbers, scoring=None, confirmation=None).scored
    sizes = torch.from_numpy(np.load(data / "judge" / "token_bytes.npy").astype(np.int64))
    nats, size = 0.0, 0
    for row in torch.from_numpy(rows):
        with torch.no_grad():
            output = model(row[None, :-1])
        logits = output[0] if isinstance(output, tuple) else output
        losses = -logits[0].double().log_softmax(-1).gather(1, row[1:, None])[:, 0]
        counted = sizes[row[1:]]
        nats += float(losses[counted > 0].sum())
        size += int(counted.sum())
    return nats / math.log(2) / size


def main() -> None:
    train, checkpoint, data = map(Path, sys.argv[1:])
    torch.compiler.set_stance("force_eager")
    model = build(train)
    model.load_state_dict(dict(map(entry, *zip(*load_file(checkpoint).items(), strict=True))), strict=True)
    print(bits_per_byte(model.eval(), data))


if __name__ == "__main__":
    main()
