"""How often fresh rows convict the honest, and how much knowledge of scored rows they find: by simulation.

    PYTHONPATH=harness python -m tests.attacks.lineages [EFFORTS] [EXPERIMENTS]

Efforts of honest models are played through with the real schedule, the real comparison and the real decision;
then efforts in which models know a share of each row that is scored. A model is a list of what each row costs
it. They come from a distribution with the spread and the heavy tail of real rows, or from files: each holds a
real model's nats [rows, T] on the same rows, and simulated models are mixtures of those.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import fresh
import numpy as np
from numpy.typing import NDArray

from controller.core.scoring.exposure import exposed
from controller.core.values import Fresh, Score

Numbers = NDArray[Any]

ROWS, SCORED, MOST = 7229, 256, 128
"""Of the embedded corpus at the CPU scale."""
BYTES, BITS = 620.0, 2.1
"""Bytes in a row, and bits per byte at the beginning."""
KNOWN_BITS = 0.1
"""What a token of a row that is known costs, as a share of what it costs otherwise."""


class Text(NamedTuple):
    """Rows: how long each is, what it costs by its tokens alone, and what it costs each of some models."""

    sizes: NDArray[np.int64]
    costs: Numbers
    models: Numbers
    """[models, rows] nats."""


def synthetic(random: np.random.Generator) -> Text:
    """Rows of which the cost, given length and tokens, has the real ones' spread and tail."""
    sizes = np.maximum(60, random.normal(BYTES, 190, ROWS)).astype(np.int64)
    usual = sizes * math.log(2) * BITS
    costs = usual * 2.2 * np.exp(0.12 * random.standard_normal(ROWS))
    excess = 0.13 * random.standard_t(4, ROWS) * math.log(2) * BYTES
    first = np.maximum(0.1 * usual, 0.5 * usual + 0.5 * costs / 2.2 + excess)
    other = np.maximum(0.1 * usual, first * np.exp(0.05 * random.standard_t(5, ROWS)))
    return Text(sizes, costs, np.stack([first, other]))


def real(files: Sequence[str], rows: Sequence[str], token_bytes: str) -> Text:
    """From files: nats of each model, the rows [., T + 1] they are of, and the bytes of each token."""
    tokens = np.concatenate([np.load(path) for path in rows])[:, 1:]
    sizes = np.load(token_bytes).astype(np.int64)[tokens]
    counted = sizes > 0
    shares = np.bincount(tokens[counted], minlength=int(tokens.max()) + 1) / counted.sum()
    surprise = -np.log(np.where(shares > 0, shares, 1.0))
    models = np.stack([np.where(counted, np.load(path), 0.0).sum(1) for path in files])
    return Text(sizes.sum(1), np.where(counted, surprise[tokens], 0.0).sum(1), models)


