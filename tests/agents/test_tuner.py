"""The tuner on a synthetic landscape: what it learns, and that it forgets nothing over a restart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from pydantic import JsonValue

from controller.agents.search_space import Literal, Range, find, replace, tunable
from controller.agents.tuner import Tuner, credit
from controller.core.errors import AgentExhausted
from controller.core.events import ProposalMade
from controller.core.experiment import Experiment, Phase
from controller.core.notebook import Notebook
from controller.core.program.policy import check, digest
from controller.core.values import Cause, Change, Decision, Frontier, RunOutcome, Score, Verdict
from controller.ports import Context
from tests.support.experiments import a_proposal, an_experiment
from tests.support.fakes import FakeServices

TRAIN_PY = """\
import torch

# --- tunable constants -------------------------------------------------------
DEPTH_CPU = 4          # blocks. choices: 2, 3, 4, 5, 6
DEPTH_GPU = 8          # blocks. choices: 6, 8, 10
WIDTH = 128            # channels. choices: 96, 128, 160, 192
PATTERN = "L"          # choices: "L", "SL", "SSL"
TIED = False
BATCH = 2**12          # tokens. choices: 2048, 4096, 8192
MATRIX_LR = 0.04       # range: 1e-2..1e-1 log
EMBEDDING_LR = 0.6     # range: 0.1..2 log
HEAD_LR = 0.004        # range: 1e-3..2e-2 log
SCALAR_LR = 0.5        # range: 0.05..1 log
DECAY = 0.2            # range: 0.0..0.4
MOMENTUM = 0.95        # range: 0.85..0.98
WARMDOWN = 0.5         # range: 0.2..1.0
SEED = 42
# --- end of tunable constants ------------------------------------------------
model = torch.nn.Linear(DEPTH_CPU, DEPTH_GPU, WIDTH, PATTERN, TIED, BATCH)
optimizer = torch.optim.Adam(MATRIX_LR, EMBEDDING_LR, HEAD_LR, SCALAR_LR, DECAY, MOMENTUM, WARMDOWN)
optimizer.step()
"""


class Landscape:
    """A bowl: few constants matter much, the baseline is decent, some settings crash, scores are noisy."""

    def __init__(self, seed: int, noise: float = 0.0005) -> None:
        self._random = random.Random(seed)
        self._noise = noise
        constants = tunable(find(TRAIN_PY), "cpu")
        self._domains = {constant.name: constant.domain for constant in constants}
        self._best = {
            c.name: min(max(self._place(c.name, c.value) + self._random.gauss(0, 0.25), 0.0), 1.0)
            for c in constants
        }
        self._weights = {constant.name: math.exp(self._random.gauss(0, 1.2)) for constant in constants}
        self._unit = 0.06 / self._bowl({constant.name: constant.value for constant in constants})

    def excess(self, train_py: str) -> float:
        """Bits per byte above the best there is, noise excluded."""
        return self._unit * self._bowl({c.name: c.value for c in tunable(find(train_py), "cpu")})

    def score(self, train_py: str) -> float | None:
        values = {c.name: c.value for c in find(train_py)}
        if values["WIDTH"] == 160 or float(values["MATRIX_LR"]) > 0.09:
            return None
        return 2.0 + self.excess(train_py) + self._random.gauss(0, self._noise)

    def _bowl(self, values: dict[str, Literal]) -> float:
        return sum(w * (self._place(n, values[n]) - self._best[n]) ** 2 for n, w in self._weights.items())

    def _place(self, name: str, value: Literal) -> float:
        domain = self._domains[name]
        assert domain is not None
        if not isinstance(domain, Range):
            return domain.values.index(value) / (len(domain.values) - 1)
        if domain.log:
            return math.log(float(value) / domain.low) / math.log(domain.high / domain.low)
        return (float(value) - domain.low) / (domain.high - domain.low)


@dataclass
class Effort:
    """The rules of the loop in a dozen lines: baseline first, strictly better is kept."""

    landscape: Landscape
    train_py: str = TRAIN_PY
    best: float | None = None
    commit: str = "c0"
    history: list[Experiment] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run(Change(train_py=TRAIN_PY, description="baseline"))

    @property
    def context(self) -> Context:
        return Context(
            program="",
            interface="",
            frontier=Frontier(commit=self.commit, val_bpb=self.best),
            train_py=self.train_py,
            history=self.history,
            finished=self.history.__getitem__,
            notebook=Notebook(),
            scale="cpu",
            source=self.sources.__getitem__,
            running=(),
            waiting=(),
            diff=lambda number: "",
            excerpt=lambda number: "",
            services=FakeServices(frontier_py=self.train_py),
        )

    def run(self, proposal: Change) -> Verdict:
        bpb = self.landscape.score(proposal.train_py)
        if bpb is None:
            decision = Decision(verdict=Verdict.CRASH, cause=Cause.SHAPE, rule="R9")
        elif self.best is None or bpb < self.best:
            decision = Decision(verdict=Verdict.KEEP, rule="R7")
        else:
            decision = Decision(verdict=Verdict.DISCARD, cause=Cause.WORSE, rule="R7")
        self.record(proposal, bpb, decision)
        if decision.verdict is Verdict.KEEP:
            self.train_py, self.best, self.commit = proposal.train_py, bpb, f"c{len(self.history)}"
        return decision.verdict

    def record(self, proposal: Change, bpb: float | None, decision: Decision) -> None:
        number = len(self.history)
        made = a_proposal(
            number,
            description=proposal.description,
            hypothesis=proposal.hypothesis,
            parent=self.commit,
            parameters=proposal.parameters,
            train_sha256=hashlib.sha256(proposal.train_py.encode()).hexdigest(),
        )
        self.sources.append(proposal.train_py)
        self.history.append(
            an_experiment(
                number,
                made,
                phase=Phase.DONE,
                outcome=RunOutcome(seconds=1, exit_code=0 if bpb else 1, cause=None if bpb else Cause.SHAPE),
                judgement=Score(val_bpb=bpb, bytes=1, tokens=1) if bpb else None,
                decision=decision,
                frontier_bpb=self.best,
            )
        )


def improvements(seed: int, experiments: int) -> tuple[Effort, list[Verdict]]:
    effort, tuner = Effort(Landscape(seed)), Tuner(seed)
    return effort, [effort.run(tuner.propose(effort.context)) for _ in range(experiments)]


def test_finds_a_better_point_within_eight_proposals() -> None:
    better = 0
    for seed in range(15):
        effort, _ = improvements(seed, 8)
        better += effort.landscape.excess(effort.train_py) < effort.landscape.excess(TRAIN_PY)
    assert better >= 12


def random_search(seed: int, experiments: int) -> float:
    """Excess that remains when every constant is drawn anew each time; the domains are the tuner's."""
    effort, dice = Effort(Landscape(seed)), random.Random(seed)
    for _ in range(experiments):
        values: dict[str, Literal] = {}
        for constant in tunable(find(TRAIN_PY), "cpu"):
            domain = constant.domain
            assert domain is not None
            if not isinstance(domain, Range):
                values[constant.name] = dice.choice(domain.values)
            elif domain.log:
                values[constant.name] = domain.low * (domain.high / domain.low) ** dice.random()
            else:
                values[constant.name] = dice.uniform(domain.low, domain.high)
        effort.run(Change(train_py=replace(TRAIN_PY, values), description="random"))
    return effort.landscape.excess(effort.train_py)


