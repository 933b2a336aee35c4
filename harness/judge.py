"""J, the judge: owns the validation and hold-out tokens, the byte table and the arithmetic of the score.

`python judge.py CONFIG` (one JSON object, see `Config`) prints a line of JSON on stdout when it has a score:

    {"status": "scored", "val_bpb": ..., "holdout_bpb": ..., "bytes": ..., "tokens": ...,
     "holdout_bytes": ..., "fresh": {...}, "seconds": ..., "probes": {...}}

This score is provisional. If no proof is needed, the controller may end the judge here; otherwise a second,
fresh worker on the second pair of folders is asked to confirm it, and another line follows:

    {"status": "confirmed", "holdout_bpb": ..., "holdout_bytes": ..., "fresh": {...}, "seconds": ...,
     "probes": {...}}

Instead of either line there may be a refusal, which is then the last line:

    {"status": "refused", "cause": ..., "detail": ...}

The exit status is 0 for all of these; `seconds` is all of the judge's wall clock so far, the start of the
worker included. Any other exit is our bug or a broken data folder. Only inputs ever leave this process, in an
order drawn from the seed, with scored rows, fresh rows and probes mixed (plan.py, probes.py). In a result,
`probes` says how many there were, how well they agreed and what that guarantees; `fresh` whether the model
does worse on rows that no worker was given before, the hold-out (fresh.py). Replies are treated as hostile:
each byte is copied once into our own memory and judged there.

If the model runs on the CPU, everything is done in NumPy, which starts two seconds faster than torch while
the worker is starting on the same cores. A worker on a GPU sends a hundred times as much, in float16, for
which NumPy is too slow.
"""

import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fresh
import numpy as np
from exchange import (
    BFLOAT16,
    FLOAT16_LESS_LARGEST,
    FLOAT32,
    ITEM_BYTES,
    SLOTS,
    Closed,
    ExchangeError,
    Header,
    SlotReader,
    SlotWriter,
    await_word,
    payload_bytes,
    usable_cpus,
)
from nats import Memory, Refused, less_largest_nats, token_nats, widen
from numpy.typing import NDArray

import probes
from plan import Batch, Confirmation, Plan, Question, Role, make_confirmation, make_plan
from probes import Nats, Tokens

WINDOW = 64  # columns wanted before a cut
CHUNK_NUMBERS = 1 << 18, 1 << 21  # most logits judged at a time by a thread: uncompressed, float16
NUMBERS = {BFLOAT16: np.uint16, FLOAT32: np.float32, FLOAT16_LESS_LARGEST: np.float16}

