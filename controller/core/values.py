"""The vocabulary of Glovebox as values."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from controller.core.program.source import plain_text


class Verdict(StrEnum):
    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    REJECT = "reject"


class Cause(StrEnum):
    """Why an experiment was not kept, in a form a program can group by."""

    # discard
    WORSE = "worse"
    EQUAL = "equal"
    MARGIN = "margin"
    REPLICATE = "replicate"
    HOPELESS = "hopeless"
    KILLED = "killed"
    # crash
    SYNTAX = "syntax"
    IMPORT = "import"
    SHAPE = "shape"
    NAME = "name"
    OOM = "oom"
    NAN = "nan"
    TIMEOUT = "timeout"
    NO_CHECKPOINT = "no-checkpoint"
    NO_GPU = "no-gpu"
    EXIT = "exit"
    LOAD = "load"
    FORWARD = "forward"
    WORKER_TIMEOUT = "worker-timeout"
    # reject
    NON_CAUSAL = "non-causal"
    STATEFUL = "stateful"
    BATCH_DEPENDENT = "batch-dependent"
    NOT_FINITE = "not-finite"
    WRONG_SHAPE = "wrong-shape"
    WRONG_DTYPE = "wrong-dtype"
    PROTOCOL = "protocol"
    IMPLAUSIBLE = "implausible"
    EXPOSED = "exposed"
    POLICY = "policy"
    OVER_BUDGET = "over-budget"
    UNCONFIRMED = "unconfirmed"


#: Causes found while scoring that break the rules of the game; the others found there are crashes.
REJECT_CAUSES = frozenset(
    {
        Cause.NON_CAUSAL,
        Cause.STATEFUL,
        Cause.BATCH_DEPENDENT,
        Cause.NOT_FINITE,
        Cause.WRONG_SHAPE,
        Cause.WRONG_DTYPE,
        Cause.PROTOCOL,
        Cause.IMPLAUSIBLE,
        Cause.EXPOSED,
        Cause.POLICY,
        Cause.OVER_BUDGET,
        Cause.UNCONFIRMED,
    }
)

#: Crashes that one automated edit may well repair (R9).
TRIVIAL_CAUSES = frozenset({Cause.SYNTAX, Cause.IMPORT, Cause.SHAPE, Cause.NAME})


class Value(BaseModel):
    """Base of everything that goes into the journal: immutable, and nothing unexpected in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Edit(Value):
    """One exact-match replacement in train.py: `old` stands in the text exactly once."""

    old: str
    new: str


class Change(Value):
    """What an agent answers with: a full new text of train.py and what its author says about it."""

    train_py: Annotated[str, AfterValidator(plain_text)]
    description: str
    """One line for the ledger."""
    hypothesis: str = ""
    expected_effect: float | None = None
    """The change of val_bpb its author expects; negative is better."""
    idea: str = ""
    """A short name by which proposals that try the same thing can be grouped."""
    edits: tuple[Edit, ...] | None = None
    """How train_py was made from the frontier's text, so that it can be made again from another one; None if
    it was not made by edits alone."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """What a searching agent set, so that it can learn from its own history after a restart."""


class Usage(Value):
    """Tokens of one request, as the API counts them: each in input, cache write, cache read or output."""

    input_tokens: int = 0
    """Neither written to the prompt cache nor read from it."""
    cache_write_tokens: int = 0
    cache_write_hour_tokens: int = 0
    """Those of cache_write_tokens that are kept for an hour, which costs more."""
    cache_read_tokens: int = 0
    output_tokens: int = 0


class RehearsalResult(Value):
    """What became of building a text's model and taking one step with it."""

    result: Literal["passed", "failed", "inconclusive"]
    """`failed`: a run or its scoring would fail as well; `inconclusive`: nothing was learnt."""
    detail: str = ""
    """Safe text of several lines, but still the words of a run: fence it for a language model."""
    seconds: float


class Frontier(Value):
    """The best verified commit."""

    commit: str
    val_bpb: FiniteFloat | None = None
    """What has to be beaten: the score it was kept for, or the mean of its fresh runs once there are two.
    None until the baseline has been scored."""
    experiment: int | None = None
    runs: int = 0
    """How many fresh runs val_bpb is the mean of; 0: it is one score."""


