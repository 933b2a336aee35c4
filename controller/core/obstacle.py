"""Recorded outcome → what the machine lacks to score any experiment. Pure.

A run reports what ended it, and may lie. The loop stops for it only while an effort has no score at all, and
only if the unchanged baseline, which a person chose, ended the same way: docs/decisions/unattended.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from controller.core.experiment import Experiment
from controller.core.untrusted import clean_line
from controller.core.values import Cause

IN_A_ROW = 3
"""How many experiments must end the same way before the loop stops."""


@dataclass(frozen=True)
class Obstacle:
    """What blocks every experiment. Two are equal if kind and subject are."""

    kind: str
    subject: str
    """A module's name, for instance; empty if the kind says it all."""
    detail: str = field(compare=False)
    """The last line of the run, sanitised."""
    remedy: str = field(compare=False)
    """One sentence: what a person can do."""

    @property
    def sentence(self) -> str:
        return f"{self.detail.rstrip('.')}. {self.remedy}"

    @property
    def last_words(self) -> str:
        """Why the loop stops, and when it can go on."""
        return (
            f"Nothing was scored yet and {IN_A_ROW} experiments in a row ended the same way as the unchanged "
            f"baseline: {self.sentence} Training stops until the image, the driver, the GPU or the sandbox "
            "settings change, or until `glovebox continue` asks for a retry; then start again"
        )


@dataclass(frozen=True)
class _Row:
    kind: str
    causes: frozenset[Cause]
    """Any of these is enough."""
    words: re.Pattern[str] | None
    """So is a match in the detail. Its first group is the subject."""
    remedy: str


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


#: The first match wins.
_ROWS = (
    _Row(
        "driver",
        frozenset(),
        _words(
            r"driver on your system is too old",
            r"CUDA driver version is insufficient",
            r"forward compatibility was attempted",
            r"unsupported (?:PTX version|toolchain)",
        ),
        "The image's CUDA is newer than the GPU's driver: update the driver, or build the image with an "
        "older CUDA (GLOVEBOX_TORCH_INDEX, docs/service.md).",
    ),
    _Row(
        "architecture",
        frozenset(),
        _words(
            r"no kernel image is available",
            r"is not compatible with the current PyTorch",
            r"invalid device function",
        ),
        "The image's PyTorch was not built for this GPU: build the image with one that was "
        "(GLOVEBOX_TORCH_INDEX, docs/service.md).",
    ),
    _Row(
        "gpu",
        frozenset({Cause.NO_GPU}),
        _words(
            r"not compiled with CUDA enabled",
            r"Found no NVIDIA driver",
            r"No CUDA GPUs are available",
            r"no CUDA-capable device",
            r"CUDA unknown error",
            r"CUDA driver initialization failed",
            r"system not yet initialized",
            r"libcuda\.so",
        ),
        "The container has no GPU that it can use: run `glovebox doctor --device gpu`; look at the driver, "
        "the container toolkit, the image and sandbox.gpu_access.",
    ),
    _Row(
        "user",
        frozenset(),
        _words(r"getpwuid\(\): uid not found", r"No username set in the environment"),
        "The image has no user with the id that its containers run as: rebuild it with `make image`, or "
        "add the users to the image of your own.",
    ),
    _Row(
        "module",
        frozenset(),
        _words(r"No module named '?([\w.]+)"),
        "The image lacks a module that train.py imports: name one that has it in sandbox.image, or start a "
        "new --home with a train.py that does without.",
    ),
    _Row(
        "compiler",
        frozenset(),
        _words(
            r"Failed to find C compiler",
            r"No working C\+\+ compiler",
            r"Cannot find a working triton installation",
            r"\bPython\.h\b",
        ),
        "The image lacks the compiler, or Triton, that torch.compile needs: rebuild it with `make image`.",
    ),
    _Row(
        "library",
        frozenset(),
        _words(
            r"cannot open shared object file",
            r"version `?GLIBC\w*_[\d.]+'? not found",
            r"undefined symbol",
        ),
        "The image lacks a library, or has a wrong one: rebuild it with `make image`.",
    ),
    _Row(
        "files",
        frozenset(),
        _words(
            r"Read-only file system",
            r"Permission denied",
            r"No space left on device",
            r"cannot place train\.py",
        ),
        "The container cannot use its files: look at the image, and at sandbox.workspace_bytes and "
        "sandbox.trainer.tmp_bytes.",
    ),
    _Row(
        "memory",
        frozenset({Cause.OOM}),
        None,
        "The unchanged train.py needs more memory than there is: free some, raise sandbox.trainer.memory, or "
        "start a new --home at a smaller scale.",
    ),
)


def classify(cause: Cause | None, detail: str) -> Obstacle | None:
    """What a run lacked, judging by how it ended; None if it looks like the experiment's own fault."""
    if cause is None:
        return None
    for row in _ROWS:
        found = row.words.search(detail) if row.words else None
        if found or cause in row.causes:
            subject = found[1] or "" if found and found.re.groups else ""
            return Obstacle(row.kind, subject, clean_line(detail, 300), row.remedy)
    return None


def of(experiment: Experiment) -> Obstacle | None:
    """What blocked one experiment."""
    outcome = experiment.outcome
    return classify(outcome.cause, outcome.detail) if outcome is not None else None
