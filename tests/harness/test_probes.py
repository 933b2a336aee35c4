"""The probes: honest models pass, planted leaks are refused, and twins find what their number promises."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nats import Refused
from safetensors.torch import save_file
from torch import Tensor, nn

import probes
from judge import Config, affordable_twins, compare_probes
from plan import Plan, Role, make_plan
from probes import Nats
from tests.harness.probed_models import (
    HONEST,
    Attention,
    LongConvolution,
    Model,
    Predict,
    answer,
    text_rows,
    trained,
)
from tests.harness.scoring import IMPORTABLE, Scoring, make_data, tiny_model

ROWS, LENGTH, VOCAB, WIDTH, BATCH = 120, 32, 61, 16, 4
TEXT = text_rows(ROWS, LENGTH + 1, VOCAB, seed=0)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(TEXT[:80], TEXT[80:], BATCH, seed=3, twins=24)


def nats_of(plan: Plan, predict: Predict, batch_rows: int = BATCH) -> Nats:
    return np.concatenate(answer(predict, plan.batches(batch_rows)))


def cause_of(plan: Plan, predict: Predict) -> str:
    """What the probes say about a model: the cause of the refusal, or "" if they agree."""
    try:
        compare_probes(plan, nats_of(plan, predict))
    except Refused as refusal:
        assert "\n" not in str(refusal)
        return refusal.cause
    return ""


def small(*parts: nn.Module) -> nn.Module:
    return trained(Model(VOCAB, WIDTH, *parts), TEXT, steps=30)


# --- twins ---------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), count=st.integers(1, ROWS))
def test_twin_is_its_origin_before_the_cut_and_real_text_after(seed: int, count: int) -> None:
    twins = probes.draw_twins(TEXT, count, np.random.default_rng(seed))
    assert len(twins.rows) == len({*twins.origins.tolist()}) == count
    for row, origin, cut in zip(twins.rows, twins.origins, twins.cuts, strict=True):
        assert (row[:cut] == TEXT[origin, :cut]).all()
        assert row[cut] != TEXT[origin, cut]
        assert (TEXT[:, cut:] == row[cut:]).all(axis=1).any()


def test_cuts_leave_no_wide_gap_and_reach_both_ends() -> None:
    cuts = {
        cut
        for seed in range(30)
        for cut in probes.draw_twins(TEXT, 8, np.random.default_rng(seed)).cuts.tolist()
    }
    assert cuts == {*range(1, LENGTH)}
    ordered = np.sort(probes.draw_twins(TEXT, 8, np.random.default_rng(0)).cuts)
    assert np.diff(ordered).max() <= 2 * math.ceil((LENGTH - 1) / 8)


def test_rows_without_another_token_at_the_cut_have_no_twins() -> None:
    same = np.tile(np.arange(5), (3, 1))
    assert len(probes.draw_twins(same, 3, np.random.default_rng(0)).rows) == 0


def test_plan_pairs_every_probe_with_what_it_must_agree_with(plan: Plan) -> None:
    length = plan.inputs.shape[1]
    for i, origin in enumerate(plan.origins.tolist()):
        agree = int(plan.agree[i])
        assert (plan.inputs[i, :agree] == plan.inputs[origin, :agree]).all()
        assert (plan.targets[i] == plan.targets[origin]).all()
        role = Role(plan.roles[i])
        assert (agree < length) == (role is Role.TWIN)
        assert (origin == i) == (role in (Role.VALIDATION, Role.HOLDOUT))
    assert (plan.inputs[-BATCH:] == plan.inputs[:BATCH]).all()
    assert (plan.roles[-BATCH:] == Role.ENCORE).all()


def test_probes_are_spread_over_the_order() -> None:
    plan = make_plan(TEXT[:80], TEXT[80:], BATCH, seed=5, twins=24)
    places = np.flatnonzero(plan.roles == Role.TWIN)
    assert places.min() < len(plan.roles) / 4
    assert places.max() > len(plan.roles) / 2
    assert 4 < (plan.origins[places] < places).sum() < 20


# --- honest models -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", HONEST.values(), ids=HONEST)
def test_honest_model_passes(plan: Plan, parts: Callable[[int], list[nn.Module]], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert cause_of(plan, small(*parts(WIDTH)).to(dtype)) == ""


def test_noise_of_rounding_passes(plan: Plan) -> None:
    torch.manual_seed(0)
    model = small(Attention(WIDTH)).bfloat16()
    assert cause_of(plan, lambda x: model(x) * (1 + torch.randn(*x.shape, VOCAB) * 2**-9)) == ""


# --- leaks ---------------------------------------------------------------------


def peeking(model: nn.Module, strength: float, where: Callable[[Tensor], Tensor]) -> Predict:
    """`model`, but at the positions `where` says it adds `strength` to the logit of the next token."""

    def predict(x: Tensor) -> Tensor:
        helped = where(x[:, :-1]).float()[..., None] * strength
        ahead = nn.functional.one_hot(x[:, 1:], VOCAB) * helped
        logits: Tensor = model(x) + nn.functional.pad(ahead, (0, 0, 0, 1))
        return logits

    return predict


class BlockMean(nn.Module):
    """The mean of each block of eight, given back to all of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, 8, x.shape[-1]).mean(2).repeat_interleave(8, dim=1)


