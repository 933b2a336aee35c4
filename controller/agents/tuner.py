"""`tuner`: an optimiser over the constants of train.py. It needs no key and no network.

It searches around the frontier. A proposal is a *move*: one or two constants of the frontier's train.py get
new values, all others stay. It learns from the effect of a move, which is its score minus the score it had to
beat: a score by itself mostly tells how far the effort had come. Optuna's TPE models which values of a
constant had good effects and which had bad ones. A trust region, a share of the range of every constant,
limits the distance from the frontier; it grows after a keep and shrinks after anything else. A keep counts as
much as it is likely to be a gain and not chance, as far as the spread of single runs is known.

The history of experiments is its only memory. So a restart loses nothing, and the same seed and history give
the same proposal.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from controller.agents.search_space import (
    Choices,
    Constant,
    Literal,
    find,
    render,
    replace,
    same,
    tidy,
    tunable,
)
from controller.core.errors import AgentError, AgentExhausted
from controller.core.experiment import Experiment
from controller.core.program.policy import digest
from controller.core.values import Cause, Change, Verdict
from controller.ports import Context

# Chosen on synthetic landscapes; tests/agents/test_tuner.py contains one of them.
_CHANGED_AT_ONCE = (1, 1, 1, 2)
_FIRST_RADIUS, _LEAST_RADIUS, _GREATEST_RADIUS = 0.25, 0.05, 0.5
_GROW, _SHRINK = 1.5, 0.93
_LEAST_STEP = 0.2
"""Share of the radius; the effect of a smaller step is lost in the noise between runs of one script."""
_UNHINTED = 0.25
"""How often a constant without a hint is tried, relative to one with a hint."""
_ATTEMPTS = 300
_ATTEMPTS_PER_WIDENING = 30
_FAILED = 1e-3
"""How much worse a failed move counts than the worst scored one; bits per byte."""

_MEMORY = 1000
"""Experiments to learn from. Older ones say little about the present frontier, and the time that a proposal
takes must not grow without limit."""

Values = dict[str, Literal]


@dataclass(frozen=True)
class Move:
    """What one experiment changed relative to its frontier, and its effect."""

    changed: Values
    effect: float | None
    """Score minus the score to beat, bits per byte; None if the run failed or was rejected."""
    kept: bool
    credit: float
    """How sure it is that the move helped, from 0 to 1."""


class Tuner:
    """An `Agent` that changes constants and nothing else."""

    name = "tuner"
    asks_ahead = False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._offered: set[str] = set()
        """Hashes of what this process proposed; refused proposals do not enter the history."""
        self._ran: deque[tuple[Experiment, Values]] = deque(maxlen=_MEMORY)
        """The latest experiments and the constants they ran with."""
        self._read = 0

    def propose(self, context: Context) -> Change:
        """The next move that the policy accepts. Raises AgentExhausted if there is none."""
        constants = self._constants(context)
        self._catch_up(context)
        moves = list(self.moves(context))
        search = _Search(constants, moves, seed=f"{self._seed}/{len(context.history)}/{len(self._offered)}")
        tried = self._offered | {experiment.proposal.train_sha256 for experiment, _ in self._ran}
        idle: set[str] = set()  # found to change nothing but luck; each check of a text takes some 0.2 s
        for changed in search.candidates():
            if changed.keys() <= idle:
                continue
            train_py = replace(context.train_py, changed)
            sha256 = hashlib.sha256(train_py.encode()).hexdigest()
            if sha256 in tried:
                continue
            if context.services.objection(train_py) is None:
                self._offered.add(sha256)
                return self._proposal(train_py, constants, changed, search)
            if digest(train_py) == digest(context.train_py):
                idle |= changed.keys()
        raise AgentExhausted("the tuner has tried every combination near the frontier")

    def fix(self, context: Context, crashed: Experiment) -> None:
        """Never: what crashes is a value, not a typo."""
        return None

    def combine(self, context: Context, behind: Experiment) -> None:
        """Where two changes conflict, one of them is lost: nothing to search for."""
        return None

    def _constants(self, context: Context) -> list[Constant]:
        try:
            constants = tunable(find(context.train_py), context.scale)
        except AgentError as error:
            raise AgentExhausted(str(error)) from error  # only an edit of train.py could help
        if not constants:
            raise AgentExhausted("train.py has no constant that can be tuned in its marked section")
        return constants

    def _proposal(
        self, train_py: str, constants: Sequence[Constant], changed: Values, search: _Search
    ) -> Change:
        before = {constant.name: constant.value for constant in constants}
        steps = [f"{name} {render(before[name])} → {render(value)}" for name, value in changed.items()]
        return Change(
            train_py=train_py,
            description="; ".join(steps),
            hypothesis=(
                f"A step of at most {search.radius:.0%} of each range from the frontier, "
                f"chosen from the effects of {len(search.moves)} earlier moves, lowers val_bpb."
            ),
            parameters={"values": {**before, **changed}, "changed": [*sorted(changed)]},
        )

    def _catch_up(self, context: Context) -> None:
        history = context.history
        for experiment in history[max(self._read, len(history) - _MEMORY) :]:
            self._ran.append((experiment, self._values(context, experiment)))
        self._read = len(history)

    def moves(self, context: Context) -> Iterator[Move]:
        """What the experiments that were read so far say, oldest first."""
        sigma = context.keeps.sigma
        frontier: Values = {}
        best = context.frontier.experiment
        if best is not None and self._ran and all(known.number != best for known, _ in self._ran):
            frontier = self._values(context, context.finished(best))
        for experiment, values in self._ran:
            if experiment.cause is Cause.NO_GPU or experiment.repeats is not None:
                continue  # says nothing about the values
            kept = experiment.verdict is Verdict.KEEP
            changed = {n: v for n, v in values.items() if n in frontier and not same(v, frontier[n])}
            if isinstance(named := experiment.proposal.parameters.get("changed"), list):
                changed = {n: v for n, v in values.items() if n in named}
            if changed and experiment.frontier_bpb is not None:
                score = experiment.score
                effect = score.val_bpb - experiment.frontier_bpb if score else None
                failed = effect is None or not math.isfinite(effect) or experiment.verdict is Verdict.REJECT
                effect = None if failed else effect
                yield Move(changed, effect, kept, credit(effect, kept, sigma))
            if kept:
                frontier = values

    def _values(self, context: Context, experiment: Experiment) -> Values:
        """The constants an experiment ran with; read from its train.py if another agent made it."""
        recorded = experiment.proposal.parameters.get("values")
        if isinstance(recorded, dict):
            return {name: v for name, v in recorded.items() if isinstance(v, (bool, int, float, str))}
        try:
            found = tunable(find(context.source(experiment.number)), context.scale)
        except (AgentError, LookupError, OSError, ValueError):
            found = []
        return {constant.name: constant.value for constant in found}


class _Search:
    """Candidates for one proposal."""

    def __init__(self, constants: Sequence[Constant], moves: Sequence[Move], seed: str) -> None:
        self.moves = moves
        self.radius = _radius(moves)
        self._constants = constants
        self._axes = {constant.name: _Axis(constant) for constant in constants}
        self._random = random.Random(seed)
        self._study = self._learn()

    def candidates(self) -> Iterator[Values]:
        """A few hundred moves, farther and farther from the frontier; only the constants that change."""
        for attempt in range(_ATTEMPTS):
            radius = self.radius * (1 + attempt // _ATTEMPTS_PER_WIDENING)
            chosen = self._choose()
            trial = self._study.ask({c.name: self._axes[c.name].near(radius) for c in chosen})
            values = {c.name: self._axes[c.name].value_at(trial.params[c.name]) for c in chosen}
            least = _LEAST_STEP * self.radius
            changed = {n: value for n, value in values.items() if self._axes[n].distance(value) >= least}
            if changed:
                yield changed
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)  # so TPE ignores it: it was not run

    def _choose(self) -> list[Constant]:
        """Prefers constants that were rarely tried, that led to keeps, or that have a hint."""
        tried = Counter(name for move in self.moves for name in move.changed)
        won: dict[str, float] = defaultdict(float)
        for move in self.moves:
            for name in move.changed:
                won[name] += move.credit
        weights = [
            (won[c.name] + 1) / (tried[c.name] + 1) * (1.0 if c.hinted else _UNHINTED)
            for c in self._constants
        ]
        count = self._random.choice(_CHANGED_AT_ONCE)
        return list({c.name: c for c in self._random.choices(self._constants, weights, k=count)}.values())

    def _learn(self) -> optuna.Study:
        """A study with one finished trial per move, whose parameters are the constants it changed."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self._random.randrange(2**31), n_startup_trials=1)
        study = optuna.create_study(sampler=sampler)
        worst = max([0.0, *(move.effect for move in self.moves if move.effect is not None)]) + _FAILED
        for move in self.moves:
            params, axes = self._params(move.changed)
            if params:
                value = worst if move.effect is None else move.effect
                study.add_trial(optuna.trial.create_trial(params=params, distributions=axes, value=value))
        return study

    def _params(self, changed: Mapping[str, Literal]) -> tuple[Values, dict[str, BaseDistribution]]:
        """The part of a move that lies within the present ranges and choices."""
        params: Values = {}
        axes: dict[str, BaseDistribution] = {}
        for name, value in changed.items():
            axis = self._axes.get(name)
            position = axis.position(value) if axis else None
            if axis and position is not None:
                params[name], axes[name] = position, axis.whole
        return params, axes


