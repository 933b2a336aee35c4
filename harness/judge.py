"""J, the judge: owns the validation and hold-out tokens, the byte table and the arithmetic of the score.

`python judge.py CONFIG` (one JSON object, see `Config`) prints exactly one line of JSON on stdout:

    {"status": "scored", "val_bpb": ..., "holdout_bpb": ..., "bytes": ..., "tokens": ...,
     "holdout_bytes": ..., "seconds": ..., "probes": {...}}
    {"status": "refused", "cause": ..., "detail": ...}

and exits 0 for both; `seconds` is all of the judge's wall clock, the worker's start included. Any other exit
is our bug or a broken data folder. Only inputs ever leave this process, in an order drawn from the seed with
validation rows, hold-out rows and probes mixed (see probes.py); `probes` in the result says how many there
were, how well they agreed and what that promises. Whatever comes back is hostile: each byte is copied once
into memory of our own and judged there.

NumPy only: on the CPUs this runs on it is as fast as torch at this arithmetic, and starts two seconds sooner
while the worker is busy starting on the same cores.
"""

import itertools
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from exchange import DTYPES, SLOTS, Closed, ExchangeError, Header, SlotReader, SlotWriter, usable_cpus
from numpy.typing import NDArray

import probes
from prepare import pack_rows, read_documents

PACKING_BUFFER = 1000  # documents the packer chooses from; upstream's loader uses the same number
CHUNK_NUMBERS = 1 << 18  # logits one thread judges at a time: with scratch 3 MB, near an L2 cache

Nats = NDArray[np.float64]


#: Enough for the exchange to cost little beside the model; two replies of it stay below 1.1 GB at a
#: vocabulary of 8192.
BATCH_TOKENS = 16384


class Refused(Exception):
    """The worker's answers cannot be scored; `cause` is for programs, the message a line of our own text."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


@dataclass(frozen=True)
class Config:
    """What the controller decides about one scoring."""

    data: Path
    """Folder with the judge's manifest.json, val/, holdout/ and token_bytes.npy."""
    requests: Path
    """Exchange folder we write."""
    replies: Path
    """Exchange folder the worker writes."""
    batch_rows: int | None
    """Rows per batch; every batch has exactly this many. None: as many as make BATCH_TOKENS tokens."""
    score_tokens: int | None
    """Validation tokens to score, rounded up to whole rows; None: what the manifest says."""
    holdout_score_tokens: int | None
    """The same for hold-out tokens."""
    seed: int
    """Draws the order of the rows; unknown to the worker."""
    first_batch_seconds: float
    """From our start to the first reply: the worker's start-up, build and load lie in here."""
    batch_seconds: float
    """Between two replies."""
    total_seconds: float
    """From our start to the last reply."""
    leak_fraction: float = 0.001
    """Share of positions at which seeing the future is to be found, if probes.TWINS_SHARE affords it."""
    miss_probability: float = 0.001
    """How likely such a leak may be missed."""
    leak_reach: int = 32
    """How many tokens ahead such a leak sees. Nearer ones need more twins."""

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Raises ValueError, KeyError or TypeError if a field is missing or unknown."""
        fields: dict[str, Any] = json.loads(text)
        fields |= {name: Path(fields[name]) for name in ("data", "requests", "replies")}
        return cls(**fields)


class Role(IntEnum):
    """Why a row is sent. Only the first two count."""

    VALIDATION = 0
    HOLDOUT = 1
    TWIN = 2  # another row up to a cut, see probes.py
    REPEAT = 3  # another row, among other neighbours; completes the last batch too
    ENCORE = 4  # of the first batch, sent once more after the last one


@dataclass(frozen=True)
class Plan:
    """Everything that will be sent, in sending order, and what it will be scored against."""

    inputs: NDArray[np.int32]
    """[rows, T] tokens; the only part that leaves this process."""
    targets: NDArray[np.int64]
    """[rows, T] the token that follows each input; for a twin its origin's tokens."""
    roles: NDArray[np.int8]
    """[rows] a `Role` each."""
    origins: NDArray[np.int64]
    """[rows] the row that each must agree with: itself if it is not a probe."""
    agree: NDArray[np.int64]
    """[rows] in how many of its first predictions."""


