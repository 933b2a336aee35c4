"""A home in which a claim and its score must be the same number: the dev split is what the judge scores."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest

from controller import settings
from controller.app import trial
from controller.app.machine import sandbox_of
from controller.app.trial import Trial
from controller.core.errors import NotReady
from tests.support.glovebox import Glovebox, remove_leftovers
from tests.support.sealing import seal

Try = Callable[[str, float], Trial]
"""Runs and scores a train.py with a budget in seconds."""

DEV_TOKENS = 8192
"""A quarter of what `evaluate_bpb` looks at otherwise, to have it over with on a busy machine."""


@pytest.fixture(scope="session")
def dev_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which the rows that the judge scores are those that `evaluate_bpb` looks at."""
    folder = tmp_path_factory.mktemp("dropin")
    home = folder / "home"
    try:
        sandbox_of(settings.load(home=home)).describe()
    except NotReady as error:
        pytest.skip(str(error))
    said = Glovebox(home, folder)("prepare", "--corpus", "stdlib", "--scale", "cpu", timeout=240)
    assert said.status == 0, said
    judge, public = home / "data" / "judge", home / "data" / "public"
    told, facts = _manifest(public), _manifest(judge)
    common = {key: value for key, value in facts.items() if key not in ("files", "public_fingerprint")}
    common["score_tokens"] = told["constants"]["eval_tokens"] = DEV_TOKENS
    for split in ("val", "holdout"):
        _cut(judge / split, common["bos_token_id"], common["max_seq_len"])
    numbers = {"score_tokens": DEV_TOKENS, "most_fresh_tokens": common["holdout_score_tokens"]}
    scored = fresh.draw(judge, common, **numbers, scoring=None, confirmation=None).scored
    shutil.rmtree(public / "dev")
    (public / "dev").mkdir()
    scored.astype("<u2").tofile(public / "dev" / "00000.bin")
    seal(home / "data", common, told)
    yield home
    remove_leftovers(home)


def _cut(folder: Path, bos_token_id: int, length: int) -> None:
    """Make each document of a split as long as a row, so that any packer makes the same rows of them."""
    tokens = np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob("*.bin"))])
    text = tokens[tokens != bos_token_id]
    rows = text[: len(text) // length * length].reshape(-1, length)
    shutil.rmtree(folder)
    folder.mkdir()
    np.insert(rows, 0, bos_token_id, axis=1).astype("<u2").tofile(folder / "00000.bin")


def _manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


@pytest.fixture
def try_it(dev_home: Path, tmp_path: Path) -> Try:
    """`glovebox try` in that home, in this process."""

    def run(train_py: str, budget: float) -> Trial:
        file = tmp_path / "train.py"
        file.write_text(train_py, encoding="utf-8")
        config = settings.load(
            home=dev_home,
            device="cpu",
            budget={"wall_seconds": budget},
            judge={"leak_fraction": 0.05},  # honest models: few twins will do
        )
        return trial.run(config, file, threading.Event())

    return run