#: Large enough that the exchange costs little compared to the model; all replies in flight together stay
#: below 1.1 GB at a vocabulary of 8192 and two bytes per logit.
BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Config:
    """The controller's settings for one scoring."""

    data: Path
    """Folder with the judge's manifest.json, val/, holdout/ and token_bytes.npy."""
    requests: Path
    """Exchange folder we write."""
    replies: Path
    """Exchange folder the worker writes."""
    second_requests: Path
    """The same for the second worker, which must see nothing of the first one's."""
    second_replies: Path
    batch_rows: int | None
    """Rows per batch, the same for every batch. None: as many as make BATCH_TOKENS tokens."""
    score_tokens: int | None
    """Tokens to score, rounded up to whole rows; None: what the manifest says."""
    holdout_score_tokens: int | None
    """Most fresh tokens to add to them; None: what the manifest says."""
    scoring: int | None
    """Number of this scoring in its effort, which selects its fresh rows; None: outside any effort."""
    confirmation: int | None
    """The same among confirmations, for the second worker's fresh rows."""
    seed: int
    """Draws the order of the rows; unknown to the worker."""
    first_batch_seconds: float
    """Time to the first reply of each worker, its start-up, build and load included."""
    batch_seconds: float
    """Time between two replies."""
    total_seconds: float
    """Time to the last reply of each worker."""
    leak_fraction: float
    """Share of positions at which a look into the future must be detected by a confirmation."""
    miss_probability: float
    """Acceptable probability of missing such a leak."""
    leak_reach: int
    """How many tokens ahead such a leak sees. Shorter reaches need more twins."""
    compact: bool = False
    """The worker runs on a GPU and answers in float16; requires torch."""
    waits: bool = False
    """Wait for the start signal before anything is read, see exchange.await_word."""

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Raises ValueError, KeyError or TypeError if a field is missing or unknown."""
        fields: dict[str, Any] = json.loads(text)
        paths = ("data", "requests", "replies", "second_requests", "second_replies")
        fields |= {name: Path(fields[name]) for name in paths}
        return cls(**fields)


class Account(NamedTuple):
    """The total of some rows."""

    bits_per_byte: float
    """sum(nats) / (ln 2 * sum(bytes)) over the tokens that stand for at least one byte."""
    bytes: int
    tokens: int


def account(targets: Tokens, nats: Nats, token_bytes: NDArray[np.int64]) -> Account:
    """Sum over rows: targets and nats [R, T], token_bytes [vocab]. Raises ValueError if no byte counts."""
    sizes = token_bytes[targets]
    counted = sizes > 0
    total = int(sizes[counted].sum())
    if total == 0:
        raise ValueError("no target of the rows stands for any byte")
    return Account(float(nats[counted].sum()) / (math.log(2) * total), total, int(counted.sum()))


class Replies:
    """The worker's logits, checked against the request and judged in chunks by a few threads.

    No refusal contains a number that the worker could choose, such as the batch at which it stopped: that
    would leak a few bits of what it saw.
    """

    def __init__(self, config: Config, folder: Path, vocab: int) -> None:
        self._config = config
        self._vocab = vocab
        self._reader = SlotReader(folder)
        self._memory = Memory()
        self._started = self._last = time.monotonic()

    def wait(self, number: int) -> Header:
        """The header of reply `number`. Raises Refused on a time-out or if the worker gave up."""
        patience = self._config.batch_seconds if number else self._config.first_batch_seconds
        deadline = min(self._last + patience, self._started + self._config.total_seconds)
        try:
            header = self._reader.wait(number, deadline)
        except TimeoutError:
            raise Refused("worker-timeout", "no reply to a batch within its time") from None
        except Closed:
            raise Refused("worker-failed", "the worker gave up") from None
        self._last = time.monotonic()
        return header

    def nats(self, number: int, header: Header, targets: NDArray[np.int64], pool: ThreadPoolExecutor) -> Nats:
        """Copy and judge reply `number`: targets [B, T] -> nats [B, T]. Raises Refused."""
        self._check(number, header, targets.shape)
        flat = targets.reshape(-1)
        largest = np.zeros(len(flat), np.int32)
        compact = header.dtype == FLOAT16_LESS_LARGEST
        if compact:
            self._reader.read(number, 0, largest.view(np.uint8).data)
        step = max(1, min(math.ceil(len(flat) / usable_cpus()), CHUNK_NUMBERS[compact] // self._vocab))

        def chunk(start: int) -> Nats:
            part = slice(start, start + step)
            logits = self._logits(number, header.dtype, compact * largest.nbytes, start, len(flat[part]))
            if not compact:
                return token_nats(widen(logits), flat[part])
            return less_largest_nats(logits, largest[part], flat[part], self._memory.numbers(self._vocab))

        return np.concatenate(list(pool.map(chunk, range(0, len(flat), step)))).reshape(targets.shape)

    def _logits(self, number: int, dtype: int, offset: int, start: int, count: int) -> NDArray[Any]:
        """Logits of `count` positions from `start` on, in this thread's buffer until its next call."""
        row = self._vocab * ITEM_BYTES[dtype]
        raw = self._memory.raw(count * row)
        self._reader.read(number, offset + start * row, raw.data)
        return raw.view(NUMBERS[dtype]).reshape(count, self._vocab)

    def _check(self, number: int, header: Header, shape: tuple[int, ...]) -> None:
        got = (header.rows, header.length, header.vocab)
        if got != (*shape, self._vocab):
            raise Refused("wrong-shape", f"the logits have not the shape asked for, {[*shape, self._vocab]}")
        if header.dtype not in ITEM_BYTES:
            raise Refused("wrong-dtype", "logits are not of a dtype that the exchange knows")
        expected = payload_bytes(header.dtype, math.prod(shape), self._vocab)
        if self._reader.payload_bytes(number) < expected:
            raise Refused("protocol", f"a reply does not hold {expected} bytes of logits")


