"""A home with small prepared data, where attacks and honest models are run as by `glovebox try`."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dataset
import fresh
import numpy as np
from corpus import Request, open_corpus

from controller import settings
from controller.app import trial
from controller.app.machine import Machine, sandbox_of
from controller.core.containers.config import MIB, Limits, SandboxConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import Mount
from controller.core.decision import decide
from controller.core.errors import GloveboxError, UserError
from controller.core.scoring.config import JudgeConfig
from controller.core.values import Frontier, Score, Verdict, Work
from controller.ports import Attempt
from tests.attacks.cases import NO_GAIN, Case
from tests.attacks.honest import HONEST, Honest
from tests.cli.corpus import write_corpus

PROJECT = Path(__file__).parents[2]

#: Short rows, so that thousands of them are scored in seconds.
SCALE = dataset.Scale(
    max_seq_len=64,
    vocab_size=512,
    eval_tokens=1 << 13,
    score_tokens=1 << 14,
    holdout_score_tokens=1 << 12,
    max_corpus_bytes=None,
    tokenizer_chars=1_000_000,
)
BATCH_TOKENS = 1 << 12
LEAK_FRACTION = 0.01
"""For attacks that leak a lot or not at all; a thousandth would take ten times as many twins."""
_SCORING = {"batch_tokens": BATCH_TOKENS, "leak_fraction": LEAK_FRACTION, "total_seconds": 240.0}
BUDGET_SECONDS = 600.0
HONEST_SHARE = 0.05
"""Of this budget it is as much as the usual share of the usual one: 30 s."""
HONEST_BITS = 1e-4
"""How far the judge's score of an honest model may be from the plain evaluation, bits per byte."""


@dataclass(frozen=True)
class Ending:
    """What came of one attack."""

    got: str
    """In the words of `cases`, or `scored` with the score for one that gained something."""
    detail: str
    seconds: float
    bypass: bool
    """Did it get a better score than it deserves, or break the judge?"""
    expected: bool


@dataclass(frozen=True)
class Comparison:
    """The judge's score of an honest model and that of the plain evaluation; None if it was refused."""

    judged: float | None
    plain: float
    detail: str
    seconds: float
    work: tuple[Work, ...] = ()
    """Of its workers, with what they might use."""

    @property
    def agrees(self) -> bool:
        return self.judged is not None and abs(self.judged - self.plain) <= HONEST_BITS