class _Axis:
    """The domain of one constant as TPE samples it: numbers from 0 to 1, words as categories."""

    def __init__(self, constant: Constant) -> None:
        assert constant.domain is not None  # what `tunable` returns has one
        self._value, self._domain = constant.value, constant.domain
        self._words = isinstance(constant.value, (bool, str)) and isinstance(constant.domain, Choices)
        self.whole: BaseDistribution = FloatDistribution(0.0, 1.0)
        if self._words and isinstance(constant.domain, Choices):
            self.whole = CategoricalDistribution(constant.domain.values)

    def near(self, radius: float) -> BaseDistribution:
        """The positions within a radius of the present value, at least to the next choice."""
        here = self.position(self._value)
        if self._words or not isinstance(here, float):
            return self.whole
        if isinstance(self._domain, Choices):
            radius = max(radius, 1 / (len(self._domain.values) - 1))
        return FloatDistribution(max(0.0, here - radius), min(1.0, here + radius))

    def position(self, value: Literal) -> Literal | None:
        """Where a value lies on the axis; None if it does not."""
        domain = self._domain
        if isinstance(domain, Choices):
            index = next((i for i, known in enumerate(domain.values) if same(known, value)), None)
            if index is None or self._words:
                return None if index is None else value
            return index / (len(domain.values) - 1)
        if isinstance(value, (bool, str)) or (domain.log and value <= 0):
            return None
        if domain.log:
            place = math.log(value / domain.low) / math.log(domain.high / domain.low)
        else:
            place = (value - domain.low) / (domain.high - domain.low)
        return min(max(place, 0.0), 1.0)

    def distance(self, value: Literal) -> float:
        """Distance of a value from the present one, from 0 to 1; that of another word is 1."""
        here, there = self.position(self._value), self.position(value)
        if isinstance(here, float) and isinstance(there, float):
            return abs(there - here)
        return 0.0 if same(value, self._value) else 1.0

    def value_at(self, position: Literal) -> Literal:
        """The value at a position, rounded as a person would write it."""
        domain = self._domain
        if self._words or not isinstance(position, float):
            return position
        if isinstance(domain, Choices):
            return domain.values[round(position * (len(domain.values) - 1))]
        if domain.log:
            number = domain.low * (domain.high / domain.low) ** position
        else:
            number = domain.low + position * (domain.high - domain.low)
        if isinstance(self._value, int):
            return int(min(max(round(number), domain.low), domain.high))
        return tidy(number, domain)


def _radius(moves: Sequence[Move]) -> float:
    """Half the width of the trust region, as a share of the range of a constant."""
    radius = _FIRST_RADIUS
    for move in moves:
        radius *= _GROW**move.credit * _SHRINK ** (1.0 - move.credit)
        radius = min(max(radius, _LEAST_RADIUS), _GREATEST_RADIUS)
    return radius


def credit(effect: float | None, kept: bool, sigma: float | None) -> float:
    """The probability that a keep is better in truth: the difference of two runs has the variance 2σ²."""
    if effect is None or not kept:
        return 0.0
    if not sigma:
        return 1.0
    return NormalDist(0.0, math.sqrt(2.0) * sigma).cdf(-effect)
