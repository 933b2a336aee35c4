"""The second worker: what it is told, whom it convicts, whom it lets pass, and how much it finds."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from exchange import SLOTS
from hypothesis import given, settings
from hypothesis import strategies as st
from nats import Refused
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

import probes
from judge import Scored, compare_confirmation, compare_probes
from plan import DECOYS, DECOYS_SHARE, Confirmation, Role, make_confirmation, make_plan
from probes import Nats, Tokens
from tests.harness.probed_models import HONEST, Attention, Model, Predict, answer, text_rows, trained
from tests.harness.scoring import IMPORTABLE, REMEMBERING, Scoring, make_data, tiny_model

ROWS, LENGTH, VOCAB, WIDTH, BATCH = 120, 32, 61, 16, 4
TEXT = text_rows(ROWS, LENGTH + 1, VOCAB, seed=0)


# --- what it is asked ------------------------------------------------------------


def asked_of(rows: Tokens, batch: int, seed: int, twins: int, window: int = 16) -> Confirmation:
    return make_confirmation(rows, rows[:3], batch, seed, twins, window)


@settings(deadline=None)
@given(
    count=st.integers(2, ROWS),
    batch=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    twins=st.integers(1, 900),
)
def test_second_worker_never_knows_what_follows_the_cut_it_answers(
    count: int, batch: int, seed: int, twins: int
) -> None:
    rows = TEXT[:count]
    asked = asked_of(rows, batch, seed, twins)
    decoys = {int(row) for question in asked.controls for row in question.origins}
    assert len(decoys) == max(1, min(DECOYS, count // DECOYS_SHARE))
    known = np.zeros(count, np.int64)  # tokens of each row that were given away so far
    for number, question in enumerate(asked.twins):
        # The worker reads ahead: when it answers this batch it may have SLOTS - 1 more.
        for ahead in asked.twins[number : number + SLOTS]:
            np.maximum.at(known, ahead.origins, ahead.agree)
        real = question.agree > 0
        assert (known[question.origins[real]] == question.agree[real]).all()
        assert decoys.isdisjoint(question.origins[real].tolist())


@given(count=st.integers(2, ROWS), batch=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_every_row_that_is_no_decoy_is_cut_and_goes_on_as_a_decoy(count: int, batch: int, seed: int) -> None:
    rows = TEXT[:count]
    asked = asked_of(rows, batch, seed, twins=1)
    decoys = rows[np.unique(np.concatenate([question.origins for question in asked.controls]))]
    cut_rows, skipped = set(), 0
    for question in asked.twins:
        for row, origin, cut in zip(question.batch.inputs, question.origins, question.agree, strict=True):
            if cut == 0:
                skipped += 1
                continue
            cut_rows.add(int(origin))
            assert (row[:cut] == rows[origin, :cut]).all()
            assert row[cut] != rows[origin, cut]
            assert (decoys[:, cut : len(row)] == row[cut:]).all(axis=1).any()
    assert len(cut_rows) + skipped >= count - max(1, min(DECOYS, count // DECOYS_SHARE))
    assert len(cut_rows) >= 0.8 * (count - len(decoys)) - 1


def test_answers_are_wanted_for_a_window_before_the_cuts() -> None:
    asked = asked_of(TEXT, BATCH, seed=1, twins=800, window=8)
    for question in asked.twins:
        inputs, targets, first, last = question.batch
        cuts = question.agree
        assert (first, last) == (max(0, cuts[cuts > 0].min() - 8), cuts.max())
        assert inputs.shape[1] >= cuts.max() + 1  # something else follows every cut
        assert inputs.size <= BATCH * LENGTH
        assert (targets == TEXT[question.origins, first + 1 : last + 1]).all()
    assert all((question.batch.first, question.batch.last) == (0, LENGTH) for question in asked.controls)


def test_short_rows_save_almost_half_and_come_in_few_shapes() -> None:
    asked = asked_of(TEXT, BATCH, seed=1, twins=800)
    shapes = {question.batch.inputs.shape for question in asked.twins}
    assert {columns for _, columns in shapes} == {4, 8, 12, 16, 20, 24, 28, 32}
    assert len(shapes) == 8, "a length has one number of rows"
    sent = sum(question.batch.inputs.size for question in asked.twins)
    assert sent == pytest.approx(800 * LENGTH * 9 / 16, rel=0.05)


def test_cuts_of_one_row_are_spread_and_do_not_follow_from_each_other() -> None:
    asked = asked_of(TEXT, BATCH, seed=1, twins=105 * 8)
    cuts: dict[int, list[int]] = {}
    for question in asked.twins:
        for origin, cut in zip(question.origins.tolist(), question.agree.tolist(), strict=True):
            if cut > 0:
                cuts.setdefault(origin, []).append(cut)
    assert {len(found) for found in cuts.values()} == {8}
    steps = {later - earlier for found in cuts.values() for earlier, later in itertools.pairwise(found)}
    assert len(steps) > 5 and max(steps) <= 2 * LENGTH / 8 + 1


# --- whom it convicts --------------------------------------------------------------


def verdict(first: Predict, second: Predict, rows: Tokens = TEXT, twins: int = 400) -> str:
    """The cause for which a score is refused, with the stage that did; "" if it is confirmed."""
    split = len(rows) * 2 // 3
    plan = make_plan(rows[:split], rows[split:], BATCH, seed=3, twins=len(rows) // 5)
    nats = np.concatenate(answer(first, plan.batches(BATCH)))
    try:
        compared = compare_probes(plan, nats)
    except Refused as refusal:
        return f"first: {refusal.cause}"
    scored = Scored({}, rows, nats[plan.places], (compared[Role.REPEAT], compared[Role.ENCORE]), BATCH, VOCAB)
    asked = asked_of(rows, BATCH, 5, twins)
    answers = answer(second, [question.batch for question in (*asked.controls, *asked.twins)])
    try:
        compare_confirmation(scored, asked, answers, miss_probability=0.001)
    except Refused as refusal:
        return f"second: {refusal.cause}"
    return ""


def small(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return trained(Model(VOCAB, WIDTH, *parts), TEXT, steps=30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", HONEST.values(), ids=HONEST)
def test_honest_model_is_confirmed(parts: Callable[[int], list[nn.Module]], dtype: torch.dtype) -> None:
    model = small(*parts(WIDTH)).to(dtype)
    assert verdict(model, model) == ""


def test_noise_of_rounding_is_confirmed() -> None:
    model = small(Attention(WIDTH)).bfloat16()

    def noisy(x: Tensor) -> Tensor:
        logits: Tensor = model(x) * (1 + torch.randn(*x.shape, VOCAB) * 2**-9)
        return logits

    assert verdict(noisy, noisy) == ""


def peeking(model: nn.Module, where: Callable[[Tensor], Tensor]) -> Predict:
    """`model`, but in the rows `where` says it gives away the next token, the first few excepted."""

    def predict(x: Tensor) -> Tensor:
        ahead = nn.functional.one_hot(x[:, 1:], VOCAB) * 9.0 * where(x).float()[:, None, None]
        ahead[:, :SHARED] = 0
        logits: Tensor = model(x) + nn.functional.pad(ahead, (0, 0, 0, 1))
        return logits

    return predict


SHARED = 6  # beginnings of this length may be common to several rows


def remembering(predict: Predict, common: int = SHARED) -> Predict:
    """Answers a beginning it has seen before, if it is no common one, with what it answered then."""
    memory: dict[tuple[int, ...], Tensor] = {}

    def answer_once(x: Tensor) -> Tensor:
        logits = predict(x).clone()
        for i, row in enumerate(x.tolist()):
            for end in range(common, x.shape[1]):
                logits[i, end] = memory.setdefault(tuple(row[: end + 1]), logits[i, end].clone())
        return logits

    return answer_once


#: What remembers is stateful besides: a row that was probed before it came is answered as the probe was.
CONVICTED = ("second: non-causal", "second: stateful")


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(len(x))


def test_worker_that_repeats_itself_passes_its_own_probes_and_is_convicted_by_a_fresh_one() -> None:
    leak = peeking(small(Attention(WIDTH)), everywhere)
    assert verdict(remembering(leak), remembering(leak)) in CONVICTED


def test_second_worker_that_knows_its_part_cannot_cover_for_the_first() -> None:
    """Whatever it does instead of leaking, it lacks the tokens that the first one's answers need."""
    model = small(Attention(WIDTH))
    real = {tuple(row) for row in TEXT[:, :-1].tolist()}
    first = remembering(peeking(model, everywhere))
    careful = peeking(model, lambda x: torch.tensor([tuple(row) in real for row in x.tolist()]))
    assert verdict(first, careful) in CONVICTED
    assert verdict(first, model) in CONVICTED