class Arena:
    """Runs cases one after the other in a home of its own."""

    def __init__(self, home: Path) -> None:
        """Prepares the data. Raises NotReady where there is no engine or no image."""
        self.home = home.resolve()
        config = self._settings({})
        sandbox_of(config).describe()
        _prepare(self.home)
        self.uniform_bpb = self._uniform_bpb()
        self._fillings = self._needles()

    def attack(self, case: Case) -> Ending:
        """Run one attack to its end. Never raises for what the attack did."""
        reference = self.reference
        started = time.monotonic()
        try:
            done = trial.run(
                self._settings(case.judge), self._write(case.train_py), threading.Event(), reference
            )
        except UserError as error:
            got, detail, gained = "refused", str(error), False
        except GloveboxError as error:
            got, detail, gained = type(error).__name__, str(error), True
        else:
            got, detail, gained = self._judgement(done)
            if got in case.expected and (complaint := case.complaint(done)):
                got, detail = f"{got}, but", complaint
        return Ending(got, detail, time.monotonic() - started, gained, got in case.expected)

    def _judgement(self, done: trial.Trial) -> tuple[str, str, bool]:
        decision = done.decision
        if isinstance(done.judgement, Score) and decision.verdict is Verdict.KEEP:
            score = done.judgement.val_bpb
            gained = score < self.uniform_bpb * (1 - 1e-6)
            return f"scored {score:.4f}" if gained else NO_GAIN, f"val_bpb {score:.6g}", gained
        result = done.as_json()
        return f"{decision.verdict.value} {result['cause']}", result["detail"], False

    @cached_property
    def reference(self) -> tuple[Work, ...]:
        """What the workers of an honest model use here, as an effort knows it from its baseline."""
        path = self._write(HONEST[0].train_py)
        done = trial.run(self._settings({}), path, threading.Event(), ())
        if not isinstance(done.judgement, Score):
            raise RuntimeError(f"no honest model to compare with: {done.as_text()}")
        return done.judgement.work

    def honest(self, model: Honest) -> Comparison:
        """Train an honest model, score it, and evaluate its checkpoint without any of our containers."""
        reference = self.reference
        started = time.monotonic()
        config = self._settings({"leak_fraction": 0.001, "work_share": HONEST_SHARE})
        machine = Machine.assemble(config)
        slot = machine.slots[0]
        path = self._write(model.train_py)
        attempt = Attempt("honest", 1, path, path.with_name("run.log"), BUDGET_SECONDS)
        try:
            outcome = slot.trainer.train(attempt, threading.Event(), lambda elapsed: None)
            if outcome.cause is not None:
                return Comparison(None, math.nan, f"it did not train: {outcome.detail}", outcome.seconds)
            checkpoint = self._checkpoint(machine, attempt)
            judgement = slot.judge.score(
                attempt, secrets.randbits(63), lambda score: True, threading.Event(), reference=reference
            )
        finally:
            slot.trainer.discard(attempt)
            machine.sandbox.close()
        decision = decide(Frontier(commit=""), outcome, judgement)
        judged = (
            judgement.val_bpb if isinstance(judgement, Score) and decision.verdict is Verdict.KEEP else None
        )
        detail = (
            ""
            if isinstance(judgement, Score)
            else f"{decision.verdict.value} {judgement.cause}: {judgement.detail}"
        )
        plain = self._plain_bpb(path, checkpoint)
        return Comparison(judged, plain, detail, time.monotonic() - started, judgement.work)

    def _settings(self, judge: Mapping[str, Any]) -> settings.Settings:
        memory = Limits(memory=2048 * MIB, pids=256, tmp_bytes=256 * MIB)
        return settings.load(
            home=self.home,
            device="cpu",
            budget=settings.BudgetConfig(wall_seconds=BUDGET_SECONDS),
            min_free_bytes=0,
            sandbox=SandboxConfig(
                workspace_bytes=64 * MIB,
                exchange_bytes=64 * MIB,
                empty_caches=False,  # what that is good for is attacked on the ground
                trainer=memory,
                worker=memory,
                judge_memory=memory.memory,
            ),
            judge=JudgeConfig.model_validate({**_SCORING, **judge}),
        )

    def _write(self, train_py: str) -> Path:
        """train.py as a file, the bytes that belong to this home filled in."""
        for mark, filling in self._fillings.items():
            train_py = train_py.replace(mark, filling)
        folder = self.home / "case"
        folder.mkdir(exist_ok=True)
        (folder / "train.py").write_text(train_py)
        return folder / "train.py"

    def _needles(self) -> dict[str, str]:
        """Bytes of the judge's text and of the tokenizer, backwards in hex; text for anybody; scored rows."""
        data = self.home / "data"
        public = [path.read_bytes() for path in (data / "public").rglob("*") if path.is_file()]
        secrets: list[str] = []
        for split in ("val", "holdout"):
            tokens = b"".join(path.read_bytes() for path in sorted((data / "judge" / split).glob("*.bin")))
            pieces = [tokens[start : start + 48] for start in range(0, len(tokens) - 48, len(tokens) // 20)]
            own = [piece for piece in pieces if not any(piece in content for content in public)]
            secrets += [piece[::-1].hex() for piece in own[:4]]  # what public text quotes too is no secret
        known = (data / "public" / "tokenizer" / "tokenizer.json").read_bytes()[-40:]
        dev = next((data / "public" / "dev").glob("*.bin")).read_bytes()[:150_000]
        scored = validation_rows(data).astype("<u2").tobytes()
        return {
            "@SCORED@": base64.b85encode(scored).decode(),
            "@SECRETS@": " ".join(secrets),
            "@KNOWN@": known[::-1].hex(),
            "@DEV@": base64.b85encode(dev).decode(),
        }

    def _uniform_bpb(self) -> float:
        """What the uniform distribution scores, by a plain count."""
        tokens, size = self._count()
        return math.log2(SCALE.vocab_size) * tokens / size

    def _count(self) -> tuple[int, int]:
        targets = validation_rows(self.home / "data")[:, 1:]
        sizes = np.load(self.home / "data" / "judge" / "token_bytes.npy")[targets]
        return int((sizes > 0).sum()), int(sizes.sum())

    def _plain_bpb(self, train: Path, checkpoint: bytes) -> float:
        """In a process of its own, since a model's code brings its own idea of where the data is."""
        (file := train.with_name("checkpoint.safetensors")).write_bytes(checkpoint)
        data = self.home / "data"
        paths = f"{PROJECT}:{PROJECT / 'harness'}"
        environment = {**os.environ, "GLOVEBOX_DATA": str(data / "public"), "PYTHONPATH": paths}
        command = [sys.executable, "-m", "tests.attacks.plain", str(train), str(file), str(data)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return float(done.stdout.split()[-1])

    def _checkpoint(self, machine: Machine, attempt: Attempt) -> bytes:
        """The checkpoint that T left, before scoring: read by a container of the test's own."""
        slot = machine.slots[0]
        place = ContainerNames(self.home, attempt.experiment, attempt.number)
        read = "import sys; sys.stdout.buffer.write(open('/out/checkpoint.safetensors', 'rb').read())"
        spec = dataclasses.replace(
            slot.trainer.spec(attempt),
            name=place.name("reader"),
            command=("exec", "--limit", "30", "--", "python", "-c", read),
            life_seconds=30.0,
            streamed=False,
            working_dir="/tmp",
            mounts=(Mount(place.name(Item.WORKSPACE), "/out", volume=True),),
        )
        try:
            started = machine.sandbox.start(spec)
            end = machine.sandbox.wait(spec.name, deadline=started + 30, stop=threading.Event())
            if end.exit_code != 0:
                raise RuntimeError(f"the checkpoint was not read: status {end.exit_code}")
            return machine.sandbox.output(spec.name, 64 * MIB)
        finally:
            machine.sandbox.remove(containers=[spec.name])


def validation_rows(data: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows that the judge scores, int64 [rows, T + 1]."""
    manifest = json.loads((data / "judge" / "manifest.json").read_bytes())
    numbers = {"score_tokens": manifest["score_tokens"], "most_fresh_tokens": 1}
    return fresh.draw(data / "judge", manifest, **numbers, scoring=None, confirmation=None).scored


def _prepare(home: Path) -> None:
    """Small data, made as `glovebox prepare` makes it but for the scale."""
    if (home / "data").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    write_corpus(home / "corpus")
    opened = open_corpus(Request(str(home / "corpus")), home / "downloads", 1, None)
    dataset.build(home / "data", opened, "cpu", SCALE, 1)