def test_beats_random_search_over_sixty_experiments() -> None:
    seeds = range(4)
    tuned = []
    for seed in seeds:
        effort, _ = improvements(seed, 60)
        tuned.append(effort.landscape.excess(effort.train_py))
    by_chance = [random_search(seed, 60) for seed in seeds]
    assert sum(tuned) < 0.5 * sum(by_chance)
    assert sum(tuned) < 0.5 * 0.06 * len(seeds)


def test_continues_the_same_after_a_restart() -> None:
    """Also when the history has been to the journal and back, where keys lose their order."""
    effort, _ = improvements(3, 5)
    before = Tuner(3).propose(effort.context)
    for index, experiment in enumerate(effort.history):
        told = experiment.proposal
        made = ProposalMade(
            proposal=index,
            description=told.description,
            parameters=told.parameters,
            train_sha256=told.train_sha256,
        )
        read = ProposalMade.model_validate_json(json.dumps(made.model_dump(), sort_keys=True))
        proposal = dataclasses.replace(told, parameters=read.parameters)
        effort.history[index] = dataclasses.replace(experiment, proposal=proposal)
    assert Tuner(3).propose(effort.context) == before
    assert Tuner(4).propose(effort.context) != before


def test_never_proposes_a_text_twice_even_if_the_history_never_hears_of_it() -> None:
    effort = Effort(Landscape(0))
    tuner = Tuner(0)
    texts = [tuner.propose(effort.context).train_py for _ in range(60)]
    assert len({*texts, TRAIN_PY}) == 61


