"""Data between `cpu` and `gpu`: what the manifest says of it, and that it is scored like the others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import dataset
import pytest
import torch
from corpus import Request, open_corpus
from safetensors.torch import save_file
from torch import nn

from controller.store import data
from tests.harness.scoring import IMPORTABLE, Scoring

BETWEEN = [name for name in dataset.SCALES if name not in ("cpu", "gpu")]


@pytest.fixture(scope="module", params=BETWEEN)
def home(
    request: pytest.FixtureRequest, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Prepared at that size, of a text that is too short for such a vocabulary and so many scored tokens."""
    home = tmp_path_factory.mktemp("home")
    corpus = open_corpus(Request(str(corpus_folder)), home / "downloads", 1, None)
    size = dataset.SCALES[request.param]
    less = dataclasses.replace(
        size,
        vocab_size=1024,
        score_tokens=1 << 14,
        holdout_score_tokens=1 << 13,
        eval_tokens=1 << 13,
    )
    dataset.build(home / "data", corpus, request.param, less, 1)
    return home


def test_the_controller_knows_every_size_there_is() -> None:
    assert set(get_args(data.Size)) == set(dataset.SCALES)
    sizes = list(map(dataset.SCALES.__getitem__, ("cpu", "small", "medium", "gpu")))
    for field in ("max_seq_len", "vocab_size", "eval_tokens", "score_tokens", "holdout_score_tokens"):
        values = [getattr(size, field) for size in sizes]
        assert values == sorted(values), field


@pytest.mark.parametrize(
    ("gigabytes", "size"),
    [
        (None, "cpu"),
        (4.0, "small"),
        (6.2, "small"),
        (8.2, "medium"),
        (16.9, "medium"),
        (25.2, "gpu"),
        (85, "gpu"),
    ],
)
def test_a_card_gets_the_size_for_its_memory(gigabytes: float | None, size: str) -> None:
    assert data.size_for(None if gigabytes is None else int(gigabytes * 1e9)) == size


def test_it_is_data_for_a_gpu(home: Path) -> None:
    info = data.read(home)
    assert (info.scale, info.size in BETWEEN) == ("gpu", True)
    assert info.max_seq_len == dataset.SCALES[info.size].max_seq_len
    data.require_scale(info, "gpu", home)
    assert "already prepared" in dataset.check_prepared(home / "data", _origin(home), info.size)


def test_a_model_is_scored_and_confirmed_on_it(home: Path, tmp_path: Path) -> None:
    info = data.read(home)
    scoring = Scoring(home / "data", tmp_path)
    scoring.judge |= {"batch_rows": 16384 // info.max_seq_len, "leak_fraction": 0.05}
    scoring.train.write_text(IMPORTABLE.replace("261", str(info.vocab_size)))
    scoring.worker["max_checkpoint_bytes"] = 1 << 24
    torch.manual_seed(0)
    vocab = info.vocab_size
    parts = {"embed": nn.Embedding(vocab, 24), "mix": nn.Linear(48, 24), "head": nn.Linear(24, vocab)}
    weights = nn.ModuleDict(parts).state_dict()
    save_file(weights, scoring.checkpoint)
    first, second = scoring.confirm()
    assert (first["status"], second["status"]) == ("scored", "confirmed"), (first, second)
    assert first["tokens"] >= (1 << 14) * 0.9 and first["val_bpb"] > 1
    assert first["fresh"]["rows"] > 0 and second["fresh"]["rows"] > 0


def _origin(home: Path) -> str:
    origin: str = json.loads((home / "data" / "public" / "manifest.json").read_text())["corpus"]["origin"]
    return origin
