"""Long efforts, written straight into a journal through our own events: to live one takes years."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    ApiRequested,
    Committed,
    Decided,
    EffortStarted,
    ExperimentOpened,
    ProposalAsked,
    ProposalMade,
    ScoringFinished,
    ScoringStarted,
    SessionStarted,
    TrainingFinished,
    TrainingStarted,
)
from controller.core.values import Cause, Claim, Decision, RunOutcome, Score, Usage, Verdict
from controller.store.journal import GENESIS, NAME, encode_line
from tests.support.efforts import PROVENANCE, START, draw

#: One keep in so many; the others are discarded.
_KEEP_EVERY = 100
_HYPOTHESIS = "A slightly larger matrix learning rate converges faster within the budget of this scale. " * 3
_PROBES: dict[str, JsonValue] = {
    "promise": {"confidence": 0.999, "fraction": 0.003, "positions": 32},
    "twins": 96,
    "repeated": 32,
    "suffix_max_difference": 0.00021362304688,
    "repeat_max_difference": 0.0,
    "bpb_with_future": 1.2345678,
    "bpb_without_future": 1.2345679,
    "rows": 512,
    "seconds_worker": 31.25,
}


def write_history(home: Path, experiments: int, commit: str = "0" * 40) -> None:
    """The journal of the effort `t` with this many finished experiments, ten lines and 5.5 KB each.

    Nothing but audit.jsonl is written: no blobs, no runs, no ledger. The base and every keep are `commit`.
    """
    home.mkdir(parents=True, exist_ok=True)
    head, now = GENESIS, START
    with (home / NAME).open("wb") as file:
        for seq, event in enumerate(_events(experiments, commit)):
            now += dt.timedelta(seconds=35)
            line = encode_line(event, seq, now.isoformat(timespec="microseconds"), head)
            start = line.rindex(b',"hash":"') + 9
            head = line[start : start + 64].decode("ascii")
            file.write(line + b"\n")


def _events(experiments: int, commit: str) -> Iterator[AnyEvent]:
    yield EffortStarted(tag="t", base_commit=commit)
    yield SessionStarted(agent="claude", budget_seconds=300, provenance=PROVENANCE)
    best = None
    for number in range(experiments):
        score = 2.0 - number * 1e-6 if number % _KEEP_EVERY == 0 else 2.1
        yield from _proposal(number, commit)
        yield from _run(number, score)
        kept = best is None or score < best
        verdict, cause = (Verdict.KEEP, None) if kept else (Verdict.DISCARD, Cause.WORSE)
        decision = Decision(verdict=verdict, cause=cause, rule="R7: strictly better than the frontier")
        yield Decided(experiment=number, decision=decision, frontier_bpb=best)
        if kept:
            best = score
            yield Committed(experiment=number, commit=commit)


def _proposal(number: int, parent: str) -> Iterator[AnyEvent]:
    description = f"MATRIX_LR 0.04 → {0.04 + number * 1e-7:.7f} with a longer warm-down"
    train = _name("train", number)
    yield ProposalAsked(proposal=number, agent="claude", purpose="propose", parent=parent)
    yield ApiRequested(
        call=number,
        proposal=number,
        mode="explore",
        model="a-model-of-language-1",
        parameters={"max_tokens": 16000, "effort": "medium"},
        request_sha256=_name("request", number),
        request_bytes=95_000,
        reserved_usd=0.35,
    )
    yield ApiAnswered(
        call=number,
        reply_sha256=_name("reply", number),
        reply_bytes=6_000,
        stop_reason="tool_use",
        usage=Usage(input_tokens=900, cache_read_tokens=21000, cache_write_tokens=350, output_tokens=1800),
        seconds=41.5,
        cost_usd=0.048,
    )
    yield ProposalMade(
        proposal=number,
        description=description,
        hypothesis=_HYPOTHESIS,
        expected_effect=-0.002,
        idea="matrix learning rate",
        parameters={"values": {"MATRIX_LR": 0.04, "DEPTH": 8, "WINDOW": "SSSL"}, "changed": ["MATRIX_LR"]},
        train_sha256=train,
    )
    yield ExperimentOpened(
        experiment=number,
        proposal=number,
        slot=0,
        parent=parent,
        train_sha256=train,
        seed=7,
        ran_sha256=train,
        digest=_name("digest", number),
        diff_sha256=_name("diff", number),
    )


def _run(number: int, score: float) -> Iterator[AnyEvent]:
    yield TrainingStarted(
        experiment=number,
        attempt=1,
        container=f"glovebox-0123456789-{number}-1-trainer",
        spec_sha256=_name("spec", 0),
        budget_seconds=300,
    )
    outcome = RunOutcome(
        seconds=300.012,
        exit_code=137,
        killed_at_limit=True,
        claim=Claim(
            val_bpb=score,
            peak_vram_mb=45060.2,
            num_steps=953,
            num_params_M=50.3,
            training_seconds=237.1,
            total_tokens_M=499.6,
            mfu_percent=39.8,
            depth=8,
        ),
        log_sha256=_name("log", number),
        log_bytes=61_234,
    )
    yield TrainingFinished(experiment=number, attempt=1, outcome=outcome)
    yield ScoringStarted(
        experiment=number,
        attempt=1,
        seed=2**62 + number,
        draw=draw(number),
        specs={"worker": _name("spec", 1), "judge": _name("spec", 2)},
    )
    yield ScoringFinished(
        experiment=number,
        attempt=1,
        score=Score(
            val_bpb=score,
            holdout_bpb=score + 0.01,
            bytes=2_345_678,
            tokens=567_890,
            holdout_bytes=1_234_567,
            seconds=33.7,
            probes=_PROBES,
        ),
    )


def _name(kind: str, number: int) -> str:
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()
