"""Homes to look at: long efforts, made in seconds by filling in the lines of one experiment of each kind.

What stands in the journal is a history that Glovebox can have lived, with blobs, run logs and an experiment
that trains; there is no repository and no ledger.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    ApiRequested,
    CertificateDecided,
    CertificateOpened,
    CertificateSettled,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    ProposalAsked,
    ProposalMade,
    ProposalRehearsed,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.values import (
    Cause,
    Claim,
    Conditions,
    CpuConditions,
    Curve,
    Decision,
    Draw,
    Evidence,
    Fresh,
    GpuConditions,
    Provenance,
    Refusal,
    RunOutcome,
    Score,
    Usage,
    Verdict,
)
from controller.store.journal import GENESIS, NAME, Position, blob_path, encode_line
from tests.support.efforts import PROVENANCE

NUMBER, SLOT, SEED = 987_654_321, 515_051_505, 606_060_606
SCORE, BEFORE, FRESH, COMMIT = 1.357913579, 1.246824682, 1.864218642, "c" * 40
"""Stand in the lines until they are filled in."""

IDEAS = (
    "MATRIX_LR 0.04 → 0.045 with a longer warm-down",
    "DEPTH 8 → 10 at the same width",
    "Rotary base 10,000 → 50,000",
    "Value embeddings in every second block",
    "Window pattern SSSL → SSL",
    "Muon momentum 0.95 → 0.92 in the first tenth",
    "Squared ReLU in place of GELU",
    "Weight decay falls linearly to zero",
    "Batch of 2^18 tokens in place of 2^19",
    "Untied output head with a smaller learning rate",
    "Softcap of the logits at 15",
    "Residual scale per layer, learnt",
)
TRAIN = "".join(f"CONSTANT_{place} = {place}\n" for place in range(40)) + "model = build_model()\n"
CHANGED = TRAIN.replace("CONSTANT_7 = 7", "CONSTANT_7 = 9").replace("model =", "# wider\nmodel =")
DIFF = """--- a/train.py
+++ b/train.py
@@ -5,7 +5,7 @@
 CONSTANT_4 = 4
 CONSTANT_5 = 5
 CONSTANT_6 = 6
-CONSTANT_7 = 7
+CONSTANT_7 = 9
 CONSTANT_8 = 8
 CONSTANT_9 = 9
 CONSTANT_10 = 10
@@ -38,4 +38,5 @@
 CONSTANT_37 = 37
 CONSTANT_38 = 38
 CONSTANT_39 = 39
+# wider
 model = build_model()