def collect(config: Config, folders: tuple[Path, Path], batches: list[Batch], vocab: int) -> list[Nats]:
    """Nats of every target of every batch, with `SLOTS` batches in flight. Raises Refused.

    `folders` are those of requests and replies. The worker is not told when it is done: its resource use is
    read before it is ended.
    """
    requests, replies = SlotWriter(folders[0]), Replies(config, folders[1], vocab)

    def send(number: int) -> None:
        inputs, _, first, last = batches[number]
        header = Header(0, inputs.shape[0], inputs.shape[1], vocab, first, last)
        requests.write(number, header, np.ascontiguousarray(inputs).data.cast("B"))

    scores = []
    for number in range(min(SLOTS, len(batches))):
        send(number)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for number, batch in enumerate(batches):
            header = replies.wait(number)
            scores.append(replies.nats(number, header, batch.targets, pool))
            if number + SLOTS < len(batches):
                send(number + SLOTS)
    return scores


def require(
    found: probes.Differences, tolerance: probes.Tolerance, cause: str, meaning: str
) -> probes.Comparison:
    """Summarise differences. Raises Refused with `cause` if they exceed the tolerance."""
    compared = probes.compare(found)
    if not compared.agrees(tolerance):
        raise Refused(cause, f"{meaning}: {probes.describe(found, tolerance)}")
    return compared


AMONG_OTHERS = (
    "rows are answered differently among other rows (scale by token, not by tensor; route without a capacity"
    " in eval mode)"
)
#: In this order: a model with memory disagrees everywhere, one that sees other rows also in twins.
VERDICTS = (
    (Role.ENCORE, "stateful", "the first batch is answered differently at the end"),
    (Role.REPEAT, "batch-dependent", AMONG_OTHERS),
    (Role.TWIN, "non-causal", "rows are answered differently before another future"),
)


def compare_probes(plan: Plan, nats: Nats) -> dict[Role, probes.Comparison]:
    """Compare all probes with their origins, nats [rows, T]. Raises Refused if any kind disagrees."""
    compared: dict[Role, probes.Comparison] = {}
    tolerance = {Role.ENCORE: probes.ENCORE, Role.REPEAT: probes.REPEATS}
    for role, cause, meaning in VERDICTS:
        rows = np.flatnonzero(plan.roles == role)
        found = probes.differences(nats[rows], nats[plan.origins[rows]], plan.agree[rows])
        allowed = tolerance.get(role) or probes.twin_tolerance(tuple(compared.values()), sigmas=0)
        compared[role] = require(found, allowed, cause, meaning)
    return compared


def promise(
    config: Config,
    twins: probes.Comparison,
    same: tuple[probes.Comparison, ...],
    reach: int,
    length: int,
) -> dict[str, Any]:
    """What these twins are guaranteed to detect, except with the miss probability.

    The smallest detectable fraction of positions with a leak beyond rounding, by reach in tokens; and the
    largest mean help, in nats per token, that is still likely given these differences, null for too few
    twins.
    """
    reaches = sorted({1, min(config.leak_reach, reach), reach})
    leaks = {k: probes.smallest_leak(twins.rows, config.miss_probability, k, length) for k in reaches}
    allowed = probes.twin_tolerance(same, probes.sigmas_of(config.miss_probability))
    unseen = -math.log(config.miss_probability) * allowed.token / max(1, twins.rows)
    return {
        "twins": twins.rows,
        "miss_probability": config.miss_probability,
        "leak_fraction_by_reach": {str(k): round(leak, 6) for k, leak in leaks.items()},
        "help_nats": probes.two_digits(max(twins.help(allowed), unseen)) if twins.ranges else None,
    }