def test_a_step_is_never_too_small_to_tell_from_noise() -> None:
    effort, tuner = Effort(Landscape(0)), Tuner(0)
    rates = []
    for _ in range(150):
        values = tuner.propose(effort.context).parameters["values"]
        assert isinstance(values, dict) and isinstance(values["DECAY"], float)
        rates.append(values["DECAY"])
    moved = [rate for rate in rates if rate != 0.2]
    assert moved and all(abs(rate - 0.2) >= 0.2 * 0.25 * 0.4 - 1e-9 for rate in moved)


def test_a_small_space_is_exhausted_without_a_repetition() -> None:
    source = (
        "# --- tunable constants ---\nA = True\nB = False\n# --- end of tunable constants ---\nmodel = A, B\n"
    )
    effort = Effort(Landscape(0))
    effort.train_py = source
    tuner = Tuner(0)
    texts: list[str] = []
    with pytest.raises(AgentExhausted):
        while len(texts) < 10:
            texts.append(tuner.propose(effort.context).train_py)
    assert len(set(texts)) == len(texts) == 3


LUCKY_PY = """\
import torch

# --- tunable constants ---
SEED = 7               # range: 1..100
RESEED_EVERY = 100     # steps. range: 10..1000 log
EPOCH = 64             # steps. range: 8..512 log
UNREAD = 3             # range: 1..100
RATE = 0.1             # range: 0.01..1 log
WIDTH = 64             # choices: 32, 64, 128
# --- end of tunable constants ---
model = torch.nn.Linear(WIDTH, WIDTH)
for step in range(1000):
    if step % RESEED_EVERY == 0:
        torch.manual_seed(SEED + step)
    torch.cuda.manual_seed(step // EPOCH)
    model.weight.data -= RATE * torch.randn(WIDTH, WIDTH)
"""


@pytest.mark.parametrize("seed", range(3))
def test_what_the_policy_refuses_is_never_offered(seed: int) -> None:
    """SEED, EPOCH and UNREAD change nothing but luck; RESEED_EVERY only sounds like a seed."""
    effort = Effort(Landscape(0))
    effort.train_py = LUCKY_PY
    tuner, tried, offered = Tuner(seed), set[str](), set[str]()
    services = FakeServices(
        frontier_py=LUCKY_PY, refuses=lambda text: "tried" if digest(text) in tried else None
    )
    context = Context(**{**vars(effort.context), "services": services})
    for _ in range(50):
        proposal = tuner.propose(context)
        assert check(proposal.train_py, LUCKY_PY, tried) is None
        tried.add(digest(proposal.train_py))
        changed = proposal.parameters["changed"]
        assert isinstance(changed, list)
        if len(changed) == 1:
            offered.update(map(str, changed))
    assert offered == {"RESEED_EVERY", "RATE", "WIDTH"}


def test_constants_that_change_nothing_but_luck_are_nothing_to_try() -> None:
    effort = Effort(Landscape(0))
    effort.train_py = re.sub("(RESEED_EVERY|RATE|WIDTH) = .*", r"\1 = f()", LUCKY_PY)
    with pytest.raises(AgentExhausted):
        Tuner(0).propose(effort.context)


def test_a_proposal_says_what_it_changed() -> None:
    effort = Effort(Landscape(0))
    proposal = Tuner(1).propose(effort.context)
    before = {c.name: c.value for c in tunable(find(TRAIN_PY), "cpu")}
    after = {c.name: c.value for c in tunable(find(proposal.train_py), "cpu")}
    changed = sorted(name for name in before if after[name] != before[name])
    assert changed and proposal.parameters == {"values": after, "changed": changed}
    assert all(name in proposal.description for name in changed) and "→" in proposal.description
    assert not {"SEED", "DEPTH_GPU"} & set(after)


@pytest.mark.parametrize("effect", [0.05, None])
def test_learns_from_experiments_of_other_agents(effect: float | None) -> None:
    """They record no parameters. Where a larger MATRIX_LR always did badly or crashed, it goes smaller."""
    effort = Effort(Landscape(0))
    assert effort.best is not None
    for step in range(1, 7):
        for rate, result in ((0.04 + 0.006 * step, effect), (0.04 - 0.003 * step, -0.0001)):
            bpb = None if result is None else effort.best + result
            verdict = Verdict.CRASH if bpb is None else Verdict.DISCARD
            text = replace(TRAIN_PY, {"MATRIX_LR": rate})
            effort.record(Change(train_py=text, description=""), bpb, Decision(verdict=verdict, rule=""))
    tuner, rates = Tuner(0), []
    for _ in range(200):
        values = tuner.propose(effort.context).parameters["values"]
        assert isinstance(values, dict) and isinstance(values["MATRIX_LR"], float)
        rates.append(values["MATRIX_LR"])
    smaller, larger = sum(rate < 0.04 for rate in rates), sum(rate > 0.04 for rate in rates)
    assert smaller >= 3 and larger < smaller / 2


