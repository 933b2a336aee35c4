"""Child processes have an end, whatever becomes of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dataset
import processes
import pytest
import tiktoken
from documents import BadInput

import prepare

REMEDY = "give it more memory or fewer --workers"


def do(job: str) -> str:
    """What a job says that a child is to do."""
    match job.split():
        case ["die", number]:
            os.kill(os.getpid(), int(number))
        case ["refuse"]:
            raise BadInput("this is no text")
        case ["outgrow"]:
            raise MemoryError
        case ["panic"]:
            ranks = {bytes([byte]): byte for byte in range(256)}
            encoding = tiktoken.Encoding(
                "bytes", pat_str=dataset.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
            )
            encoding.encode_ordinary(" " * 1_000_001)  # no Exception, and of a module that cannot be imported
        case ["sleep"]:
            time.sleep(3600)
    return job.upper()


def test_results_come_in_the_order_of_the_jobs() -> None:
    jobs = [f"job{number}" for number in range(7)]
    with processes.Workers(2) as workers:
        for _ in range(2):
            assert workers.each(do, jobs) == [job.upper() for job in jobs]


@pytest.mark.parametrize(
    ("jobs", "sentence"),
    [
        (["a", f"die {signal.SIGKILL}", "sleep"], REMEDY),
        (["a", "outgrow", "sleep"], REMEDY),
        (["a", f"die {signal.SIGSEGV}", "sleep"], "a process crashed (SIGSEGV)"),
        (["a", "panic", "sleep"], "a library gave up on file panic: called `Result::unwrap()`"),
        (["a", "refuse", "sleep"], "this is no text"),
    ],
)
def test_a_child_that_fails_ends_all_of_it(jobs: Sequence[str], sentence: str) -> None:
    """At once: the other one would sleep for an hour."""
    with pytest.raises(BadInput) as refusal, processes.Workers(2) as workers:
        workers.each(do, jobs, lambda job: f"file {job}")
    assert multiprocessing.active_children() == []
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    if sentence != "this is no text":
        assert f"file {jobs[1]}" in str(refusal.value)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def is_worker(pid: int) -> bool:
    try:
        return b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def start(out: Path, corpus: Path, stage: Path) -> "tuple[subprocess.Popen[str], list[int]]":
    """A preparation, and its workers once `stage` is there."""
    command = [sys.executable, prepare.__file__, "--out", out, "--corpus", corpus, "--scale", "cpu"]
    process = subprocess.Popen(
        [*map(str, command), "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while True:
        assert process.poll() is None, process.communicate()
        workers = [child for child in children_of(process.pid) if is_worker(child)]
        if stage.exists() and workers:
            return process, workers
        time.sleep(0.001)


STAGES = ["data.partial/public", "data.partial/judge/token_bytes.npy"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_that_the_kernel_kills_is_told_with_its_files(
    corpus_folder: Path, tmp_path: Path, stage: str
) -> None:
    process, workers = start(tmp_path / "data", corpus_folder, tmp_path / stage)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, (out, err)
    assert err.startswith("prepare: a process was killed while it read ") and err.count("\n") == 1
    assert f"{corpus_folder}/texts.jsonl" in err and REMEDY in err
    assert list(tmp_path.iterdir()) == []


def test_no_worker_outlives_a_preparation_that_is_killed(corpus_folder: Path, tmp_path: Path) -> None:
    process, workers = start(tmp_path / "data", corpus_folder, tmp_path / STAGES[1])
    process.kill()
    process.communicate(timeout=60)  # the pipes close when nobody holds them any more
    assert not any(map(is_worker, workers))


def test_as_many_workers_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= processes.default_workers() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(processes, "WORKER_BYTES", 1 << 60)
    assert processes.default_workers() == 1