def needed_twins(config: Config, length: int) -> int:
    """How many twins the guaranteed detection takes, whatever the cost."""
    return probes.twins_needed(config.leak_fraction, config.miss_probability, config.leak_reach, length)


def affordable_twins(config: Config, rows: int, length: int) -> int:
    """How many twins the first worker gets for `rows` rows: as needed, up to an affordable share."""
    return max(1, min(needed_twins(config, length), int(probes.TWINS_SHARE * rows)))


@dataclass(frozen=True)
class Scored:
    """The part of the first worker's answers that a second one has to confirm."""

    line: dict[str, Any]
    """The provisional result."""
    rows: Tokens
    """[R, T + 1] tokens that it was given: the scored rows, then its fresh rows."""
    nats: Nats
    """[R, T] of their true targets."""
    same: tuple[probes.Comparison, ...]
    """How well its repeats and, second, its encore agreed."""
    batch_rows: int
    vocab: int


@dataclass(frozen=True)
class Text:
    """The part of the judge's text that this scoring uses."""

    drawn: fresh.Rows
    token_bytes: NDArray[np.int64]
    """[vocab] bytes that each token stands for."""

    @classmethod
    def read(cls, config: Config) -> "Text":
        """Raises ValueError or OSError if our own data is broken or too small."""
        manifest = json.loads((config.data / "manifest.json").read_text())
        wanted, most_fresh = config.score_tokens, config.holdout_score_tokens
        drawn = fresh.draw(
            config.data,
            manifest,
            score_tokens=manifest["score_tokens"] if wanted is None else wanted,
            most_fresh_tokens=manifest["holdout_score_tokens"] if most_fresh is None else most_fresh,
            scoring=config.scoring,
            confirmation=config.confirmation,
        )
        token_bytes = np.load(config.data / "token_bytes.npy", allow_pickle=False).astype(np.int64)
        return cls(drawn, token_bytes)


