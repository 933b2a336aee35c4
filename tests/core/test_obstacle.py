"""Which ends of runs are the machine's, and when they stop an effort."""

from __future__ import annotations

import pytest

from controller.core.events import SessionStarted
from controller.core.obstacle import Obstacle, classify
from controller.core.scoring.runlog import crash_cause
from controller.core.state import fold
from controller.core.values import Cause
from tests.support.efforts import PROVENANCE, Story

#: Last lines of real logs → kind, subject.
LINES = [
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020).", ("driver", "")),
    ("RuntimeError: CUDA initialization: The NVIDIA driver on your system is too old", ("driver", "")),
    ("torch.AcceleratorError: CUDA error: no kernel image is available for execution", ("architecture", "")),
    ("AssertionError: Torch not compiled with CUDA enabled", ("gpu", "")),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have one", ("gpu", "")),
    ("RuntimeError: No CUDA GPUs are available", ("gpu", "")),
    ("OSError: libcuda.so.1: cannot open shared object file: No such file or directory", ("gpu", "")),
    ("KeyError: 'getpwuid(): uid not found: 10001'", ("user", "")),
    ("torch._inductor.exc.InductorError: KeyError: 'getpwuid(): uid not found: 10001'", ("user", "")),
    ("ModuleNotFoundError: No module named 'kernels'", ("module", "kernels")),
    ("ModuleNotFoundError: No module named 'flash_attn.ops'", ("module", "flash_attn.ops")),
    (
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
        ("compiler", ""),
    ),
    ("torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found in config", ("compiler", "")),
    ("RuntimeError: Cannot find a working triton installation.", ("compiler", "")),
    ("ImportError: libcudart.so.12: cannot open shared object file: No such file", ("library", "")),
    ("OSError: [Errno 30] Read-only file system: '/work/x'", ("files", "")),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", ("memory", "")),
    ("NameError: name 'torhc' is not defined", None),
    ("ImportError: cannot import name 'Muon' from 'torch.optim'", None),
    ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", None),
    ("ValueError: loss is nan", None),
    ("RuntimeError: boom", None),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_what_the_machine_lacks_is_read_off_the_last_line(
    line: str, expected: tuple[str, str] | None
) -> None:
    log = f"Traceback (most recent call last):\n  File x\n{line}\n"
    found = classify(*crash_cause(log, exit_code=1, oom_killed=False, killed_at_limit=False))
    assert (None if found is None else (found.kind, found.subject)) == expected
    if found is not None:
        assert line.partition(": ")[2][:12] in found.sentence and found.sentence.endswith(".")


def test_ends_without_a_traceback() -> None:
    broken = "entrypoint: cannot place train.py in /work: [Errno 13] Permission denied\n"
    found = classify(*crash_cause(broken, exit_code=125, oom_killed=False, killed_at_limit=False))
    assert found is not None and found.kind == "files"
    assert classify(None, "No CUDA GPUs are available") is None  # it was scored
    assert classify(Cause.TIMEOUT, "") is None


def told(details: tuple[str, ...], again: int) -> Obstacle | None:
    """What stands in the way of experiments that ended with these lines; a session began before `again`."""
    story = Story()
    for number, detail in enumerate(details):
        if number == again:
            story.tell(SessionStarted(agent="tuner", budget_seconds=300, provenance=PROVENANCE))
        log = f"Traceback (most recent call last):\n{detail}\n"
        cause, said = crash_cause(log, exit_code=1, oom_killed=False, killed_at_limit=False)
        assert cause is not None
        story.run("an idea", cause, detail=said)
    return fold(story.records).obstacle


KERNELS = "ModuleNotFoundError: No module named 'kernels'"
APEX = "ModuleNotFoundError: No module named 'apex'"
NO_GPU = "RuntimeError: No CUDA GPUs are available"
TYPO = "NameError: name 'x' is not defined"


@pytest.mark.parametrize(
    ("details", "again", "kind"),
    [
        ((KERNELS, KERNELS), 0, None),
        ((KERNELS, KERNELS, KERNELS), 0, "module"),
        ((KERNELS, KERNELS, APEX), 0, None),  # one that an agent wanted to have
        ((NO_GPU, TYPO, NO_GPU, NO_GPU, NO_GPU), 0, "gpu"),
        ((NO_GPU, NO_GPU, TYPO), 0, None),
        ((TYPO, NO_GPU, NO_GPU, NO_GPU), 0, None),  # the baseline had another trouble: it may be the agent's
        ((TYPO, TYPO, TYPO), 0, None),
        ((NO_GPU, NO_GPU, NO_GPU, NO_GPU, NO_GPU), 3, None),  # begun again after three
        ((NO_GPU,) * 6, 3, "gpu"),
        ((NO_GPU,) * 3, 2, "gpu"),  # nothing had stopped it: a restart in between changes nothing
    ],
)
def test_three_in_a_row_that_ended_like_the_baseline_stop_it(
    details: tuple[str, ...], again: int, kind: str | None
) -> None:
    found = told(details, again)
    assert (found.kind if found else None) == kind
    if found is not None:
        assert found.remedy in found.last_words


def test_whoever_begins_again_all_the_same_gets_three_more() -> None:
    story = Story()
    for _ in range(3):
        story.run("an idea", Cause.EXIT, detail=NO_GPU)
    assert fold(story.records).obstacle is not None
    story.tell(SessionStarted(agent="tuner", budget_seconds=300, provenance=PROVENANCE))
    for _ in range(2):
        story.run("an idea", Cause.EXIT, detail=NO_GPU)
        assert fold(story.records).obstacle is None
    story.run("an idea", Cause.EXIT, detail=NO_GPU)
    assert fold(story.records).obstacle is not None


def test_a_score_ends_all_doubts_about_the_machine() -> None:
    story = Story()
    for _ in range(2):
        story.run("an idea", Cause.EXIT, detail=NO_GPU)
    story.run("an idea", 2.0)
    for _ in range(5):
        story.run("an idea", Cause.EXIT, detail=NO_GPU)
    assert fold(story.records).obstacle is None
