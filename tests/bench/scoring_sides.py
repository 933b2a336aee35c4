"""One side of a scoring in its container: `judge`, or a worker whose logits are prepared.

    python scoring_sides.py judge FOLDERS TOKENS    FOLDERS: JSON, the judge's four
    python scoring_sides.py worker FOLDERS          FOLDERS: JSON, requests and replies

Works with the harness that lies beside it, also with an earlier one, whose workers answered in float32.
"""

import dataclasses
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import exchange
import numpy as np
import torch

VOCAB, LENGTH = 8192, 2048
FRESH = 8, 32  # rows that first and second workers get of an untouched reserve
COMPACT = hasattr(exchange, "FLOAT16_LESS_LARGEST")
LONG = 3600.0
READY = "ready"
"""A file of this name says that a worker has started; that is not measured."""


def judge(folders: dict[str, str], tokens: int) -> None:
    """Score and confirm, and print what it came to."""
    import fresh

    import judge

    random = np.random.default_rng(1)

    def rows(count: int) -> Any:
        return random.integers(0, VOCAB, (count, LENGTH + 1)).astype(np.int64)

    first, second = (fresh.Portion(rows(count), 1000, asked_before=False) for count in FRESH)
    text = judge.Text(fresh.Rows(rows(tokens // LENGTH), first, second), np.full(VOCAB, 4, np.int64))
    known = {field.name for field in dataclasses.fields(judge.Config)}
    config = judge.Config(**{name: value for name, value in settings(folders).items() if name in known})
    torch.set_num_threads(1)
    while not all((Path(folders[name]) / READY).exists() for name in ("replies", "second_replies")):
        time.sleep(exchange.POLL_SECONDS)
    asked = Counted(judge)
    scored = asked.timed(lambda: judge.score(config, text))
    print(json.dumps({"stage": "scoring", **asked.stage}), flush=True)
    asked.timed(lambda: judge.confirm(config, text, scored))
    print(json.dumps({"stage": "confirmation", **asked.stage}), flush=True)


def settings(folders: dict[str, str]) -> dict[str, Any]:
    """Those of a real scoring, without any limit on time."""
    return {
        "data": Path(),
        **{name: Path(path) for name, path in folders.items()},
        **dict.fromkeys(("batch_rows", "score_tokens", "holdout_score_tokens")),
        **dict.fromkeys(("scoring", "confirmation"), 0),
        **dict.fromkeys(("first_batch_seconds", "batch_seconds", "total_seconds"), LONG),
        **{"seed": 5, "leak_fraction": 0.001, "miss_probability": 0.001, "leak_reach": 1},
    }


class Counted:
    """Counts what the judge asks for and gets."""

    def __init__(self, judge: Any) -> None:
        collect = judge.collect

        def counting(config: Any, folders: Any, batches: list[Any], vocab: int) -> Any:
            self.stage["tokens"] = sum(batch.inputs.size for batch in batches)
            self.stage["answers"] = sum(batch.targets.size for batch in batches)
            self.stage["bytes"] = self.stage["answers"] * vocab * (2 if COMPACT else 4)
            return collect(config, folders, batches, vocab)

        judge.collect = counting
        self.stage: dict[str, float] = {}

    def timed(self, work: Any) -> Any:
        self.stage = {}
        began, used = time.monotonic(), cpu_seconds()
        result = work()
        self.stage |= {"seconds": time.monotonic() - began, "cpu": cpu_seconds() - used}
        return result


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def worker(folders: dict[str, str]) -> None:
    """Answer whatever is asked, at once: the logits of a column are the same in every row."""
    torch.set_num_threads(1)  # a GPU copies by itself, and threads that wait for the next copy would spin
    logits = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    reader = exchange.SlotReader(Path(folders["requests"]))
    writer = exchange.SlotWriter(Path(folders["replies"]))
    send = compact(writer, logits) if COMPACT else plain(writer, logits)
    (Path(folders["replies"]) / READY).touch()
    for number in itertools.count():
        header = reader.wait(number, time.monotonic() + LONG)
        tokens = np.empty((header.rows, header.length), np.int32)
        reader.read(number, 0, tokens.data.cast("B"))
        send(number, header)


def compact(writer: Any, logits: torch.Tensor) -> Any:
    """In the slot's memory. A GPU copies them there by itself; here it is done when others are wanted."""
    import answers

    coded, largest = answers.less_largest(logits)
    there: dict[int, tuple[int, ...]] = {}

    def send(number: int, asked: Any) -> None:
        rows, columns, dtype = asked.rows, asked.last - asked.first, exchange.FLOAT16_LESS_LARGEST
        slot, wanted = number % exchange.SLOTS, (rows, asked.first, asked.last)
        if there.get(slot) != wanted:
            size = exchange.payload_bytes(dtype, rows * columns, VOCAB)
            space = torch.frombuffer(writer.space(number, size), dtype=torch.uint8)
            places, numbers = torch.split(space, [4 * rows * columns, size - 4 * rows * columns])
            numbers.view(torch.float16).view(rows, columns, VOCAB).copy_(coded[asked.first : asked.last])
            places.view(torch.int32).view(rows, columns).copy_(largest[asked.first : asked.last])
            there[slot] = wanted
        writer.publish(number, exchange.Header(dtype, rows, columns, VOCAB))

    return send


def plain(writer: Any, logits: torch.Tensor) -> Any:
    """As float32, from memory that was filled before for whole rows."""
    prepared: dict[int, torch.Tensor] = {}

    def send(number: int, asked: Any) -> None:
        if asked.rows not in prepared:
            prepared[asked.rows] = logits.expand(asked.rows, LENGTH, VOCAB).contiguous()
        part = prepared[asked.rows][:, asked.first : asked.last].contiguous()
        payload = part.view(torch.uint8).numpy().reshape(-1).data
        writer.write(number, exchange.Header(2, *part.shape), payload)

    return send


if __name__ == "__main__":
    if sys.argv[1] == "judge":
        judge(json.loads(sys.argv[2]), int(sys.argv[3]))
    else:
        worker(json.loads(sys.argv[2]))
