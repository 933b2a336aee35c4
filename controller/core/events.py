"""Every fact the journal can hold, one class each. All on one page: it is what an auditor reads first.

A fact is written before the action that depends on it and after the action that establishes it.
The life of one experiment in the order of its events:

    Proposed → TrainingStarted → TrainingFinished → ScoringStarted → ScoringFinished → Decided → Committed
                     └────────────────┴─────→ Voided (no fault of its own; the next attempt starts over)

A crashed run skips scoring; only a kept one is committed. After ScoringFinished there may stand one
ClaimMismatch, and one Quarantined, after which the checkpoint is scored once more. Between a Voided that says
`disturbed` and the next TrainingStarted stand any number of SlotDisturbed and then one SlotCalm.

What an agent does stands beside that life, in whatever order it happens: ApiRequested, then ApiAnswered or
ApiFailed, with the number of the call; Rehearsed; Prepared, ahead of its Proposed; RepairGivenUp;
AgentFailed; AgentAbsent and AgentReturned. So do Paused and Resumed, between experiments.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from controller.core.values import (
    Decision,
    Disturbance,
    Draw,
    Edit,
    Provenance,
    Refusal,
    RunOutcome,
    Score,
    Usage,
    Value,
)


class EffortStarted(Value):
    """A research effort begins on a new branch."""

    event: Literal["effort_started"] = "effort_started"
    tag: str
    base_commit: str


class SessionStarted(Value):
    """A process took the home over. Everything that runs in it runs with this provenance."""

    event: Literal["session_started"] = "session_started"
    agent: str
    budget_seconds: float
    provenance: Provenance
    settings: dict[str, JsonValue] = Field(default_factory=dict)


class SessionStopped(Value):
    """The loop ended on purpose: a limit, a person, or an agent with nothing left to try."""

    event: Literal["session_stopped"] = "session_stopped"
    reason: str


class ProposalRefused(Value):
    """A proposal was refused before it cost any training time."""

    event: Literal["proposal_refused"] = "proposal_refused"
    agent: str
    description: str
    cause: str
    detail: str
    train_sha256: str
    fixes: int | None = None
    """The experiment whose crash it was to repair."""


class Proposed(Value):
    """A proposal became an experiment."""

    event: Literal["proposed"] = "proposed"
    experiment: int
    description: str
    hypothesis: str
    agent: str
    parent: str
    """The frontier commit it starts from."""
    expected_effect: float | None = None
    """Bits per byte; negative is better."""
    idea: str = ""
    stands_in_for: str | None = None
    """The agent that was away when another one made this proposal."""
    prepared_for: int | None = None
    """The `for_experiment` of the Prepared it comes from; a fix may have taken that number meanwhile."""
    fixes: int | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    train_sha256: str
    """Blob: the full text as it will run."""
    digest: str
    """Of what the text does, as far as its syntax tells: see core/program/policy.py."""
    diff_sha256: str
    """Blob: the change against the parent."""


class TrainingStarted(Value):
    """The trainer container is about to be started."""

    event: Literal["training_started"] = "training_started"
    experiment: int
    attempt: int
    container: str
    spec_sha256: str
    budget_seconds: float


class TrainingFinished(Value):
    event: Literal["training_finished"] = "training_finished"
    experiment: int
    attempt: int
    outcome: RunOutcome


class ScoringStarted(Value):
    """The workers and the judge are about to be started."""

    event: Literal["scoring_started"] = "scoring_started"
    experiment: int
    attempt: int
    seed: int
    draw: Draw
    """Which fresh rows its workers are given."""
    specs: dict[str, str]
    """Digest of each container's spec, by its name."""


class ScoringFinished(Value):
    event: Literal["scoring_finished"] = "scoring_finished"
    experiment: int
    attempt: int
    score: Score | None = None
    refusal: Refusal | None = None


class ClaimMismatch(Value):
    """What the run said about itself is not what the judge measured. It decides nothing."""

    event: Literal["claim_mismatch"] = "claim_mismatch"
    experiment: int
    attempt: int
    claim: float
    """The run's own val_bpb, on the dev split."""
    score: float
    bound: float
    """Bits per byte by which they may differ."""


class Quarantined(Value):
    """A score that would be kept is hard to believe; fresh containers are to score the checkpoint again."""

    event: Literal["quarantined"] = "quarantined"
    experiment: int
    attempt: int
    reason: str
    score: Score


class Decided(Value):
    event: Literal["decided"] = "decided"
    experiment: int
    decision: Decision
    frontier_bpb: float | None
    """The score that had to be beaten."""


class Committed(Value):
    """A kept experiment is the head of the branch."""

    event: Literal["committed"] = "committed"
    experiment: int
    commit: str


VoidCause = Literal["infrastructure", "disturbed", "interrupted"]
"""An engine or disk failed; the machine disturbed the run; a person, or the controller's end, stopped it."""


class Voided(Value):
    """An attempt came to nothing through no fault of the experiment; it is repeated."""

    event: Literal["voided"] = "voided"
    experiment: int
    attempt: int
    cause: VoidCause
    reason: str
    evidence: Disturbance | None = None
    """With `disturbed`: what was measured. The rest of it stands in the attempt's TrainingFinished."""


class SlotDisturbed(Value):
    """The slot was looked at, with no training on it, and is not fit for one; the experiment waits."""

    event: Literal["slot_disturbed"] = "slot_disturbed"
    experiment: int
    disturbance: Disturbance
    looks: int
    """How often it was looked at in vain by now, since the run that was disturbed."""
    until: str
    """When it will be looked at again, UTC."""


