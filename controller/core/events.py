"""Every fact the journal can hold, one class each. All on one page: it is what an auditor reads first.

A fact is written before the action that depends on it and after the action that establishes it.

A proposal has a number from the moment it is asked for:

    ProposalAsked → ProposalMade → ExperimentOpened
          └──────────────┴─────→ ProposalDropped, ProposalRefused or AgentFailed

Calls to a language model (ApiRequested, then ApiAnswered or ApiFailed) and rehearsals name the proposal that
they are for. ProposalRebased says that a proposal was made to fit another frontier.

The events of one experiment, in order:

    ExperimentOpened → TrainingStarted → TrainingFinished → ScoringStarted → ScoringFinished → Decided
                             └────────────────┴────────→ Voided                                   └→ Committed

A crashed run is not scored; only a kept one is committed. After a Voided, which says that the attempt failed
through no fault of the experiment, the next TrainingStarted begins another attempt. ScoringFinished may be
followed by one ClaimMismatch and by one Quarantined, after which the checkpoint is scored again. Between a
Voided that says `disturbed` and the next TrainingStarted stand any number of SlotDisturbed and one SlotReady.

A certificate is CertificateOpened → CertificateDecided → CertificateSettled; between the first two stand the
replicates that are run for it. There is one at a time.

AgentAbsent, AgentReturned, Paused and Resumed may stand anywhere, and so may Steered and SteeringRefused,
which answer a person's request. A rollback is Steered → RolledBack. After a kill the experiment is Voided, if
it was under way, and Decided without having run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from controller.core.values import (
    Decision,
    Disturbance,
    Draw,
    Edit,
    Evidence,
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


Purpose = Literal["baseline", "propose", "fix", "merge", "replicate", "queued"]
"""The unchanged train.py of the effort; a new idea; the repair of a crash; two changes put together; a
program that ran before, under another seed; a program that a person put in the queue."""


class ProposalAsked(Value):
    """An agent is about to be asked for a proposal."""

    event: Literal["proposal_asked"] = "proposal_asked"
    proposal: int
    """Numbers the proposals of the effort from 0, which is the baseline."""
    agent: str
    purpose: Purpose
    parent: str
    """The frontier commit it starts from."""
    fixes: int | None = None
    """With `fix`: the experiment that crashed."""
    merges: int | None = None
    """With `merge`: the experiment whose change is to be added to the frontier's."""
    repeats: int | None = None
    """With `replicate`: the experiment whose program runs again."""
    certificate: int | None = None
    """With `replicate`: the certificate for which it runs, if it does for one."""
    pair: int | None = None
    """The pair of it that it is a half of, from 0."""
    stands_in_for: str | None = None
    """The agent that was absent when another one was asked."""
    request: str = ""
    """With `queued`: the request of the person who put it there."""
    instructions: tuple[str, ...] = ()
    """The requests whose instructions go to the agent with this question."""


class ProposalMade(Value):
    """The agent answered with a text."""

    event: Literal["proposal_made"] = "proposal_made"
    proposal: int
    description: str
    hypothesis: str = ""
    expected_effect: float | None = None
    """Bits per byte; negative is better."""
    idea: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    edits: tuple[Edit, ...] | None = None
    """How the text was made from the parent's; None if not by edits alone."""
    train_sha256: str
    """Blob: the full text."""


class ProposalRehearsed(Value):
    """A text was built and stepped once in a sealed container, before it became an experiment."""

    event: Literal["proposal_rehearsed"] = "proposal_rehearsed"
    proposal: int
    train_sha256: str
    result: Literal["passed", "failed", "inconclusive"]
    detail: str
    seconds: float


class ProposalRebased(Value):
    """The frontier moved, and the proposal was made to fit the new one."""

    event: Literal["proposal_rebased"] = "proposal_rebased"
    proposal: int
    parent: str
    train_sha256: str


class ProposalDropped(Value):
    """A proposal was given up before it became an experiment: it was stale, or nothing came of it."""

    event: Literal["proposal_dropped"] = "proposal_dropped"
    proposal: int
    reason: str
    unanswered: bool = False
    """The agent was not heard, or never asked: a repair or a merge is still wanted."""


class ProposalRefused(Value):
    """A proposal was refused before it cost any training time: core/program/policy.py."""

    event: Literal["proposal_refused"] = "proposal_refused"
    proposal: int
    cause: str
    detail: str


class ExperimentOpened(Value):
    """A proposal became an experiment on a slot."""

    event: Literal["experiment_opened"] = "experiment_opened"
    experiment: int
    proposal: int
    slot: int
    parent: str
    """The frontier commit it starts from."""
    train_sha256: str
    """Blob: the full text, as it is committed if it is kept."""
    seed: int
    """Drawn by the controller, the same for every attempt; what the run finds as `prepare.SEED`."""
    ran_sha256: str
    """Blob: the text that runs, with the controller's seed in place of its own: core/program/seeding.py."""
    digest: str
    """Of what the text does, as far as its syntax tells: see core/program/policy.py."""
    diff_sha256: str
    """Blob: the change against the parent."""


class ExperimentMoved(Value):
    """An experiment that waits to be run goes to another slot, because its own is no longer there."""

    event: Literal["experiment_moved"] = "experiment_moved"
    experiment: int
    slot: int


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
    margin: float = 0.0
    """Bits per byte by which."""


class Committed(Value):
    """A kept experiment is the head of the branch."""

    event: Literal["committed"] = "committed"
    experiment: int
    commit: str