def score(config: Config, text: Text) -> Scored:
    """Score one worker. Raises Refused, ExchangeError; ValueError if our own data is broken."""
    started = time.monotonic()
    drawn, vocab = text.drawn, len(text.token_bytes)
    rows = np.concatenate([drawn.scored, drawn.first.rows])
    length = rows.shape[1] - 1
    batch_rows = config.batch_rows or max(1, BATCH_TOKENS // length)
    plan = make_plan(
        drawn.scored, drawn.first.rows, batch_rows, config.seed, affordable_twins(config, len(rows), length)
    )
    nats = np.concatenate(collect(config, (config.requests, config.replies), plan.batches(batch_rows), vocab))
    compared = compare_probes(plan, nats)
    same = (compared[Role.REPEAT], compared[Role.ENCORE])
    nats = nats[plan.places]
    count = len(drawn.scored)
    scored = account(rows[:count, 1:], nats[:count], text.token_bytes)
    line = {
        "status": "scored",
        "val_bpb": scored.bits_per_byte,
        "bytes": scored.bytes,
        "tokens": scored.tokens,
        **holdout(text, rows, nats, config.seed),
        "seconds": round(time.monotonic() - started, 3),
        "probes": {
            **{role.name.lower(): comparison.summary() for role, comparison in compared.items()},
            "promise": promise(config, compared[Role.TWIN], same, length // 2, length),
        },
    }
    return Scored(line, rows, nats, same, batch_rows, vocab)


def holdout(text: Text, rows: Tokens, nats: Nats, seed: int) -> dict[str, Any]:
    """The result on fresh rows. `rows` and `nats`: of the scored rows, then of all fresh rows used."""
    count = len(text.drawn.scored)
    found = account(rows[count:, 1:], nats[count:], text.token_bytes)
    return {
        "holdout_bpb": found.bits_per_byte,
        "holdout_bytes": found.bytes,
        "fresh": fresh.result(text.drawn, rows, nats, text.token_bytes, seed),
    }


def confirm(config: Config, text: Text, scored: Scored) -> dict[str, Any]:
    """Ask a second worker about a score. Raises Refused, ExchangeError.

    Nothing sent to it depends on the first worker's answers.
    """
    drawn = text.drawn
    length = scored.rows.shape[1] - 1
    window = min(length, WINDOW)
    twins = needed_twins(config, length)
    asked = make_confirmation(scored.rows, drawn.second.rows, scored.batch_rows, config.seed, twins, window)
    batches = [question.batch for question in (*asked.controls, *asked.twins)]
    folders = (config.second_requests, config.second_replies)
    answers = collect(config, folders, [*asked.fresh, *batches], scored.vocab)
    told, answers = answers[: len(asked.fresh)], answers[len(asked.fresh) :]
    controls, compared = compare_confirmation(scored, asked, answers, config.miss_probability)
    rows = np.concatenate([scored.rows, drawn.second.rows])
    nats = np.concatenate([scored.nats, *told])[: len(rows)]
    return {
        "status": "confirmed",
        **holdout(text, rows, nats, config.seed),
        "probes": {
            "control": controls.summary(),
            "twin": compared.summary(),
            "promise": promise(config, compared, (*scored.same, controls), window, length),
        },
    }


def compare_confirmation(
    scored: Scored, asked: Confirmation, answers: list[Nats], miss_probability: float
) -> tuple[probes.Comparison, probes.Comparison]:
    """Compare a second worker's answers [B, columns] with the record: controls, twins. Raises Refused."""
    questions = (*asked.controls, *asked.twins)
    begins = np.cumsum([0, *map(len, answers[:-1])])
    parts = [
        _differences(scored.nats, question, answer, int(begin))
        for question, answer, begin in zip(questions, answers, begins, strict=True)
    ]
    controls, twins = parts[: len(asked.controls)], parts[len(asked.controls) :]
    process = "a fresh process answers rows differently"
    # If not exact, other rows of a batch already made a difference in the first process.
    exact = scored.same[0].largest <= probes.EXACT_NATS
    cause, meaning = ("stateful", process) if exact else ("batch-dependent", AMONG_OTHERS)
    control = require(probes.join(controls), probes.REPEATS, cause, meaning)
    allowed = probes.twin_tolerance((*scored.same, control), probes.sigmas_of(miss_probability))
    return control, require(probes.join(twins), allowed, "non-causal", f"{process} before another future")


def _differences(committed: Nats, question: Question, answer: Nats, number: int) -> probes.Differences:
    """Differences of an answer from the record, nats [R, T]; its probes are numbered from `number` on."""
    on_record = committed[question.origins, question.batch.first : question.batch.last]
    return probes.differences(answer, on_record, question.agree, question.batch.first, number)


def main() -> None:
    """Score, then confirm, as configured in argv; print a line for each."""
    config = Config.from_json(sys.argv[1])
    if config.compact:
        import torch

        torch.set_num_threads(1)  # the chunks already run in parallel
    if config.waits:
        await_word()
    started = time.monotonic()
    try:
        text = Text.read(config)
        scored = score(config, text)
        print(json.dumps(scored.line), flush=True)
        result = confirm(config, text, scored) | {"seconds": round(time.monotonic() - started, 3)}
    except Refused as refusal:
        result = {"status": "refused", "cause": refusal.cause, "detail": str(refusal)}
    except ExchangeError as error:
        result = {"status": "refused", "cause": "protocol", "detail": str(error)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