def learning(model: nn.Module) -> Predict:
    """Counts the tokens it is given and leans towards the frequent ones."""
    counts = torch.zeros(VOCAB)

    def predict(x: Tensor) -> Tensor:
        logits: Tensor = model(x) + torch.log1p(counts)
        counts.add_(torch.bincount(x.flatten(), minlength=VOCAB))
        return logits

    return predict


def test_worker_that_learns_from_rows_and_repeats_itself_is_convicted() -> None:
    model = small(Attention(WIDTH))
    first, second = remembering(learning(model), 0), remembering(learning(model), 0)
    assert verdict(first, second) in CONVICTED


# --- how much it finds -------------------------------------------------------------


def leak_at(share: float, how: str, shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.bool_]:
    """Where a leak of the next token is planted among the predictions [R, T], never the last of a row."""
    rows, length = shape
    count = round(share * rows * (length - 1))
    leaks = np.zeros((rows, length - 1), np.bool_)
    if how == "spread":
        leaks.flat[random.choice(leaks.size, count, replace=False)] = True
    else:
        step = {"rows": 1, "regular": 12}[how]  # 12: about as far apart as the cuts of one row
        for row in random.permutation(rows):
            here = np.arange(random.integers(step), length - 1, step)[: count - int(leaks.sum())]
            leaks[row, here] = True
    return np.pad(leaks, ((0, 0), (0, 1)))


