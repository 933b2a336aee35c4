"""Real endings of real runs, and look-alikes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.scoring.runlog import MAX_SUMMARY_BYTES, claim, crash_cause, excerpt, summary
from controller.core.values import Cause, Claim, Decision, Refusal, RunOutcome, Score, Verdict

UPSTREAM_SUMMARY = """\rstep 00952 (100.0%) | loss: 2.91 | epoch: 1 | remaining: 0s    \n---
val_bpb:          0.997900
training_seconds: 300.1
total_seconds:    325.9
peak_vram_mb:     45060.2
mfu_percent:      39.80
total_tokens_M:   499.6
num_steps:        953
num_params_M:     50.3
depth:            8
"""


def cause_of(text: str, exit_code: int | None = 1) -> Cause | None:
    return crash_cause(text, exit_code=exit_code, oom_killed=False, killed_at_limit=False)[0]


def test_upstreams_summary_is_the_claim() -> None:
    assert claim(UPSTREAM_SUMMARY) == Claim(
        val_bpb=0.9979,
        training_seconds=300.1,
        peak_vram_mb=45060.2,
        mfu_percent=39.8,
        total_tokens_M=499.6,
        num_steps=953,
        num_params_M=50.3,
        depth=8,
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("val_bpb: 2\nval_bpb: 1.5", 1.5),
        ("step 3\rval_bpb: 1.25\rmore", 1.25),
        ("  val_bpb = 1,234.5 ", 1234.5),
        ("val_bpb: none", None),
        ("val_bpb: 0.5 bits", None),
        ("best val_bpb: 0.5", None),
        ("val_bpb: inf", math.inf),
        ("", None),
    ],
)
def test_claims_are_read_tolerantly(text: str, value: float | None) -> None:
    assert claim(text).val_bpb == value


@given(st.text(max_size=200) | st.text("val_bp:= -.,_naif0123456789e\n\r", max_size=200))
def test_no_text_breaks_the_readers(text: str) -> None:
    claim(text)
    crash_cause(text, exit_code=1, oom_killed=False, killed_at_limit=False)
    assert len(excerpt(text, 100)) <= 100


SCRIPTS = [
    ("x = (1,\n", Cause.SYNTAX, "SyntaxError: '(' was never closed"),
    ("def f():\nreturn 1\n", Cause.SYNTAX, "IndentationError"),
    ("import nonexistent_module_xyz\n", Cause.IMPORT, "ModuleNotFoundError: No module named"),
    ("from math import sine\n", Cause.IMPORT, "ImportError: cannot import name 'sine'"),
    ("print(dept)\n", Cause.NAME, "NameError: name 'dept' is not defined"),
    ("import math\nmath.sqare(2)\n", Cause.NAME, "AttributeError: module 'math'"),
    ("dict(a=1).pop(key=2)\nint(bass=2)\n", Cause.EXIT, "TypeError"),
    ("def f(a): ...\nf(b=1)\n", Cause.NAME, "TypeError: f() got an unexpected keyword argument 'b'"),
    ("import numpy\nnumpy.ones((2, 3)) @ numpy.ones((2, 3))\n", Cause.SHAPE, "ValueError: matmul"),
    ("import numpy\nnumpy.ones((2, 3)) + numpy.ones((2, 2))\n", Cause.SHAPE, "ValueError: operands"),
    ("raise FloatingPointError('overflow')\n", Cause.NAN, "FloatingPointError: overflow"),
    ("assert False, 'loss is nan at step 3'\n", Cause.NAN, "AssertionError: loss is nan at step 3"),
    ("print('\\rstep 5 | remaining: 2s    FAIL')\nexit(1)\n", Cause.NAN, "FAIL"),
    ("raise SystemExit('training diverged: the loss of step 5 is inf')\n", Cause.NAN, "diverged"),
    ("x = [0]\nx[10**30]\n", Cause.EXIT, "IndexError"),
    ("'a' * 10**15\n", Cause.OOM, "MemoryError"),
    ("raise SystemExit('no luck')\n", Cause.EXIT, "no luck"),
    ("import os\nos._exit(3)\n", Cause.EXIT, "exit status 3: "),
    ("import torch\ntorch.zeros(1).cuda()\n", Cause.NO_GPU, "Torch not compiled with CUDA enabled"),
    (
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise NameError('x') from e\n",
        Cause.NAME,
        "NameError: x",
    ),
]


@pytest.mark.parametrize(("source", "cause", "detail"), SCRIPTS)
def test_a_real_interpreters_last_words(tmp_path: Path, source: str, cause: Cause, detail: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(source)
    run = subprocess.run(
        [sys.executable, "train.py"],
        check=False,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Progress lines end without a newline, so the traceback begins in the middle of a line.
    text = "\rstep 00001 | loss: 9.01 | remaining: 3s    " + run.stdout
    found, said = crash_cause(text, exit_code=run.returncode, oom_killed=False, killed_at_limit=False)
    assert found is cause
    assert detail in said


TRACE = 'Traceback (most recent call last):\n  File "/work/train.py", line 3, in <module>\n    f()\n'


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", Cause.OOM),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", Cause.OOM),
        ("RuntimeError: CUDA error: out of memory", Cause.OOM),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
         "memory: you tried to allocate 4000000000000 bytes. Error code 12", Cause.OOM),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", Cause.OOM),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.28 TiB for an array", Cause.OOM),
        ("RuntimeError: No CUDA GPUs are available", Cause.NO_GPU),
        ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have", Cause.NO_GPU),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", Cause.NO_GPU),
        ("RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
         "calling NumCudaDevices() that might have already set an error? Error 802: system not yet",
         Cause.NO_GPU),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", Cause.SHAPE),
        ("RuntimeError: The size of tensor a (3) must match the size of tensor b (4)", Cause.SHAPE),
        ("RuntimeError: shape '[4, 5]' is invalid for input of size 6", Cause.SHAPE),
        ("RuntimeError: Error(s) in loading state_dict for M:\n\tsize mismatch for w", Cause.SHAPE),
        ("RuntimeError: Function 'PowBackward0' returned nan values in its 0th output.", Cause.NAN),
        ("ValueError: non-finite loss", Cause.NAN),
        ("RuntimeError: CUDA error: device-side assert triggered", Cause.EXIT),
        ("ValueError: invalid literal for int() with base 10: 'banana'", Cause.EXIT),
        ("KeyError: 'info'", Cause.EXIT),
        ("OSError: [Errno 28] No space left on device", Cause.EXIT),
        ("KeyboardInterrupt", Cause.EXIT),
    ],
)  # fmt: skip
def test_messages_of_libraries(ending: str, cause: Cause) -> None:
    assert cause_of(f"step 1\n{TRACE}{ending}\n") is cause


def test_the_compiler_only_announces_the_error() -> None:
    ending = (
        "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\nRuntimeError: shape mismatch\n"
    )
    cause, detail = crash_cause(TRACE + ending, exit_code=1, oom_killed=False, killed_at_limit=False)
    assert cause is Cause.SHAPE
    assert detail == "BackendCompilerFailed: backend='inductor' raised: RuntimeError: shape mismatch"


@pytest.mark.parametrize(
    ("exit_code", "oom_killed", "killed_at_limit", "cause"),
    [
        (0, False, False, None),
        (0, True, False, None),
        (124, False, False, None),
        (137, False, True, None),
        (137, True, True, None),
        (137, False, False, Cause.OOM),
        (1, True, False, Cause.OOM),
        (139, False, False, Cause.EXIT),
        (None, False, False, Cause.EXIT),
    ],
)
def test_how_the_container_ended(
    exit_code: int | None, oom_killed: bool, killed_at_limit: bool, cause: Cause | None
) -> None:
    found, detail = crash_cause(
        "x", exit_code=exit_code, oom_killed=oom_killed, killed_at_limit=killed_at_limit
    )
    assert found is cause
    assert bool(detail) is (cause is not None)


def test_a_signal_has_its_name() -> None:
    assert crash_cause("", exit_code=139, oom_killed=False, killed_at_limit=False)[1] == (
        "killed by SIGSEGV: no output"
    )


def test_a_detail_is_one_safe_line() -> None:
    _, detail = crash_cause(
        TRACE + "ValueError: \x1b]52;c;x\x07" + "y" * 9999,
        exit_code=1,
        oom_killed=False,
        killed_at_limit=False,
    )
    assert "\x1b" not in detail
    assert len(detail) <= 200


def test_the_excerpt_is_the_whole_chain_of_the_final_traceback() -> None:
    chain = (
        f"{TRACE}KeyError: 'a'\n\nThe above exception was the direct cause of the following exception:\n\n"
        f"{TRACE}NameError: b\n"
    )
    assert excerpt(f"{TRACE}OSError: survived this one\nstep 1\n{chain}") == chain.rstrip("\n")


def test_without_a_traceback_the_excerpt_is_the_end() -> None:
    assert excerpt("a" * 9000 + "\nthe end", 20) == "a" * 12 + "\nthe end"


OUTCOME = RunOutcome(seconds=300.04, exit_code=0, detail="", claim=Claim(val_bpb=0.1))
SCORE = Score(val_bpb=0.9979, holdout_bpb=1.234567, bytes=10, tokens=3)
KEEP = Decision(verdict=Verdict.KEEP, rule="R7: strictly better than the frontier")
CRASH = Decision(verdict=Verdict.CRASH, cause=Cause.OOM, rule="R9")


def grep(tmp_path: Path, text: str) -> str:
    (tmp_path / "run.log").write_text(text)
    command = 'grep "^val_bpb:" run.log | tail -1'
    return subprocess.run(
        ["sh", "-c", command], check=True, cwd=tmp_path, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("printed", ["", "val_bpb: 0.1", UPSTREAM_SUMMARY, "val_bpb: 0.1\r"])
def test_the_last_val_bpb_of_the_log_is_the_judges(tmp_path: Path, printed: str) -> None:
    text = printed + summary(OUTCOME, SCORE, KEEP, frontier_bpb=1.0)
    assert grep(tmp_path, text) == "val_bpb:          0.997900\n"
    assert claim(text).val_bpb == 0.9979
    assert "1.2345" not in text


@pytest.mark.parametrize("judgement", [None, Refusal(cause=Cause.NOT_FINITE, detail="val_bpb: 0.1")])
def test_without_a_score_the_last_val_bpb_is_no_number(tmp_path: Path, judgement: Refusal | None) -> None:
    outcome = OUTCOME.model_copy(update={"detail": "a\nval_bpb: 0.1"})
    assert grep(tmp_path, "val_bpb: 0.1\n" + summary(outcome, judgement, CRASH)) == "val_bpb:          none\n"


def test_the_section_is_as_short_as_the_limits_on_storage_reckon() -> None:
    longest = "\N{GRINNING FACE}" * 10_000
    outcome = OUTCOME.model_copy(update={"detail": longest, "seconds": 1e300})
    decision = CRASH.model_copy(update={"rule": longest})
    assert 1000 < len(summary(outcome, None, decision, frontier_bpb=1e300).encode()) <= MAX_SUMMARY_BYTES