class SlotCalm(Value):
    """The slot is fit again for the experiment that was disturbed on it."""

    event: Literal["slot_calm"] = "slot_calm"
    experiment: int
    seconds: float
    """How long this process waited for it."""


class ApiRequested(Value):
    """A request to a language model is about to be sent; from here on its cost counts as spent."""

    event: Literal["api_requested"] = "api_requested"
    call: int
    """Numbers the calls of the effort from 0."""
    for_experiment: int
    """The experiment that is to come of it."""
    purpose: Literal["propose", "fix"]
    mode: str = ""
    """What the digest of history asked for: see agents/llm/prompt.py."""
    model: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    request_sha256: str
    """Blob: the body as sent, without the key."""
    request_bytes: int
    reserved_usd: float
    """The most it can cost."""


class ApiAnswered(Value):
    event: Literal["api_answered"] = "api_answered"
    call: int
    reply_sha256: str
    """Blob: the message as received."""
    reply_bytes: int
    stop_reason: str
    usage: Usage
    seconds: float
    cost_usd: float


class ApiFailed(Value):
    """A request got no usable reply."""

    event: Literal["api_failed"] = "api_failed"
    call: int
    status: int | None
    """HTTP status; None if the connection failed, timed out or was cut."""
    error: str
    seconds: float
    usage: Usage = Usage()
    """What is known of it, when a stream was cut."""
    cost_usd: float
    """0 if the request was refused; what was reserved if nobody knows."""


class Rehearsed(Value):
    """A text was built and stepped once in a sealed container, before it became an experiment."""

    event: Literal["rehearsed"] = "rehearsed"
    for_experiment: int
    train_sha256: str
    result: Literal["passed", "failed", "inconclusive"]
    detail: str
    seconds: float


class Prepared(Value):
    """A proposal is ready while an experiment still trains."""

    event: Literal["prepared"] = "prepared"
    for_experiment: int
    agent: str
    parent: str
    """The frontier commit it starts from."""
    description: str
    hypothesis: str
    expected_effect: float | None = None
    idea: str = ""
    train_sha256: str
    edits: tuple[Edit, ...] | None = None


class PreparationDropped(Value):
    """A prepared proposal was given up: the frontier moved and its edits no longer apply, say."""

    event: Literal["preparation_dropped"] = "preparation_dropped"
    for_experiment: int
    reason: str


class RepairGivenUp(Value):
    """The one repair that a crash gets came to nothing; a refused one says so in its ProposalRefused."""

    event: Literal["repair_given_up"] = "repair_given_up"
    fixes: int
    """The experiment that crashed."""
    reason: str


class AgentFailed(Value):
    """The agent produced no usable proposal this time."""

    event: Literal["agent_failed"] = "agent_failed"
    agent: str
    for_experiment: int
    reason: str


class AgentAbsent(Value):
    """The agent cannot be reached."""

    event: Literal["agent_absent"] = "agent_absent"
    agent: str
    reason: str
    until: str | None
    """When it will be asked again, UTC; None: not before somebody changes something."""


class AgentReturned(Value):
    event: Literal["agent_returned"] = "agent_returned"
    agent: str
    seconds: float
    """How long it was away."""


class Paused(Value):
    """Nothing new begins for now. Said again when the time of the next try is another one."""

    event: Literal["paused"] = "paused"
    why: Literal["person", "disk", "infrastructure"]
    reason: str
    by: str = ""
    """Who asked for it, if a person did."""
    until: str | None = None
    """When the next try is due, UTC; None: when what it waits for has happened."""


class Resumed(Value):
    """A pause is over: a person said so, there is room on the disk, or an experiment got through."""

    event: Literal["resumed"] = "resumed"
    why: Literal["person", "disk", "infrastructure"]
    by: str = ""
    """Who said so, if a person did."""
    seconds: float
    """How long this process paused."""


class JournalRepaired(Value):
    """A torn last line, left by a process that died while writing, was cut off."""

    event: Literal["journal_repaired"] = "journal_repaired"
    removed: str
    """The torn bytes, clipped and made printable."""


class Pruned(Value):
    """Files that only people read are about to be removed, to keep within the limits on storage."""

    event: Literal["pruned"] = "pruned"
    what: Literal["logs", "calls"]
    """Run logs of experiments that were not kept, or requests to language models and their replies."""
    before: int
    """Number of the first experiment or call that is spared; everything older goes."""
    bytes: int


AnyEvent = (
    EffortStarted
    | SessionStarted
    | SessionStopped
    | ProposalRefused
    | Proposed
    | TrainingStarted
    | TrainingFinished
    | ScoringStarted
    | ScoringFinished
    | ClaimMismatch
    | Quarantined
    | Decided
    | Committed
    | Voided
    | SlotDisturbed
    | SlotCalm
    | ApiRequested
    | ApiAnswered
    | ApiFailed
    | Rehearsed
    | Prepared
    | PreparationDropped
    | RepairGivenUp
    | AgentFailed
    | AgentAbsent
    | AgentReturned
    | Paused
    | Resumed
    | JournalRepaired
    | Pruned
)
Event = Annotated[AnyEvent, Field(discriminator="event")]


class Record(Value):
    """One line of the journal: an event and its place in the chain."""

    seq: int
    time: str
    """UTC, ISO 8601, microseconds."""
    experiment: int | None
    data: Event
    prev: str
    """Hash of the line before; 64 zeros for the first."""
    hash: str