class Claim(Value):
    """What a run printed about itself. It decides nothing."""

    val_bpb: float | None = None
    peak_vram_mb: float | None = None
    num_steps: float | None = None
    num_params_M: float | None = None
    training_seconds: float | None = None
    startup_seconds: float | None = None
    compile_seconds: float | None = None
    total_tokens_M: float | None = None
    mfu_percent: float | None = None
    depth: float | None = None


class Curve(Value):
    """The training loss that a run reported while it trained, nats per token.

    A claim: no score is made of it, but it may end the run early (core/statistics/hopeless.py).
    """

    losses: tuple[FiniteFloat | None, ...] = ()
    """The mean of what it reported in each 64th of its budget, as far as it got; None: nothing."""
    step: int | None = None
    """Of the latest report."""
    broken_at: float | None = None
    """Seconds after its start when it reported a loss that is not a finite number."""


class DisturbanceKind(StrEnum):
    """What the machine, not the experiment, did to a run."""

    CPU_LOAD = "cpu-load"
    GPU_LOST = "gpu-lost"
    GPU_SHARED = "gpu-shared"
    GPU_THROTTLED = "gpu-throttled"


class Disturbance(Value):
    """One reason to believe that a run was not alone on its slot, or that the slot was not itself."""

    kind: DisturbanceKind
    measured: float | None = None
    """In the unit of `limit`; None where there is nothing to count."""
    limit: float | None = None
    """The setting that was exceeded: a share, or bytes."""
    before: bool = False
    """Seen before the run began, so that the run cannot have made it."""
    detail: str
    """One sentence for people."""


class CpuConditions(Value):
    """Who used the machine's CPUs during a training. Shares of all the CPU time there was, 0 to 1."""

    seconds: float
    """Wall-clock seconds that were watched."""
    ours: float
    """Used by the containers of this home and by the controller."""
    others: float
    """Used by everybody else; what a hypervisor took away is among it."""
    contended: float
    """The part of `others` that was used while hardly any CPU was idle: only that slows a run down."""


class GpuConditions(Value):
    """What the driver said of the slot's GPUs during a training, all of them together."""

    spec_sha256: str
    """Digest of the container that asked it."""
    samples: int
    temperature_mean: float | None = None
    """Degrees Celsius."""
    temperature_max: float | None = None
    sm_clock_mean: float | None = None
    """MHz."""
    sm_clock_min: float | None = None
    power_mean: float | None = None
    """Watts."""
    power_max: float | None = None
    throttled: dict[str, float] = Field(default_factory=dict)
    """Share of samples by what lowered the clocks: see core/hardware/nvidia_smi.py."""
    foreign_bytes: int | None = None
    """GPU memory in use before the training."""
    left_bytes: int | None = None
    """GPU memory in use after it."""
    foreign_share: float | None = None
    """How busy the GPU was before the training, 0 to 1."""
    lost: str = ""
    """What the driver said when it could not reach a GPU any more."""


class Conditions(Value):
    """The machine during a training, and what of it is beyond the limits that were set."""

    cpu: CpuConditions | None = None
    """None if nobody could tell."""
    gpu: GpuConditions | None = None
    disturbances: tuple[Disturbance, ...] = ()


class RunOutcome(Value):
    """How the trainer container of one experiment ended."""

    seconds: float
    """Life of the container as the engine reports it."""
    exit_code: int | None
    start_seconds: float | None = None
    """From taking the attempt on to the start of the container; None if it was adopted."""
    kill_sent_seconds: float | None = None
    """When our SIGKILL was sent, since that start; None if none was. The rest of its life is what engine,
    kernel and the GPU's driver took to end it."""
    killed_at_limit: bool = False
    oom_killed: bool = False
    cause: Cause | None = None
    """None: the run deserves to be scored."""
    detail: str = ""
    """One safe line for people: the last line of the traceback, say."""
    claim: Claim = Claim()
    curve: Curve = Curve()
    log_sha256: str = ""
    log_bytes: int = 0
    """Bytes the run printed, before any capping."""
    conditions: Conditions | None = None
    """None if the machine was not watched."""


class Draw(Value):
    """Which rows a scoring is given that no worker of its effort was given before: see harness/fresh.py."""

    scoring: int = Field(ge=0, le=999_999_999)
    """Number of the scoring among those of the effort, from 0."""
    confirmation: int = Field(ge=0, le=999_999_999)
    """Number of its confirmation, should there be one, among those there have been."""