def read_rows(data: Path, split: str, tokens: int, manifest: dict[str, Any]) -> NDArray[np.int64]:
    """The first rows of a split that hold `tokens` predictions: int64 [ceil(tokens / T), T + 1].

    Fewer if the split ends before. The same shards give the same rows, always. Raises ValueError if there are
    none.
    """
    length = int(manifest["max_seq_len"])
    documents = read_documents(data / split, int(manifest["bos_token_id"]))
    packed = pack_rows(documents, length + 1, PACKING_BUFFER)
    rows = list(itertools.islice(packed, math.ceil(tokens / length)))
    if not rows:
        raise ValueError(f"no rows to score in {split}")
    return np.stack(rows).astype(np.int64)


def make_plan(
    validation: NDArray[np.int64], holdout: NDArray[np.int64], batch_rows: int, seed: int, twins: int
) -> Plan:
    """Mix the rows [., T + 1] of both splits and their probes in an order drawn from `seed`.

    Every batch is full, and the first one comes once more at the end.
    """
    random = np.random.default_rng(seed)
    rows = np.concatenate([validation, holdout])
    drawn = probes.draw_twins(rows, twins, random)
    least = len(rows) + len(drawn.rows) + math.ceil(probes.REPEATS_SHARE * len(rows))
    total = math.ceil(least / batch_rows) * batch_rows
    repeats = random.choice(len(rows), size=total - len(rows) - len(drawn.rows))

    whole = rows.shape[1] - 1
    parts = [len(validation), len(holdout), len(drawn.rows), len(repeats)]
    roles = np.repeat(np.array([Role.VALIDATION, Role.HOLDOUT, Role.TWIN, Role.REPEAT], np.int8), parts)
    inputs = np.concatenate([rows, drawn.rows, rows[repeats]])[:, :-1].astype(np.int32)
    origins = np.concatenate([np.arange(len(rows)), drawn.origins, repeats])
    targets = rows[origins, 1:]
    agree = np.where(roles == Role.TWIN, 0, whole)
    agree[roles == Role.TWIN] = drawn.cuts

    order = random.permutation(total)
    place = np.argsort(order)
    first = np.arange(batch_rows)
    encore = order[first]
    return Plan(
        inputs=np.concatenate([inputs[order], inputs[encore]]),
        targets=np.concatenate([targets[order], targets[encore]]),
        roles=np.concatenate([roles[order], np.full(batch_rows, Role.ENCORE, np.int8)]),
        origins=np.concatenate([place[origins[order]], first]),
        agree=np.concatenate([agree[order], np.full(batch_rows, whole)]),
    )