class Carrying(nn.Module):
    """Gives to each batch what it saw in the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        last, self.last = self.last, x[-1].detach()
        return last.expand_as(x)


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).expand_as(x)


class RowBefore(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 0)


def learning(model: nn.Module) -> Predict:
    """Counts the tokens it is given and leans towards the frequent ones."""
    counts = torch.zeros(VOCAB)

    def predict(x: Tensor) -> Tensor:
        counts.add_(torch.bincount(x.flatten(), minlength=VOCAB))
        logits: Tensor = model(x) + torch.log1p(counts)
        return logits

    return predict


LEAKS: dict[str, tuple[str, Callable[[], Predict]]] = {
    "bidirectional attention": ("non-causal", lambda: small(Attention(WIDTH, causal=False))),
    "block means": ("non-causal", lambda: small(Attention(WIDTH), BlockMean())),
    "circular filter": ("non-causal", lambda: small(LongConvolution(WIDTH, circular=True))),
    "next token": ("non-causal", lambda: peeking(small(Attention(WIDTH)), 9.0, torch.ones_like)),
    "next token, a little": ("non-causal", lambda: peeking(small(Attention(WIDTH)), 0.1, torch.ones_like)),
    "after some tokens": ("non-causal", lambda: peeking(small(Attention(WIDTH)), 9.0, lambda x: x % 4 == 0)),
    "mean of the batch": ("batch-dependent", lambda: small(Attention(WIDTH), BatchMean())),
    "row before in the batch": ("batch-dependent", lambda: small(Attention(WIDTH), RowBefore())),
    "last batch": ("stateful", lambda: small(Carrying(), Attention(WIDTH))),
    "learning": ("stateful", lambda: learning(small(Attention(WIDTH)))),
}


@pytest.mark.parametrize(("cause", "leak"), LEAKS.values(), ids=LEAKS)
def test_leak_is_refused(plan: Plan, cause: str, leak: Callable[[], Predict]) -> None:
    torch.manual_seed(0)
    assert cause_of(plan, leak()) == cause


def test_next_token_at_one_position_in_fifty_is_refused() -> None:
    text = text_rows(2000, 17, VOCAB, seed=0)
    twins = probes.twins_needed(0.02, 1e-3, reach=1, length=16)
    assert twins == 342
    plan = make_plan(text[:1500], text[1500:], 40, seed=1, twins=twins)
    model = small(Attention(WIDTH))

    def one_in_fifty(x: Tensor) -> Tensor:
        return ((x * 31 + torch.arange(x.shape[1])) * 17) % 50 == 0

    with pytest.raises(Refused, match="another future") as refusal:
        compare_probes(plan, nats_of(plan, peeking(model, 9.0, one_in_fifty), 40))
    assert refusal.value.cause == "non-causal"
    assert compare_probes(plan, nats_of(plan, model, 40))[Role.TWIN].largest < 1e-4


def test_model_that_behaves_in_twins_alone_is_refused_for_its_origins(plan: Plan) -> None:
    torch.manual_seed(0)
    model = small(Attention(WIDTH))
    twins = {tuple(row) for row in plan.inputs[plan.roles == Role.TWIN].tolist()}

    def ordinary(x: Tensor) -> Tensor:
        return torch.tensor([tuple(row) not in twins for row in x.tolist()])[:, None].expand(x.shape)

    def predict(x: Tensor) -> Tensor:
        kept = ordinary(x)[:, 1:]
        return peeking(model, 9.0, lambda _: kept)(x)

    assert cause_of(plan, predict) == "non-causal"


# --- what is promised ----------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "reach", "length", "twins"),
    [(0.001, 1, 256, 6905), (0.01, 1, 256, 688), (1.0, 1, 256, 1), (0.001, 10**6, 10**4, 3)],
)
def test_number_of_twins(fraction: float, reach: int, length: int, twins: int) -> None:
    assert probes.twins_needed(min(fraction, 1 - 1e-12), 0.001, reach, length) == twins


@given(twins=st.integers(1, 500), reach=st.integers(1, 300), delta=st.sampled_from([0.1, 0.001]))
def test_smallest_leak_is_the_inverse(twins: int, reach: int, delta: float) -> None:
    fraction = probes.smallest_leak(twins, delta, reach, 256)
    assert probes.twins_needed(fraction, delta, reach, 256) <= twins
    assert probes.twins_needed(fraction * 0.98, delta, reach, 256) >= twins


def test_no_twins_promise_nothing() -> None:
    assert probes.smallest_leak(0, 0.001, 32, 256) == 1.0


def test_first_worker_gets_no_more_twins_than_affordable() -> None:
    def twins(fraction: float, rows: int) -> int:
        here = Path()
        paths = (here, here, here, here, here)
        config = Config(
            *paths,
            8,
            None,
            None,
            None,
            None,
            0,
            1.0,
            1.0,
            1.0,
            fraction,
            miss_probability=0.001,
            leak_reach=128,
        )
        return affordable_twins(config, rows, length=256)

    assert twins(0.001, 384) == 73
    assert twins(0.0001, 384) == 76
    assert twins(0.1, 384) < 10
    assert twins(0.001, 2) == 1


def planted(plan: Plan, fraction: float, reach: int, seed: int) -> Nats:
    """Nats of a model that sees, at a share of positions, the token `reach` ahead or else the row's last.

    Which positions these are and what it predicts depends on the tokens up to there, as in a real model; with
    `reach` 1 it simply knows the next token there.
    """
    x = plan.inputs.astype(np.int64)
    random = np.random.default_rng(seed)
    steps = random.integers(1, 2**40, (x.shape[1], int(x.max()) + 1))
    prefix = np.cumsum(np.take_along_axis(steps.T, x, 0), axis=1)  # a hash of the tokens up to each position
    nats: Nats = 1 + (prefix ^ plan.targets * 7919) % 1009 / 200
    leaking = prefix * 48271 % 1_000_003 < fraction * 1_000_003
    ahead = x[:, np.minimum(np.arange(x.shape[1]) + reach, x.shape[1] - 1)]
    leaking[:, -1] = False
    helped = nats * (ahead != plan.targets) if reach == 1 else nats + ahead % 97 / 10
    return np.where(leaking, helped, nats)


def is_detected(plan: Plan, fraction: float, reach: int, trial: int) -> bool:
    """Whether a leak is found; each trial has a plan and a leak of its own."""
    try:
        compare_probes(plan, planted(plan, fraction, reach, trial))
    except Refused:
        return True
    return False


@pytest.mark.slow
def test_detection_power_is_what_the_formula_says(capsys: pytest.CaptureFixture[str]) -> None:
    """At the size of the cpu scale: 384 rows of 256 tokens, 76 twins."""
    text, trials = text_rows(384, 257, 1024, seed=2), 200
    detected = Counter[tuple[float, int]]()
    for trial in range(trials):
        plan = make_plan(text[:256], text[256:], 8, trial, 76)
        for fraction, reach in itertools.product((0.01, 0.001, 0.0001), (1, 8, 32, 128)):
            detected[fraction, reach] += is_detected(plan, fraction, reach, trial)
    lines = ["leak of      reach   found   formula"]
    for (fraction, reach), count in detected.items():
        found, expected = count / trials, 1 - probes.chance_to_miss(fraction, reach, 256) ** 76
        lines.append(f"{fraction:8.2%} {reach:8} {found:8.1%} {expected:8.1%}")
        # 200 trials: a standard error of up to 3.5 %; a twentieth of the changes is within the tolerance
        assert found == pytest.approx(expected, abs=0.12)
    assert len(detected) == 12
    with capsys.disabled():
        print("", *lines, sep="\n")


# --- as processes --------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def scoring(data: Path, tmp_path: Path) -> Scoring:
    scoring = Scoring(data, tmp_path)
    save_file(tiny_model().state_dict(), scoring.checkpoint)
    return scoring


def test_result_says_what_was_probed_and_what_that_promises(scoring: Scoring) -> None:
    scoring.train.write_text(IMPORTABLE)
    result, _, _ = scoring.run()
    assert result["status"] == "scored", result
    found = result["probes"]
    assert {"twin", "repeat", "encore", "promise"} == {*found}
    assert found["twin"]["rows"] == 9
    assert found["encore"] | {"spread_nats": 0.0} == found["encore"]
    assert found["repeat"]["positions"] == found["repeat"]["rows"] * 32
    leaks = found["promise"]["leak_fraction_by_reach"]
    assert leaks["1"] == pytest.approx(1 - 0.001 ** (1 / 9), abs=1e-6)
    assert leaks["1"] > leaks["16"]
    assert found["promise"]["help_nats"] is None, "9 twins say nothing about a mean"


def test_worker_with_a_leak_is_refused(scoring: Scoring) -> None:
    scoring.train.write_text(IMPORTABLE.replace("(0, 0, 1, -1)", "(0, 0, -1, 1)"))
    result, _, _ = scoring.run()
    assert (result["status"], result["cause"]) == ("refused", "non-causal")
    assert "% of rows" in result["detail"]