class Fresh(Value):
    """How a model does on rows that no worker was given before: see harness/fresh.py. Bits per byte."""

    rows: int
    left: int
    """Rows of the reserve that no worker has been given yet."""
    asked_before: bool = False
    """The reserve is used up: these rows were asked in an earlier scoring."""
    gap: FiniteFloat
    """How much worse it does on them than on the scored ones, difficulty aside."""
    fresh_error: FiniteFloat
    """Standard error of the gap by the choice of the fresh rows."""
    scored_error: FiniteFloat
    """The same by the choice of the scored rows; this one all scorings of an effort have in common."""
    p_value: FiniteFloat
    """Of such a gap or a larger one, for a model that knows neither."""


class Work(Value):
    """What one worker used until the judge had said what it found, and what it might use."""

    wall_seconds: float
    """Since the start of its container."""
    cpu_seconds: float | None
    """Of all its processes; None if the engine could not tell."""
    allowed_wall_seconds: float | None = None
    """None: nothing was there to compare with, and the judge's own time limits held."""
    allowed_cpu_seconds: float | None = None


class Score(Value):
    """What the judge measured. Bits per byte; lower is better."""

    val_bpb: float
    holdout_bpb: float | None = None
    """On fresh rows."""
    bytes: int
    tokens: int
    holdout_bytes: int = 0
    fresh: Fresh | None = None
    """None only where no judge of ours measured it."""
    confirmed: bool = False
    """A second worker bore it out. Only a confirmed score may be kept."""
    isolation: str = ""
    """`caches emptied` or `shared caches`: whether what earlier experiments and workers left in the kernel's
    caches was gone when those of this score started."""
    seconds: float = 0.0
    """Time the judge spent, start-up of the containers excluded."""
    probes: dict[str, JsonValue] = Field(default_factory=dict)
    work: tuple[Work, ...] = ()
    """Of the first worker, and of the second if there was one."""

    @property
    def on_fresh_rows(self) -> float | None:
        """What the score would be on fresh rows as difficult as the scored ones."""
        return None if self.fresh is None else self.val_bpb + self.fresh.gap


class Refusal(Value):
    """Why the judge gave no score."""

    cause: Cause
    detail: str = ""
    """A sentence of ours. No text of a worker is in it."""
    symptom: Cause | None = None
    """What was to be seen of it, if `cause` says what that is taken for. A disturbance of the machine may be
    behind a worker that was slow or failed, and behind nothing else."""
    confirming: bool = False
    """True if a first worker had got through with the same checkpoint and a second one did not."""
    work: tuple[Work, ...] = ()
    """Of the first worker, and of the second if there was one."""


class Decision(Value):
    """The verdict on one experiment and the rule that gave it."""

    verdict: Verdict
    cause: Cause | None = None
    rule: str


class Evidence(Value):
    """What pairs of runs say about the gain of a program over another. Bits per byte; positive is better."""

    pairs: int
    """Those of which both runs gave a score."""
    gain: FiniteFloat
    low: FiniteFloat | None
    """Ends of the 95 % interval of the gain; None if it is unbounded."""
    high: FiniteFloat | None
    e_value: FiniteFloat
    """Evidence for a gain: see core/statistics/evidence.py."""
    sigma: FiniteFloat | None
    """Standard deviation of single runs, from these and from all others; None if nothing is known of it."""
    df: int
    """Degrees of freedom of sigma."""
    holdout_gain: FiniteFloat | None
    """The same on fresh rows; None if it was not measured."""
    holdout_low: FiniteFloat | None
    holdout_high: FiniteFloat | None
    holdout_e_against: FiniteFloat
    """Evidence for a loss on fresh rows."""


class Provenance(Value):
    """What exactly ran: enough to run it again and to compare two runs."""

    image: str
    data: str
    """Fingerprint of the prepared data."""
    prepare: str
    """sha256 of prepare.py."""
    program: str
    """sha256 of program.md."""
    harness: str
    """sha256 over every harness file that is mounted."""
    scale: str
    device: str
    """`cpu` or the name of the GPU."""
    driver: str = ""
    cuda: str = ""
    """That the image's PyTorch was built for; empty on a CPU, as are the next two."""
    capability: str = ""
    """Compute capability of the GPU, `9.0` for instance."""
    gpu_memory: str = ""
    """All of the GPU's memory."""
    size: str = ""
    """Name of the data's size: `cpu`, `gpu` or one in between."""
    engine: str = ""
    runtime: str = ""
    controller: str = ""
    """Version of Glovebox."""