class CertificateOpened(Value):
    """The head of a chain of keeps and the last certified program are about to run in pairs."""

    event: Literal["certificate_opened"] = "certificate_opened"
    certificate: int
    """Numbers the certificates of the effort from 0."""
    base: int
    """The experiment whose program is certified, or the first keep."""
    head: int
    """The experiment that was kept last."""


CertificateOutcome = Literal["certified", "failed", "overfit"]
"""The chain is a gain; there is not enough evidence for one; the hold-out contradicts it."""


class CertificateDecided(Value):
    """What came of the pairs."""

    event: Literal["certificate_decided"] = "certificate_decided"
    certificate: int
    base: int
    head: int
    outcome: CertificateOutcome
    rule: str
    evidence: Evidence
    most_pairs: int
    """The setting at the time."""


class CertificateSettled(Value):
    """The repository says so, too: the certified head has moved, or the frontier is back on it."""

    event: Literal["certificate_settled"] = "certificate_settled"
    certificate: int
    commit: str
    """The certified commit, or the one that takes the chain back."""


VoidCause = Literal["infrastructure", "disturbed", "interrupted", "killed"]
"""An engine or disk failed; the machine disturbed the run; a person, or the controller's end, stopped it; a
person killed the experiment."""


class Voided(Value):
    """An attempt came to nothing through no fault of the experiment; it is repeated unless it was killed."""

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
    """How many looks have found it disturbed, since the run that was disturbed."""
    until: str
    """When it will be looked at again, UTC."""


class SlotReady(Value):
    """The slot is fit again for the experiment that was disturbed on it."""

    event: Literal["slot_ready"] = "slot_ready"
    experiment: int
    seconds: float
    """How long this process waited for it."""


class ApiRequested(Value):
    """A request to a language model is about to be sent; from here on its cost counts as spent."""

    event: Literal["api_requested"] = "api_requested"
    call: int
    """Numbers the calls of the effort from 0."""
    proposal: int
    """The proposal it is for."""
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


class AgentFailed(Value):
    """The agent produced no usable proposal this time."""

    event: Literal["agent_failed"] = "agent_failed"
    agent: str
    proposal: int
    reason: str


class AgentAbsent(Value):
    """The agent cannot be reached."""

    event: Literal["agent_absent"] = "agent_absent"
    agent: str
    reason: str
    until: str | None
    """When it will be asked again, UTC; None: not until a person changes something."""
    times: int = 1
    """How often in a row it could not be reached; questions that were on their way together count once."""


class AgentReturned(Value):
    event: Literal["agent_returned"] = "agent_returned"
    agent: str
    seconds: float
    """How long it was away."""


class Paused(Value):
    """Nothing new begins for now, on one slot or on all. Repeated when the time of the next try changes."""

    event: Literal["paused"] = "paused"
    why: Literal["person", "disk", "infrastructure"]
    slot: int | None = None
    """With `infrastructure`: the slot on which experiments failed."""
    reason: str
    by: str = ""
    """Who asked for it, if a person did."""
    until: str | None = None
    """When the next try is due, UTC; None: when what it waits for has happened."""


class Resumed(Value):
    """A pause is over: a person said so, there is room on the disk, or an experiment got through."""

    event: Literal["resumed"] = "resumed"
    why: Literal["person", "disk", "infrastructure"]
    slot: int | None = None
    by: str = ""
    """Who said so, if a person did."""
    seconds: float
    """How long this process paused."""


Verb = Literal["instruct", "queue", "kill", "requeue", "rollback", "limit", "agent", "hold", "release"]
"""What a person may ask of an effort. `hold` and `release` are `pause` and `continue` for one slot."""


class Answered(Value):
    """What both answers to a person's request say of it."""

    request: str
    """Its id."""
    verb: Verb
    by: str
    """Who asked for it."""
    at: str
    """When, UTC."""
    reason: str = ""


class Steered(Answered):
    """A person's request is granted: core/steering_request.py. What comes of it stands in later events."""

    event: Literal["steered"] = "steered"
    target: int | None = None
    """With `kill`, `requeue` and `rollback`: the experiment."""
    slot: int | None = None
    """With `hold` and `release`."""
    text: str = ""
    """With `instruct`: what the agent is told. With `queue` and `requeue`: the description of the program."""
    train_sha256: str = ""
    """With `queue` and `requeue`, blob: the program."""
    limits: dict[str, float | None] = Field(default_factory=dict)
    """With `limit`: by name, those that change; None: no limit."""
    agent: str = ""
    """With `agent`: its name."""


class SteeringRefused(Answered):
    """A person's request cannot be granted. Nothing changes."""

    event: Literal["steering_refused"] = "steering_refused"
    because: str
    """Why not, in a sentence."""


class RolledBack(Value):
    """The branch has gone back to an earlier program, as a person asked; it is the frontier."""

    event: Literal["rolled_back"] = "rolled_back"
    request: str
    target: int
    """The experiment whose program it is."""
    commit: str
    """The commit that takes everything since back."""


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
    | ProposalAsked
    | ProposalMade
    | ProposalRehearsed
    | ProposalRebased
    | ProposalDropped
    | ProposalRefused
    | ExperimentOpened
    | ExperimentMoved
    | TrainingStarted
    | TrainingFinished
    | ScoringStarted
    | ScoringFinished
    | ClaimMismatch
    | Quarantined
    | Decided
    | Committed
    | CertificateOpened
    | CertificateDecided
    | CertificateSettled
    | Voided
    | SlotDisturbed
    | SlotReady
    | ApiRequested
    | ApiAnswered
    | ApiFailed
    | AgentFailed
    | AgentAbsent
    | AgentReturned
    | Paused
    | Resumed
    | Steered
    | SteeringRefused
    | RolledBack
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