"""
REQUEST = json.dumps({"model": "a-model", "messages": [{"role": "user", "content": "Propose\na change."}]})
REPLY = json.dumps({"content": [{"type": "text", "text": "A wider block should pay."}]})
ON_GPU: Provenance = PROVENANCE.model_copy(
    update={"device": "NVIDIA H200", "driver": "580.65", "cuda": "13.0"}
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Template:
    """One line of a journal without its hash, in the parts before and after it."""

    before: bytes
    after: bytes

    @classmethod
    def of(cls, event: AnyEvent) -> Template:
        line = encode_line(event, seq=-1, time="@time@", prev="@prev@")
        start = line.rindex(b',"hash":"')
        return cls(line[:start], line[start + 9 + 65 :])


@dataclass
class Writer:
    """Writes lines that continue each other."""

    home: Path
    now: dt.datetime
    head: str = GENESIS
    seq: int = -1
    offset: int = 0
    lines: list[bytes] = field(default_factory=list)

    def fill(self, template: Template, seconds: float, values: Mapping[bytes, bytes]) -> None:
        self.now += dt.timedelta(seconds=seconds)
        self.seq += 1
        before = template.before
        for name, value in values.items():
            before = before.replace(name, value)
        time = self.now.isoformat(timespec="microseconds").encode()
        after = template.after.replace(b"@prev@", self.head.encode()).replace(b"@time@", time)
        after = after.replace(b'"seq":-1', b'"seq":%d' % self.seq)
        self.head = hashlib.sha256(self.head.encode() + before + after).hexdigest()
        line = before + b',"hash":"' + self.head.encode() + b'"' + after + b"\n"
        self.offset += len(line)
        self.lines.append(line)

    def tell(self, event: AnyEvent, seconds: float = 0.0) -> None:
        self.fill(Template.of(event), seconds, {})

    def write(self) -> Position:
        with (self.home / NAME).open("ab") as file:
            file.writelines(self.lines)
        self.lines.clear()
        return Position(self.seq, self.head, self.offset)


Seconds = float
Told = tuple[Template, Seconds]


@cache
def asked(repeats: int | None) -> tuple[Told, ...]:
    """From the question for a proposal to the start of its training."""
    replicate = repeats is not None
    proposal = ProposalAsked(
        proposal=NUMBER,
        agent="replicate" if replicate else "claude",
        purpose="replicate" if replicate else "propose",
        parent=COMMIT,
        repeats=repeats,
    )
    request = ApiRequested(
        call=NUMBER,
        proposal=NUMBER,
        mode="explore",
        model="a-model-of-language-1",
        parameters={"max_tokens": 16000},
        request_sha256=sha(REQUEST),
        request_bytes=95_000,
        reserved_usd=0.35,
    )
    usage = Usage(input_tokens=900, cache_read_tokens=21000, cache_write_tokens=350, output_tokens=1800)
    answer = ApiAnswered(
        call=NUMBER,
        reply_sha256=sha(REPLY),
        reply_bytes=6_000,
        stop_reason="tool_use",
        usage=usage,
        seconds=41.5,
        cost_usd=0.048,
    )
    made = ProposalMade(
        proposal=NUMBER,
        description="@idea@",
        hypothesis="More capacity where the loss still falls should pay within this budget.",
        expected_effect=-0.002,
        idea="capacity",
        train_sha256=sha(CHANGED),
    )
    tried = ProposalRehearsed(
        proposal=NUMBER, train_sha256=sha(CHANGED), result="passed", detail="one step", seconds=9.0
    )
    opened = ExperimentOpened(
        experiment=NUMBER,
        proposal=NUMBER,
        slot=SLOT,
        parent=COMMIT,
        train_sha256=sha(CHANGED),
        seed=SEED,
        ran_sha256=sha(CHANGED),
        digest=f"digest-{NUMBER}",
        diff_sha256=sha(DIFF),
    )
    started = TrainingStarted(
        experiment=NUMBER,
        attempt=1,
        container=f"glovebox-{NUMBER}-1-trainer",
        spec_sha256="5" * 64,
        budget_seconds=300,
    )
    events: list[tuple[AnyEvent, float]] = [(proposal, 0), (request, 0), (answer, 1), (made, 0), (tried, 2)]
    return tuple((Template.of(event), seconds) for event, seconds in [*events, (opened, 0), (started, 1)])


def _curve(end: float) -> Curve:
    losses = [end + 2.5 * math.exp(-place / 9) + 0.02 * math.sin(place * end) for place in range(64)]
    return Curve(losses=tuple(round(loss, 4) for loss in losses), step=953)


CONDITIONS = Conditions(
    cpu=CpuConditions(seconds=300, ours=0.31, others=0.02, contended=0.0),
    gpu=GpuConditions(
        spec_sha256="6" * 64,
        samples=150,
        temperature_mean=61.0,
        temperature_max=66.0,
        sm_clock_mean=1905.0,
        sm_clock_min=1830.0,
        power_mean=604.0,
        power_max=688.0,
        foreign_bytes=0,
        left_bytes=400_000_000,
    ),
)


@cache
def ended(kind: str, variant: int) -> tuple[Told, ...]:
    """From the end of the training to the commit, if there is one."""
    crash = Cause.OOM if kind == "crash" else None
    outcome = RunOutcome(
        seconds=300.012 if crash is None else 12.5,
        exit_code=137 if crash is None else 1,
        killed_at_limit=crash is None,
        cause=crash,
        detail="OutOfMemoryError: CUDA out of memory" if crash else "",
        claim=Claim(val_bpb=SCORE, peak_vram_mb=45060.2, num_steps=953, num_params_M=50.3),
        curve=_curve(2.88 + 0.02 * variant) if crash is None else Curve(),
        log_sha256="7" * 64,
        log_bytes=61_234,
        conditions=CONDITIONS,
    )
    events: list[tuple[AnyEvent, float]] = [
        (TrainingFinished(experiment=NUMBER, attempt=1, outcome=outcome), 300)
    ]
    if crash is None:
        draw = Draw(scoring=NUMBER, confirmation=NUMBER)
        events.append((ScoringStarted(experiment=NUMBER, attempt=1, seed=SEED, draw=draw, specs={}), 0))
        fresh = Fresh(rows=24, left=6500, gap=0.0012, fresh_error=0.003, scored_error=0.002, p_value=0.4)
        score = Score(
            val_bpb=SCORE, holdout_bpb=FRESH, bytes=2_345_678, tokens=567_890, fresh=fresh, confirmed=True
        )
        refusal = Refusal(cause=Cause.NON_CAUSAL, detail="what comes later changed what was said before")
        judged = {"refusal": refusal} if kind == "reject" else {"score": score}
        events.append((ScoringFinished(experiment=NUMBER, attempt=1, **judged), 20))
    events.append((Decided(experiment=NUMBER, decision=_decision(kind), frontier_bpb=BEFORE), 1))
    if kind == "keep":
        events.append((Committed(experiment=NUMBER, commit="d" * 40), 1))
    return tuple((Template.of(event), seconds) for event, seconds in events)


def _decision(kind: str) -> Decision:
    causes = {
        "discard": Cause.WORSE,
        "crash": Cause.OOM,
        "reject": Cause.NON_CAUSAL,
        "replicate": Cause.REPLICATE,
    }
    verdict = Verdict.DISCARD if kind == "replicate" else Verdict(kind)
    return Decision(verdict=verdict, cause=causes.get(kind), rule="R7: strictly better than the frontier")


def kind_of(number: int) -> str:
    """What becomes of an experiment."""
    if number % 97 == 0 or number in (2, 6):
        return "keep"
    return {3: "crash", 8: "replicate"}.get(number % 10, "reject" if number % 23 == 5 else "discard")


@dataclass
class Effort:
    """An effort that goes on."""

    home: Path
    writer: Writer
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    best: float | None = None
    kept: int | None = None
    commit: str = "0" * 40
    keeps: int = 0
    certificates: int = 0
    base: int = 0
    number: int = 0
    ahead: bool = False
    """Whether the next proposal is asked for already."""

    def begin_next(self) -> None:
        """Ask for a proposal, unless that is done, and leave its experiment in training."""
        for template, seconds in self._asked()[self.ahead :]:
            self.writer.fill(template, seconds, self._values(0.0))
        self.ahead = False

    def begin_queued(self, request: str) -> None:
        """Leave the experiment that a person's request led to in training."""
        asked_for = ProposalAsked(
            proposal=self.number, agent="person", purpose="queued", parent=self.commit, request=request
        )
        self.writer.tell(asked_for)
        for template, seconds in asked(None)[3:]:  # nobody is asked for a text
            self.writer.fill(template, seconds, self._values(0.0))

    def think(self) -> None:
        """Ask for the proposal of the next experiment while one trains."""
        self.number += 1
        template, seconds = self._asked()[0]
        self.writer.fill(template, seconds, self._values(0.0))
        self.number, self.ahead = self.number - 1, True

    def _asked(self) -> tuple[Told, ...]:
        return asked(self.kept if kind_of(self.number) == "replicate" else None)

    def finish(self) -> None:
        """The end of the experiment that trains."""
        kind, before = kind_of(self.number), self.best
        score = self._score(kind)
        for template, seconds in ended(kind, self.number % 7):
            self.writer.fill(template, seconds, self._values(score))
        if kind == "keep":
            self.best, self.kept, self.keeps = score, self.number, self.keeps + 1
            self.commit = f"{self.number + 1:07x}".ljust(40, "0")
            if before is not None and self.keeps % 4 == 0:
                self._certify()
        self.number += 1

    def _values(self, score: float) -> dict[bytes, bytes]:
        before = json.dumps(self.best).encode()
        commit = f"{self.number + 1:07x}".ljust(40, "0").encode()
        return {
            b"%d" % NUMBER: b"%d" % self.number,
            b"%d" % SLOT: b"%d" % (self.number % 2),
            b"%d" % SEED: b"%d" % (self.number % 60_000),
            json.dumps("@idea@").encode(): json.dumps(IDEAS[self.number % len(IDEAS)]).encode(),
            repr(SCORE).encode(): repr(round(score, 6)).encode(),
            repr(FRESH).encode(): repr(round(score + 0.01, 6)).encode(),
            repr(BEFORE).encode(): before,
            COMMIT.encode(): self.commit.encode(),
            b"d" * 40: commit,
        }

    def _score(self, kind: str) -> float:
        best = self.best if self.best is not None else 1.42
        if kind == "keep":
            return best - abs(self.chance.gauss(0.0, 0.0007)) - 0.00005
        return best + abs(self.chance.gauss(0.0, 0.0008 if kind == "replicate" else 0.004))

    def _certify(self) -> None:
        head, number = self.number, self.certificates
        evidence = Evidence(
            pairs=6,
            gain=0.0021,
            low=0.0009,
            high=0.0033,
            e_value=212.0,
            sigma=0.0008,
            df=40,
            holdout_gain=0.0019,
            holdout_low=None,
            holdout_high=None,
            holdout_e_against=0.1,
        )
        self.writer.tell(CertificateOpened(certificate=number, base=self.base, head=head))
        decided = CertificateDecided(
            certificate=number,
            base=self.base,
            head=head,
            outcome="certified",
            rule="as told",
            evidence=evidence,
            most_pairs=12,
        )
        self.writer.tell(decided)
        self.writer.tell(CertificateSettled(certificate=number, commit=self.commit))
        self.base, self.certificates = head, number + 1