class Effort:
    """An effort under simulation: what is scored, what is in reserve, and the frontier's lineage."""

    def __init__(self, text: Text, random: np.random.Generator) -> None:
        self._text, self._random = text, random
        order = random.permutation(len(text.sizes))
        self._scored, reserve = order[:SCORED], order[SCORED:]
        cut = math.ceil(len(reserve) / fresh.SCORING_SHARE)
        self._reserves = reserve[: cut - fresh.SCORING.aside], reserve[cut : -fresh.CONFIRMATION.aside]
        self._best, self._number, self._confirmed = math.inf, 0, 0
        self.lineage: list[Fresh] = []

    def run(self, known: float = 0.0) -> str | None:
        """One experiment of a model that knows a share of each scored row: what convicts it, or None.

        Like the loop, keeps what is better than the frontier and not convicted.
        """
        nats = self._model()
        nats[self._scored] *= 1 - known * (1 - KNOWN_BITS)
        first = self._portion(0, self._number)
        self._number += 1
        score = self._score(nats, first)
        reason = exposed(self.lineage, score)
        if reason is not None or score.val_bpb >= self._best:
            return reason
        score = self._score(nats, np.concatenate([first, self._portion(1, self._confirmed)]))
        self._confirmed += 1
        if (reason := exposed(self.lineage, score)) is None and score.fresh is not None:
            self._best = score.val_bpb
            self.lineage.append(score.fresh)
        return reason

    def _portion(self, which: int, number: int) -> NDArray[np.int64]:
        reserve, portions = self._reserves[which], (fresh.SCORING, fresh.CONFIRMATION)[which]
        first, count = fresh.schedule(portions, len(reserve), MOST, number)
        return reserve[np.arange(first, first + count) % len(reserve)]

    def _model(self) -> Numbers:
        """A mixture of the models there are, as a whole a little better or worse, and on each row too."""
        shares = self._random.dirichlet(np.ones(len(self._text.models)))
        progress = 0.85 + 0.15 * math.exp(-self._number / 60)
        usual = progress * math.exp(0.01 * self._random.standard_normal()) * (shares @ self._text.models)
        return np.asarray(usual * np.exp(0.02 * self._random.standard_normal(len(usual))))

    def _score(self, nats: Numbers, places: NDArray[np.int64]) -> Score:
        rows = np.concatenate([self._scored, places])
        found = fresh.compare(
            nats[rows],
            self._text.sizes[rows],
            self._text.costs[rows],
            np.arange(len(rows)) >= SCORED,
            seed=int(self._random.integers(2**62)),
        )
        bits = nats[self._scored].sum() / math.log(2) / self._text.sizes[self._scored].sum()
        told = Fresh(rows=len(places), left=0, **found._asdict())
        return Score(val_bpb=float(bits), bytes=1, tokens=1, fresh=told)


class Figures(NamedTuple):
    """What came of some efforts."""

    runs: int
    alarms: int
    kept: float
    """Experiments kept, on average."""


def honest(text: Text, lineages: int, experiments: int, seed: int) -> Figures:
    """Efforts of models that know nothing."""
    alarms, kept = 0, 0
    for number in range(lineages):
        effort = Effort(text, np.random.default_rng([seed, number]))
        alarms += sum(effort.run() is not None for _ in range(experiments))
        kept += len(effort.lineage)
    return Figures(lineages * experiments, alarms, kept / lineages)


class Caught(NamedTuple):
    """What came of efforts in which, after a few honest runs, each model knows a share of the scored rows."""

    at_once: float
    """Share of efforts in which the first run that knew was convicted."""
    within: float
    """Share in which one of the first runs that knew was, twenty of them at most."""


def knowing(text: Text, known: float, lineages: int, seed: int) -> Caught:
    """How often knowledge is found."""
    at_once = within = 0
    for number in range(lineages):
        effort = Effort(text, np.random.default_rng([seed, number]))
        for _ in range(5):
            effort.run()
        found = [effort.run(known) is not None for _ in range(20)]
        at_once, within = at_once + found[0], within + any(found)
    return Caught(at_once / lineages, within / lineages)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.lineages")
    parser.add_argument("lineages", nargs="?", type=int, default=100)
    parser.add_argument("experiments", nargs="?", type=int, default=200)
    parser.add_argument("--nats", nargs="+", help="nats [rows, T] of real models")
    parser.add_argument("--rows", nargs="+", help="with --nats: the rows [., T + 1]")
    parser.add_argument("--token-bytes", help="with --nats: bytes of each token")
    options: Any = parser.parse_args()
    text = synthetic(np.random.default_rng(1))
    if options.nats:
        text = real(options.nats, options.rows, options.token_bytes)
    found = honest(text, options.lineages, options.experiments, seed=2)
    print(
        f"honest: {found.runs} runs in {options.lineages} efforts, {found.kept:.1f} kept on average,"
        f" {found.alarms} alarms",
        flush=True,
    )
    print("known share of scored rows | gain, bits per byte | convicted at once | within 20 runs")
    for known in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0):
        caught = knowing(text, known, max(20, options.lineages // 5), seed=3)
        gain = BITS * known * (1 - KNOWN_BITS)
        print(f"{known:.2f} | {gain:.2f} | {caught.at_once:.2f} | {caught.within:.2f}", flush=True)


if __name__ == "__main__":
    main()
