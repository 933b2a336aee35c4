"""Settings and constants of scoring."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from controller.core.decision import Bounds

AHEAD_SECONDS = 15.0
"""Importing takes three to five on an idle machine."""
START_SECONDS = 30.0
"""How much longer than its time limit a scoring may take to start and to end."""
MISS_PROBABILITY = 0.001
"""How likely it is, at most, that a model with a leak of `leak_fraction` or more is not found out. The number
of probes grows with its logarithm only, so a larger value would save little."""
LEAK_REACH = 1
"""How many tokens ahead the leaking model of that calculation sees. One is the hardest to find."""
CLAIM_TOLERANCE = 0.15
"""Share of the score by which a run's own val_bpb may differ from it before that is noted. It decides
nothing."""


class JudgeConfig(BaseModel):
    """Settings of scoring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_tokens: int = Field(default=16384, gt=0)
    """Tokens the worker sees at once, in whole rows. Each is answered with 4 bytes per vocabulary entry, on a
    GPU with 2."""
    score_tokens: int | None = Field(default=None, gt=0)
    """Tokens to score, the same in every scoring; none: what the data's manifest says."""
    holdout_score_tokens: int | None = Field(default=None, gt=0)
    """The most fresh tokens, those of the hold-out, to ask for beside them; none: what the manifest says."""
    first_batch_seconds: float = Field(default=120.0, gt=0)
    """For a worker to start, build the model, load the checkpoint and answer the first batch."""
    batch_seconds: float = Field(default=60.0, gt=0)
    """For every further batch."""
    total_seconds: float = Field(default=300.0, gt=0)
    """For all of it; a confirmation gets as much again."""
    ahead_seconds: float | None = Field(default=None, ge=0)
    """How long before the end of a training workers and judge are started, to import what they need and to
    wait; none: 15 beside a GPU, and not at all beside a CPU, which the training needs."""
    work_share: float = Field(default=0.1, gt=0)
    """Share of the budget that a worker may compute for beyond what the baseline's workers needed."""
    leak_fraction: float = Field(default=0.001, gt=0, lt=1)
    """Share of positions at which a kept model may have seen the future without being found out, at most."""
    max_gain: float = Field(default=0.1, gt=0)
    """Share of the frontier's score by which one step may beat it before it is measured again."""

    def ahead(self, gpu: bool) -> float:
        """Seconds before the end of a training at which its scoring is made ready; 0: not before its end."""
        return self.ahead_seconds if self.ahead_seconds is not None else AHEAD_SECONDS if gpu else 0.0

    @property
    def bounds(self) -> Bounds:
        """What the loop checks a score against; the judge is not told."""
        return Bounds(self.max_gain, CLAIM_TOLERANCE)

    @property
    def worker_seconds(self) -> float:
        """How long a worker may live once it has begun."""
        return self.total_seconds + START_SECONDS

    @property
    def judge_seconds(self) -> float:
        """How long the judge may live once it has begun."""
        return 2 * self.total_seconds + START_SECONDS
