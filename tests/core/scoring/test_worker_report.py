"""What is believed of how a worker ended, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.scoring.worker_report import doubted, refusal
from controller.core.values import Cause

SECRET = "the rows were 17 4 300"


@pytest.mark.parametrize(
    ("status", "output", "cause", "detail"),
    [
        (13, b"worker: RuntimeError 57", Cause.FORWARD, "forward pass: RuntimeError at line 57"),
        (13, b"noise\nworker: RuntimeError 57\n", Cause.FORWARD, "forward pass: RuntimeError at line 57"),
        (13, b"worker: RuntimeError 101", Cause.FORWARD, "forward pass: RuntimeError"),
        (13, b"worker: RuntimeError 0", Cause.FORWARD, "forward pass"),
        (13, b"worker: RuntimeError -", Cause.FORWARD, "forward pass: RuntimeError"),
        (13, b"worker: - 57", Cause.FORWARD, "forward pass"),
        (13, b"worker: Rows_17_4_300 57", Cause.FORWARD, "forward pass"),
        (13, b"worker: RowsOfValidation 57", Cause.FORWARD, "forward pass: another exception at line 57"),
        (13, b"worker: RuntimeError 57: " + SECRET.encode(), Cause.FORWARD, "forward pass"),
        (13, b"worker: RuntimeError 57\nmore", Cause.FORWARD, "forward pass"),
        (10, b"worker: ImportError 3", Cause.LOAD, "built the model: ImportError at line 3"),
        (11, b"worker: - -", Cause.NO_CHECKPOINT, "the run left no checkpoint"),
        (12, b"worker: SafetensorError -", Cause.LOAD, "does not fit the model: SafetensorError"),
        (14, b"", Cause.OOM, "no memory left"),
        (15, b"worker: - -", Cause.LOAD, "with a module-level model ready (docs/train-py.md)"),
        (124, b"", Cause.WORKER_TIMEOUT, "not done within its time"),
        (0, b"", Cause.FORWARD, "ended by itself"),
        (77, b"", Cause.FORWARD, "ended by itself"),
        (139, SECRET.encode(), Cause.FORWARD, "ended by itself"),
        (None, b"", Cause.FORWARD, "ended by itself"),
    ],
)
def test_of_its_end_a_sentence_of_ours_is_made(
    status: int | None, output: bytes, cause: Cause, detail: str
) -> None:
    found = refusal(status, output, 100)
    assert (found.cause, found.detail[-len(detail) :]) == (cause, detail)


@given(st.one_of(st.none(), st.integers()), st.binary(max_size=200), st.integers(1, 300))
def test_no_more_than_a_few_sentences_can_be_said(status: int | None, output: bytes, lines: int) -> None:
    """Whatever it prints, the detail is among those that an honest worker gives."""
    honest = {
        refusal(code, f"worker: {name} {line}".encode(), lines).detail
        for code in (10, 11, 12, 13, 14, 15, 124, 0)
        for name in ("-", "ValueError", "Unheard")
        for line in ("-", "1")
    }
    for said in (output, b"worker: " + output, b"worker: Unheard " + output):
        found = refusal(status, said, lines).detail
        assert found in honest or found.partition(" at line ")[0] in honest


def test_a_second_worker_that_fails_is_not_a_crash() -> None:
    found = doubted(refusal(13, b"worker: SystemExit 9", 100))
    assert (found.cause, found.symptom, found.confirming) == (Cause.UNCONFIRMED, Cause.FORWARD, True)
    assert found.detail.endswith("forward pass: SystemExit at line 9")