def ends(asked: Confirmation) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and position of the last prediction that each twin has in common with its original."""
    origins = np.concatenate([question.origins for question in asked.twins])
    agree = np.concatenate([question.agree for question in asked.twins])
    return origins[agree > 0], agree[agree > 0] - 1


@pytest.mark.slow
def test_detection_power_is_what_the_formula_says(capsys: pytest.CaptureFixture[str]) -> None:
    """At the size of the cpu scale: 384 rows of 256 tokens, batches of 64, 6905 twins."""
    text, trials = text_rows(384, 257, 1024, seed=2), 100
    twins = probes.twins_needed(0.001, 0.001, 1, 256)
    plans = [ends(make_confirmation(text, text[:1], 64, seed, twins, 64)) for seed in range(trials)]
    lines = ["leak of   where     found   formula"]
    for share in (0.01, 0.001, 0.0001):
        expected = 1 - (1 - share) ** twins
        for how in ("spread", "rows", "regular"):
            random = np.random.default_rng(7)
            least = expected * (1 if how == "spread" else 1 - DECOYS / 384)  # a decoy's leaks are its own
            # Does any twin end where the next token is given away?
            found = sum(leak_at(share, how, (384, 256), random)[place].any() for place in plans) / trials
            lines.append(f"{share:7.2%}   {how:8} {found:6.1%}   {expected:6.1%}")
            assert found >= least - 0.15  # three standard errors of 100 trials
    with capsys.disabled():
        print("", *lines, sep="\n")


# --- as processes --------------------------------------------------------------


@pytest.fixture
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    scoring = Scoring(make_data(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("work"))
    save_file(tiny_model().state_dict(), scoring.checkpoint)
    return scoring


def test_honest_score_is_confirmed_by_another_process(scoring: Scoring) -> None:
    scoring.train.write_text(IMPORTABLE)
    scored, confirmed = scoring.confirm()
    assert (scored["status"], confirmed["status"]) == ("scored", "confirmed")
    found = confirmed["probes"]
    assert found["control"]["rows"] >= 6
    assert found["twin"]["rows"] > 650
    assert found["twin"]["largest_nats"] < 1e-5
    assert found["promise"]["leak_fraction_by_reach"]["1"] == pytest.approx(0.01, abs=0.001)
    assert 0 < found["promise"]["help_nats"] < 0.002


def test_leak_that_a_worker_covers_by_repeating_itself_is_refused(scoring: Scoring) -> None:
    scoring.train.write_text(REMEMBERING)
    scored, refused = scoring.confirm()
    assert scored["status"] == "scored"
    assert refused["status"] == "refused"
    assert refused["cause"] in ("non-causal", "stateful")  # it is both


def test_second_worker_that_gives_up_ends_the_judge(scoring: Scoring) -> None:
    once = "import pathlib\npathlib.Path(__file__).with_name('was-here').touch(exist_ok=False)\n"
    scoring.train.write_text(IMPORTABLE.replace("\nimport torch", f"\nimport torch\n{once}"))
    scored, refused = scoring.confirm()
    assert (scored["status"], refused["cause"]) == ("scored", "worker-failed")


def test_nats_of_windows_are_those_of_whole_rows() -> None:
    model = small(Attention(WIDTH))
    whole: Nats = np.concatenate(answer(model, make_plan(TEXT[:80], TEXT[80:], BATCH, 3, 1).batches(BATCH)))
    plan = make_plan(TEXT[:80], TEXT[80:], BATCH, 3, 1)
    asked = asked_of(TEXT, BATCH, 1, 300)
    record = whole[plan.places]
    for question, nats in zip(asked.twins, answer(model, [q.batch for q in asked.twins]), strict=True):
        for origin, cut, got in zip(question.origins, question.agree, nats, strict=True):
            if cut == 0:
                continue
            before = slice(question.batch.first, cut)
            assert got[: cut - question.batch.first] == pytest.approx(record[origin, before], abs=1e-4)