def token_nats(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Nats:
    """Negative log-softmax at the targets: logits [N, V], targets [N] -> nats [N] >= 0.

    With m the largest logit, -log p(t) = (m - x_t) + log1p(sum over all others of exp(x - m)). Both terms are
    non-negative, so nothing cancels: the sum runs in float32 and the result is still good to about 1e-6
    relative, also for a near-certain model, and finite for every finite input. Raises Refused if a logit is
    NaN or infinite.
    """
    if not math.isfinite(logits.min()) or not math.isfinite(logits.max()):
        raise Refused("not-finite", "logits hold NaN or infinity")
    rows = np.arange(len(targets))
    top = logits.argmax(axis=1)
    largest = logits[rows, top]
    gap = largest.astype(np.float64) - logits[rows, targets]
    with np.errstate(over="ignore", under="ignore"):  # a difference beyond float32 is -inf, its exp rightly 0
        others: NDArray[np.float32] = logits - largest[:, None]
        np.exp(others, out=others)
    others[rows, top] = 0
    nats: Nats = gap + np.log1p(others.sum(axis=1).astype(np.float64))
    return nats


class Account(NamedTuple):
    """What the rows of one role come to."""

    bits_per_byte: float
    """sum(nats) / (ln 2 * sum(bytes)) over the tokens that stand for at least one byte."""
    bytes: int
    tokens: int


def account(plan: Plan, nats: Nats, token_bytes: NDArray[np.int64], role: Role) -> Account:
    """Sum up the rows of `role`; nats [rows, T], token_bytes [vocab]. ValueError if there is no byte."""
    rows = plan.roles == role
    sizes = token_bytes[plan.targets[rows]]
    counted = sizes > 0
    total = int(sizes[counted].sum())
    if total == 0:
        raise ValueError(f"no target of the {role.name.lower()} rows stands for any byte")
    return Account(float(nats[rows][counted].sum()) / (math.log(2) * total), total, int(counted.sum()))


class Replies:
    """The worker's logits, checked against what was asked and judged in chunks by a few threads."""

    def __init__(self, config: Config, vocab: int) -> None:
        self._config = config
        self._vocab = vocab
        self._reader = SlotReader(config.replies)
        self._started = self._last = time.monotonic()

    def wait(self, number: int) -> Header:
        """The header of reply `number`. Raises Refused if time is up or the worker gave up."""
        patience = self._config.batch_seconds if number else self._config.first_batch_seconds
        deadline = min(self._last + patience, self._started + self._config.total_seconds)
        try:
            header = self._reader.wait(number, deadline)
        except TimeoutError:
            raise Refused("worker-timeout", f"no reply to batch {number} within its time") from None
        except Closed:
            raise Refused("worker-failed", f"the worker gave up before batch {number}") from None
        self._last = time.monotonic()
        return header

    def nats(self, number: int, header: Header, targets: NDArray[np.int64], pool: ThreadPoolExecutor) -> Nats:
        """Copy and judge reply `number`: targets [B, T] -> nats [B, T]. Raises Refused."""
        self._check(number, header, targets.shape)
        flat = targets.reshape(-1)
        step = max(1, CHUNK_NUMBERS // self._vocab)
        starts = range(0, len(flat), step)
        scores = pool.map(lambda i: self._chunk_nats(number, header.dtype, i, flat[i : i + step]), starts)
        return np.concatenate(list(scores)).reshape(targets.shape)

    def _check(self, number: int, header: Header, shape: tuple[int, ...]) -> None:
        got = (header.rows, header.length, header.vocab)
        if got != (*shape, self._vocab):
            raise Refused("wrong-shape", f"logits are {list(got)}, asked for {[*shape, self._vocab]}")
        if header.dtype not in DTYPES:
            raise Refused("wrong-dtype", "logits are neither bfloat16 nor float32")
        expected = math.prod(got) * DTYPES[header.dtype][1]
        size = self._reader.payload_bytes(number)
        if size != expected:
            raise Refused("protocol", f"reply {number} has {size} bytes of logits, not {expected}")

    def _chunk_nats(self, number: int, dtype: int, start: int, targets: NDArray[np.int64]) -> Nats:
        name, itemsize = DTYPES[dtype]
        raw = np.empty((len(targets), self._vocab), np.uint16 if name == "bfloat16" else np.float32)
        self._reader.read(number, start * self._vocab * itemsize, raw.data.cast("B"))
        return token_nats(widen(raw), targets)


def widen(raw: NDArray[Any]) -> NDArray[np.float32]:
    """float32 unchanged; bfloat16 bits (uint16) as the upper half of a float32."""
    if raw.dtype == np.float32:
        return raw
    upper: NDArray[np.uint32] = np.left_shift(raw, 16, dtype=np.uint32)
    return upper.view(np.float32)


def collect(config: Config, plan: Plan, batch_rows: int, vocab: int) -> Nats:
    """Nats of every planned token, [rows, T], with `SLOTS` batches under way at a time. Raises Refused."""
    batches = len(plan.inputs) // batch_rows
    requests, replies = SlotWriter(config.requests), Replies(config, vocab)

    def rows(number: int) -> slice:
        return slice(number * batch_rows, (number + 1) * batch_rows)

    def send(number: int) -> None:
        inputs = plan.inputs[rows(number)]
        requests.write(number, Header(0, len(inputs), inputs.shape[1], vocab), inputs.data.cast("B"))

    scores = np.empty(plan.targets.shape, np.float64)
    try:
        for number in range(min(SLOTS, batches)):
            send(number)
        with ThreadPoolExecutor(usable_cpus()) as pool:
            for number in range(batches):
                header = replies.wait(number)
                scores[rows(number)] = replies.nats(number, header, plan.targets[rows(number)], pool)
                if number + SLOTS < batches:
                    send(number + SLOTS)
    finally:
        requests.close()  # scored or refused, the worker need not wait any longer
    return scores


#: In this order: a model that remembers disagrees everywhere, one that sees other rows in twins too.
VERDICTS = (
    (Role.ENCORE, "stateful", "the first batch is answered differently at the end"),
    (Role.REPEAT, "non-causal", "rows are answered differently among other rows"),
    (Role.TWIN, "non-causal", "rows are answered differently before another future"),
)


def compare_probes(plan: Plan, nats: Nats) -> dict[Role, probes.Comparison]:
    """Compare all probes with their origins, nats [rows, T]. Raises Refused if one kind disagrees."""
    compared = {}
    tolerances = {Role.ENCORE: probes.ENCORE, Role.REPEAT: probes.REPEATS}
    for role, cause, meaning in VERDICTS:
        rows = np.flatnonzero(plan.roles == role)
        pair = nats[rows], nats[plan.origins[rows]], plan.agree[rows]
        compared[role] = probes.compare(*pair)
        tolerance = tolerances.get(role) or compared[Role.REPEAT].tolerance()
        if not compared[role].agrees(tolerance):
            raise Refused(cause, f"{meaning}: {probes.describe(*pair, tolerance)}")
    return compared


def compare_edge(plan: Plan, nats: Nats) -> probes.Edge:
    """Compare the last prediction of each row that counts with the others. Raises Refused if it is worse."""
    edge = probes.look_at_edge(nats[np.isin(plan.roles, (Role.VALIDATION, Role.HOLDOUT))])
    if not edge.agrees:
        raise Refused(
            "non-causal",
            f"the last predictions of {edge.rows} rows, whose tokens were not sent, are worse than the others"
            f" by {edge.excess:.3g} nats; allowed are {edge.bound:.3g}",
        )
    return edge


def promise(config: Config, twins: int, length: int) -> dict[str, Any]:
    """What so many twins find but for the miss probability: the smallest fraction, by reach in tokens."""
    reaches = sorted({1, config.leak_reach, length // 2})
    leaks = {str(k): probes.smallest_leak(twins, config.miss_probability, k, length) for k in reaches}
    return {
        "miss_probability": config.miss_probability,
        "leak_fraction_by_reach": {reach: round(leak, 6) for reach, leak in leaks.items()},
    }


def twins_for(config: Config, rows: int, length: int) -> int:
    """How many twins among so many rows: enough for the promised detection, but no more than affordable."""
    needed = probes.twins_needed(config.leak_fraction, config.miss_probability, config.leak_reach, length)
    return max(1, min(needed, int(probes.TWINS_SHARE * rows)))


def score(config: Config) -> dict[str, Any]:
    """Score one worker. Raises Refused, ExchangeError; ValueError or OSError if our own data is broken."""
    started = time.monotonic()
    manifest = json.loads((config.data / "manifest.json").read_text())
    token_bytes = np.load(config.data / "token_bytes.npy", allow_pickle=False).astype(np.int64)
    wanted = manifest["score_tokens"] if config.score_tokens is None else config.score_tokens
    holdout_wanted = config.holdout_score_tokens
    if holdout_wanted is None:
        holdout_wanted = manifest["holdout_score_tokens"]
    validation = read_rows(config.data, "val", wanted, manifest)
    holdout = read_rows(config.data, "holdout", holdout_wanted, manifest)
    batch_rows = config.batch_rows or max(1, BATCH_TOKENS // int(manifest["max_seq_len"]))
    length = validation.shape[1] - 1
    twins = twins_for(config, len(validation) + len(holdout), length)
    plan = make_plan(validation, holdout, batch_rows, config.seed, twins)
    nats = collect(config, plan, batch_rows, int(manifest["vocab_size"]))
    compared = compare_probes(plan, nats)
    edge = compare_edge(plan, nats)
    sums = {role: account(plan, nats, token_bytes, role) for role in (Role.VALIDATION, Role.HOLDOUT)}
    return {
        "status": "scored",
        "val_bpb": sums[Role.VALIDATION].bits_per_byte,
        "holdout_bpb": sums[Role.HOLDOUT].bits_per_byte,
        "bytes": sums[Role.VALIDATION].bytes,
        "tokens": sums[Role.VALIDATION].tokens,
        "holdout_bytes": sums[Role.HOLDOUT].bytes,
        "seconds": round(time.monotonic() - started, 3),
        "probes": {
            **{role.name.lower(): comparison.summary() for role, comparison in compared.items()},
            "edge": edge.summary(),
            "promise": promise(config, compared[Role.TWIN].rows, length),
        },
    }


def main() -> None:
    """Score what the configuration in argv says and print the one line."""
    try:
        result = score(Config.from_json(sys.argv[1]))
    except Refused as refusal:
        result = {"status": "refused", "cause": refusal.cause, "detail": str(refusal)}
    except ExchangeError as error:
        result = {"status": "refused", "cause": "protocol", "detail": str(error)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
