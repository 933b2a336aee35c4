"""What is proposed while the controller is being killed: runs of a second or so, with every kind of ending.

The model knows how frequent each token is, and ALPHA says how far it believes it: more is better, up to 1. A
run needs no torch, so an experiment takes little longer than its containers need to start.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.support.messages_server import (
    Answer,
    Body,
    Fail,
    Say,
    ScriptedResearcher,
    Step,
    edit,
    overloaded,
    say,
    submit,
    together,
    train_py_of,
)

BUDGET_SECONDS = 6.0
"""Of every experiment here; a run that hangs takes all of it."""

_TRAIN = '''"""{title}"""

ALPHA = {alpha}
SECONDS = {seconds}
CLAIM = {claim}
FREQUENCY = {frequency}

import array
import json
import os
import time


def build_model():
    import torch

    class Unigram(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(len(FREQUENCY)))

        def forward(self, idx):
            return self.bias.expand(*idx.shape, -1) + 0.0

    return Unigram()


def save():
    values = array.array("f", [ALPHA * frequency for frequency in FREQUENCY])
    place = {{"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}
    header = json.dumps({{"bias": place}}).encode()
    with open("partial", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + values.tobytes())
    os.replace("partial", "checkpoint.safetensors")


def train():
    print("training", flush=True)
    save()
    time.sleep(SECONDS)
    print(f"val_bpb: {{CLAIM}}")


if __name__ == "__main__":
    train()
'''

_LAST_LINE = '    print(f"val_bpb: {CLAIM}")\n'
CRASH = "    undefined_name\n"
_REPAIR = "the only repair it gets"


class Texts:
    """Proposals for one set of prepared data."""

    def __init__(self, data: Path) -> None:
        """`data` is the prepared data; its dev split tells how frequent tokens are."""
        shards = [np.fromfile(path, dtype=np.uint16) for path in (data / "public" / "dev").glob("*.bin")]
        counts = np.bincount(np.concatenate(shards), minlength=512)[:512] + 1.0
        self._frequency = [round(math.log(count), 2) for count in counts]

    def train_py(
        self, title: str, alpha: float, seconds: float = 0.4, claim: float = math.inf, crash: bool = False
    ) -> str:
        """One proposal; without a claim of its own it claims what nobody believes and nobody checks."""
        text = _TRAIN.format(
            title=title,
            alpha=alpha,
            seconds=seconds,
            claim=claim if math.isfinite(claim) else "'-'",
            frequency=self._frequency,
        )
        return text.replace(_LAST_LINE, _LAST_LINE + CRASH) if crash else text

    @property
    def baseline(self) -> str:
        return self.train_py("baseline", alpha=0.05)

    def write(self, folder: Path, count: int, seconds: float | None = None) -> None:
        """Files for the `replay` agent: keeps, discards, crashes, time-outs, a leap, and one refused.

        With `seconds` all of them are sound and train for so long.
        """
        folder.mkdir()
        for number in range(count):
            text = self._file(number) if seconds is None else self._sound(number, seconds)
            (folder / f"{number:04}.py").write_text(text, encoding="utf-8")

    def _sound(self, number: int, seconds: float) -> str:
        return self.train_py("takes its time", 1 - 0.93 ** (number + 1), seconds=seconds)

    def _file(self, number: int) -> str:
        better, worse = 1 - 0.93 ** (number + 1), -0.1 - 0.001 * number
        match number % 8:
            case 1 | 5:
                return self.train_py("crashes", better, crash=True)
            case 2:
                return self.train_py("worse", worse, seconds=0.1)
            case 3 if number == 3:
                return "this is not Python"
            case 4:
                return self.train_py("hangs", worse, seconds=3600)
            case 6:
                return self.train_py("worse and claims more", worse, claim=0.0001)
            case 7:
                return self.train_py("takes its time", better, seconds=2.5)
            case _:
                return self.train_py("better", better)


class Researcher(ScriptedResearcher):
    """A language model with ideas of the same kinds, behind an API that has its moments."""

    def __init__(self, sound: bool, answer_seconds: float) -> None:
        """`sound`: without a crash or an outage."""
        self._sound = sound
        self._alphas = (round(1 - 0.95**n, 6) for n in itertools.count(2))
        super().__init__(self._talks(), delay_seconds=answer_seconds)

    def __call__(self, body: Body) -> Answer:
        if _REPAIR in body["messages"][0]["content"][-1]["text"]:
            return together(edit(CRASH, ""), self._alpha(body), submit("mended"))
        answer = super().__call__(body)
        if isinstance(answer, Fail) and answer.status == 400:
            return self._better(body)  # a controller that was killed asks again, and the talk was over
        return answer

    def _talks(self) -> Iterator[Sequence[Step]]:
        for number in itertools.count():
            match 0 if self._sound else number % 7:
                case 2:
                    yield [self._crash]
                case 3:
                    yield [overloaded(), self._better]
                case 4:
                    yield [overloaded()] * 4
                case 5:
                    yield [say("I cannot decide.")] * 4
                case _:
                    yield [self._better]

    def _better(self, body: Body) -> Say:
        return together(self._alpha(body), submit("better"))

    def _crash(self, body: Body) -> Say:
        return together(self._alpha(body), edit(_LAST_LINE, _LAST_LINE + CRASH), submit("crashes"))

    def _alpha(self, body: Body) -> Say:
        found = re.search(r"^ALPHA = .*$", train_py_of(body), re.MULTILINE)
        assert found is not None
        return edit(found[0], f"ALPHA = {next(self._alphas)}")