def test_a_run_that_found_no_gpu_teaches_nothing() -> None:
    effort = Effort(Landscape(0))
    for cause, moves in ((Cause.NO_GPU, 0), (Cause.SHAPE, 1)):
        text = replace(TRAIN_PY, {"MATRIX_LR": 0.05 + 0.01 * moves})
        decision = Decision(verdict=Verdict.CRASH, cause=cause, rule="R9")
        effort.record(Change(train_py=text, description=""), None, decision)
        assert f"of {moves} earlier moves" in Tuner(0).propose(effort.context).hypothesis


def test_a_replicate_teaches_nothing() -> None:
    effort = Effort(Landscape(0))
    again = Change(train_py=replace(TRAIN_PY, {"MATRIX_LR": 0.06}), description="")
    effort.record(again, 2.0, Decision(verdict=Verdict.DISCARD, cause=Cause.REPLICATE, rule="R7"))
    latest = effort.history[-1]
    effort.history[-1] = dataclasses.replace(latest, proposal=dataclasses.replace(latest.proposal, repeats=0))
    assert "of 0 earlier moves" in Tuner(0).propose(effort.context).hypothesis


def test_after_a_chain_was_taken_back_a_move_is_still_what_it_changed() -> None:
    """What a proposal records as changed counts, not what differs from a keep that is gone."""
    effort = Effort(Landscape(0))
    start = effort.train_py, effort.best
    kept = replace(TRAIN_PY, {"MATRIX_LR": 0.02, "DECAY": 0.1})
    effort.record(Change(train_py=kept, description=""), 1.0, Decision(verdict=Verdict.KEEP, rule="R7"))
    effort.train_py, effort.best = start
    values: dict[str, JsonValue] = {c.name: c.value for c in tunable(find(TRAIN_PY), "cpu")}
    values["MOMENTUM"] = 0.9
    change = Change(
        train_py=replace(TRAIN_PY, {"MOMENTUM": 0.9}),
        description="",
        parameters={"values": values, "changed": ["MOMENTUM"]},
    )
    effort.record(change, 9.0, Decision(verdict=Verdict.DISCARD, cause=Cause.WORSE, rule="R7"))
    tuner = Tuner(0)
    tuner.propose(effort.context)
    assert [*tuner.moves(effort.context)][-1].changed == {"MOMENTUM": 0.9}


@pytest.mark.parametrize(
    ("effect", "kept", "sigma", "expected"),
    [
        (-0.1, True, None, 1.0),
        (-0.1, True, 0.0, 1.0),
        (-0.001, True, 0.01, 0.53),
        (-0.1, True, 0.01, 1.0),
        (0.1, False, 0.01, 0.0),
        (None, False, 0.01, 0.0),
    ],
)
def test_a_keep_counts_as_much_as_it_is_likely_to_be_a_gain(
    effect: float | None, kept: bool, sigma: float | None, expected: float
) -> None:
    assert credit(effect, kept, sigma) == pytest.approx(expected, abs=0.005)


def broken(number: int) -> str:
    raise KeyError(number)


def test_an_unreadable_experiment_of_another_agent_teaches_nothing() -> None:
    effort = Effort(Landscape(0))
    effort.history.append(effort.history[0])
    context = Context(**{**vars(effort.context), "source": broken})
    assert Tuner(0).propose(context).parameters["changed"]


@pytest.mark.parametrize(
    "source",
    [
        "print('no section')\n",
        "# --- tunable constants ---\n# --- end of tunable constants ---\n",
        "# --- tunable constants ---\nSEED = 1\n# --- end of tunable constants ---\n",
        "def broken(:\n",
    ],
)
def test_nothing_to_tune_is_one_clear_sentence(source: str) -> None:
    effort = Effort(Landscape(0))
    effort.train_py = source
    with pytest.raises(AgentExhausted, match=r"^train\.py [^\n]+$"):
        Tuner(0).propose(effort.context)


def test_repairs_and_combines_nothing() -> None:
    effort, tuner = Effort(Landscape(0)), Tuner(0)
    questions: list[Callable[[Context, Experiment], Change | None]] = [tuner.fix, tuner.combine]
    assert [ask(effort.context, effort.history[0]) for ask in questions] == [None, None]
