"""The settings that decide what happens next, and what a person asked for."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from controller.core.decision import Bounds
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.statistics.certificate import NO_CERTIFICATES, CertifyConfig

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AbsenceConfig(BaseModel):
    """Settings of what is done while the agent cannot be reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    understudy_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The tuner proposes in its place once the agent has been absent for so long; none: never."""
    retry_seconds: Seconds = 60.0
    """First retry delay when the agent named none. Doubles after each failure."""
    max_retry_seconds: Seconds = 3600.0
    """The longest retry delay."""


class RetryConfig(BaseModel):
    """Settings of what is done while engine, disk or GPU fail again and again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_seconds: Seconds = 10.0
    """Pause after three faults in a row. Doubles after each further one."""
    max_seconds: Seconds = 900.0
    """The longest pause."""
    stop_after: Annotated[int, Field(gt=0)] | None = None
    """Faults in a row after which the run ends; none: it never does."""


class ReplicatesConfig(BaseModel):
    """Settings of the runs that measure how far chance moves a score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: Annotated[int, Field(ge=1)] = 4
    """How often the baseline runs, its first run included, before anything else does."""
    every: Annotated[int, Field(ge=0)] = 8
    """The program to beat runs again after so many ideas were tried; 0: never."""


NO_REPLICATES = ReplicatesConfig(baseline=1, every=0)


class KeepConfig(BaseModel):
    """Settings of what is kept, for the time being: see docs/decisions/keeps.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["strict", "margin", "certified"] = "strict"
    """`strict`: what is better at all. `margin`: what is better by `keep.margin`. `certified`: what is better
    at all, and each keep is certified at once, whatever that costs, or taken back."""
    margin: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviations of a run."""


@dataclass(frozen=True)
class Limits:
    """When to stop without being asked (R12)."""

    experiments: int | None = None
    """Number of experiments of the effort, the baseline included and replicates not."""
    hours: float | None = None
    """Hours of the effort: while a controller was at work, pauses included."""
    dollars: float | None = None
    """Spent on the effort's agent."""
    dollars_per_day: float | None = None
    """The same, on one UTC day; the next day is waited for."""


@dataclass(frozen=True)
class Wish:
    """What a person asked for last: that nothing new begins, or that it goes on."""

    paused: bool
    by: str = ""
    reason: str = ""
    at: dt.datetime | None = None
    """When, UTC; None: nobody asked."""


@dataclass(frozen=True)
class Rules:
    """What `core/plan.py` goes by besides the state: fixed for a session."""

    agent: str
    """Name of the agent that is asked for proposals."""
    asks_ahead: bool = False
    """True if it is slow, and asked while experiments train."""
    understudy: str | None = None
    """Name of the agent that proposes while the other one is absent."""
    slots: int = 1
    is_watched: bool = False
    """True if the slots are watched for noise."""
    bounds: Bounds = field(default_factory=lambda: Bounds(max_gain=1.0, claim_tolerance=1.0))
    """Beyond which a score is noted or measured again."""
    limits: Limits = field(default_factory=Limits)
    replicates: ReplicatesConfig = NO_REPLICATES
    keep: KeepConfig = field(default_factory=KeepConfig)
    early_end: bool = True
    """True if runs that train much worse than any kept program are ended."""
    certify: CertifyConfig = NO_CERTIFICATES
    absence: AbsenceConfig = field(default_factory=AbsenceConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
