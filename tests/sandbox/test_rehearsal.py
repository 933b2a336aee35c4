"""Rehearsals in real containers: what is found, what proves nothing, and what is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from controller.core.containers.config import MIB, Limits
from controller.core.errors import Interrupted
from controller.ports import Rehearsal
from controller.sandbox.rehearsal import ContainerRehearsal, RehearsalConfig
from tests.harness.scoring import FLAT, IMPORTABLE, make_data
from tests.loop.slow import FakeRehearsal
from tests.support.bench import Bench

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LIMITS = Limits(memory=768 * MIB, cpus=1, pids=64, tmp_bytes=64 * MIB, shm_bytes=8 * MIB)


@pytest.fixture
def small(make_bench: Callable[..., Bench]) -> Bench:
    bench = make_bench(trainer=LIMITS, gpu=("0",))
    (bench.home / "data" / "public").rmdir()
    make_data(bench.home / "data")
    return bench


def rehearsal(bench: Bench, seconds: float = 250.0, at_once: int = 1) -> ContainerRehearsal:
    return ContainerRehearsal(
        bench.sandbox,
        bench.clock,
        config=RehearsalConfig(seconds=seconds),
        containers=bench.config,
        home=bench.home,
        files=bench.files,
        at_once=at_once,
    )


def left_behind(bench: Bench) -> list[str]:
    containers, volumes = bench.sandbox.leftovers()
    return [*containers, *volumes, *(str(path) for path in (bench.home / "rehearsal").iterdir())]


def before_the_model(statement: str) -> str:
    return f"{statement}\n{IMPORTABLE}"


FORK_BOMB = """
import os
while True:
    os.fork()
"""
MEMORY_BOMB = "blob = [bytearray(1 << 24) for _ in range(1 << 10)]"
NOSY = """
import os, socket
assert sorted(os.listdir("/data")) == ["manifest.json", "tokenizer"]
assert not os.listdir("/judge") and not os.listdir("/work")
assert os.getuid() == 10004 and not any("KEY" in name for name in os.environ)
try:
    socket.create_connection(("1.1.1.1", 53), timeout=2)
except OSError:
    pass
else:
    raise AssertionError("there is a network")
"""


@pytest.mark.parametrize("text", ["module", "flat", "nosy"])
def test_an_honest_text_passes(small: Bench, text: str) -> None:
    train_py = {"module": IMPORTABLE, "flat": FLAT, "nosy": before_the_model(NOSY)}[text]
    result = rehearsal(small).rehearse(train_py, threading.Event())
    assert (result.result, result.detail) == ("passed", "")
    assert result.seconds > 0
    assert left_behind(small) == []


@pytest.mark.parametrize("make", [rehearsal, lambda bench: FakeRehearsal()], ids=["container", "fake"])
def test_what_the_loop_relies_on(small: Bench, make: Callable[[Bench], Rehearsal]) -> None:
    broken = IMPORTABLE.replace("        before = ", "        raise ValueError\n        before = ")
    failed = make(small).rehearse(broken, threading.Event())
    assert (failed.result, bool(failed.detail), failed.seconds > 0) == ("failed", True, True)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        make(small).rehearse(IMPORTABLE, stop)


def test_a_broken_text_gets_the_line_that_breaks_without_what_steers_terminals(small: Bench) -> None:
    place = "        before = "
    train_py = IMPORTABLE.replace(place, f"        raise ValueError('\\x1b]52;c;eA==\\x07sly')\n{place}")
    result = rehearsal(small).rehearse(train_py, threading.Event())
    assert result.result == "failed"
    assert "in forward: raise ValueError" in result.detail
    assert result.detail.endswith("ValueError: sly")


@pytest.mark.parametrize(
    ("train_py", "words"),
    [
        (before_the_model(MEMORY_BOMB), "memory"),
        (FLAT.replace("model = Tiny()", "model = Tiny().to('cuda')"), "needs the GPU"),
    ],
    ids=["memory bomb", "gpu only"],
)
def test_what_a_run_has_more_of_proves_nothing(small: Bench, train_py: str, words: str) -> None:
    result = rehearsal(small).rehearse(train_py, threading.Event())
    assert (result.result, words in result.detail) == ("inconclusive", True), result
    assert left_behind(small) == []


@pytest.mark.parametrize("statement", [FORK_BOMB, "while True: pass"], ids=["fork bomb", "hang"])
def test_what_does_not_end_is_ended(small: Bench, statement: str) -> None:
    started = time.monotonic()
    result = rehearsal(small, seconds=8).rehearse(before_the_model(statement), threading.Event())
    assert result.result != "passed"
    assert time.monotonic() - started < 60
    assert left_behind(small) == []


def test_a_person_who_stops_us_does_not_wait_for_it(small: Bench) -> None:
    stop = threading.Event()
    timer = threading.Timer(2.0, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        rehearsal(small).rehearse(before_the_model("while True: pass"), stop)
    assert time.monotonic() - started < 20
    assert left_behind(small) == []


def test_trouble_with_the_engine_is_not_the_texts_fault(small: Bench) -> None:
    (small.harness.folder / "rehearse.py").unlink()
    result = rehearsal(small).rehearse(IMPORTABLE, threading.Event())
    assert (result.result, bool(result.detail)) == ("inconclusive", True)
    assert left_behind(small) == []


def test_as_many_at_once_as_there_may_be(small: Bench) -> None:
    both = rehearsal(small, at_once=2)
    stop, results = threading.Event(), []

    def one() -> None:
        results.append(both.rehearse(before_the_model("import time; time.sleep(8)"), stop).result)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(small.sandbox.leftovers()[0]) < 2:
        assert time.monotonic() < deadline, "they run one after the other"
    impatient = threading.Event()
    impatient.set()
    with pytest.raises(Interrupted):
        both.rehearse(IMPORTABLE, impatient)
    for thread in threads:
        thread.join(120)
    assert results == ["passed", "passed"]
    assert left_behind(small) == []