def fabricate(home: Path, experiments: int) -> Effort:
    """A home with so many finished experiments, and one that trains."""
    home.mkdir(parents=True, exist_ok=True)
    for text in (TRAIN, CHANGED, DIFF, REQUEST, REPLY):
        path = blob_path(home, sha(text))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    began = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=330 * (experiments + 1))
    effort = Effort(home, Writer(home, began))
    effort.writer.tell(EffortStarted(tag="nov28", base_commit="0" * 40))
    limits: dict[str, JsonValue] = {"limits": {"dollars": 900.0, "experiments": 20_000}}
    effort.writer.tell(SessionStarted(agent="claude", budget_seconds=300, provenance=ON_GPU, settings=limits))
    for _ in range(experiments):
        effort.begin_next()
        effort.finish()
    effort.writer.now = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=100)
    effort.begin_next()
    effort.think()
    effort.writer.write()
    write_log(home, effort.number, 100.0)
    write_log(home, effort.number - 1, 290.0)
    return effort


def write_log(home: Path, number: int, seconds: float) -> None:
    """What a run has printed after some time."""
    path = home / "runs" / f"{number:06d}" / "run.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(reports(seconds)), encoding="utf-8")


def reports(seconds: float, begin: float = 0.0) -> Iterator[str]:
    """Two lines every two seconds."""
    for place in range(math.ceil(begin / 2), int(seconds / 2)):
        loss = 2.9 + 2.5 * math.exp(-place / 20)
        yield f"step {place * 6:5d} | loss {loss:.6f} | lr 0.040 | 1,204,000 tok/s\n"
        yield f"report: step={place * 6} seconds={place * 2}.0 loss={loss:.6f}\n"
