"""Before whose start the kernel's caches are emptied, and what follows where they cannot be."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from controller.core.containers.domains import FORGOTTEN_BEFORE, Domain
from controller.core.errors import InfrastructureError
from controller.sandbox.engine.caches import EMPTIED, SHARED, Caches

T, W, R, J = Domain.TRAINER, Domain.WORKER, Domain.REHEARSAL, Domain.JUDGE


class Engine:
    """What happened on an engine, in order: `-` for an emptying, else the domain that was started."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.refuses = False
        self.alive: set[Domain] = set()
        self.warmed: list[bool] = []

    def empty(self, warm: bool) -> None:
        if self.refuses:
            raise InfrastructureError("permission denied")
        self.warmed.append(warm)
        self.happened.append("-")

    def caches(self, off: str = "") -> Caches:
        return Caches(off, empty=self.empty, running=lambda: self.alive)

    def start(self, caches: Caches, *domains: Domain) -> str:
        """What happens when these are started one after the other, as one word: the first letter of each."""
        self.happened.clear()
        for domain in domains:
            with caches.before(domain):
                self.happened.append(domain.value[0])
        return "".join(self.happened)


@pytest.mark.parametrize(
    ("started", "happens"),
    [
        ((T,), "-t"),
        ((W,), "-w"),
        ((R,), "-r"),
        ((J, Domain.HOLDER, Domain.TELEMETRY, Domain.CACHES), "jhtc"),
        # one experiment: a rehearsal beside its training does not disturb that, nor does the first worker
        ((T, R, R, W, W), "-trrw-w"),
        # the next one, and one that crashed and has no worker
        ((T, W, T, T, W, W, R, T), "-tw-t-tw-w-r-t"),
        # a rehearsal between a scoring and the next training leaves nothing for that either
        ((T, W, R, R, T, R), "-tw-rr-tr"),
    ],
)
def test_before_whom(started: tuple[Domain, ...], happens: str) -> None:
    engine = Engine()
    assert engine.start(engine.caches(), *started) == happens


def test_what_has_imported_already_needs_no_reading_in() -> None:
    engine = Engine()
    caches = engine.caches()
    engine.start(caches, T, W)
    with caches.before(W, warm=False):
        pass
    assert engine.warmed == [True, False]


def test_what_runs_on_may_leave_more() -> None:
    engine = Engine()
    caches = engine.caches()
    engine.start(caches, T, W)
    engine.alive = {Domain.WORKER, Domain.HOLDER}
    assert engine.start(caches, R, R) == "-r-r"


def test_trying_it_does_not_count() -> None:
    """Whoever else uses the engine may start something before our first experiment does."""
    engine = Engine()
    caches = engine.caches()
    assert caches.isolation() == caches.isolation() == (EMPTIED, "")
    assert engine.warmed == [False]
    assert engine.start(caches, T) == "-t"
    assert engine.warmed == [False, True]


def test_where_it_never_worked_experiments_run_and_it_is_tried_again() -> None:
    engine = Engine()
    engine.refuses = True
    caches = engine.caches()
    assert engine.start(caches, T, W, W) == "tww"
    assert caches.isolation() == (SHARED, "permission denied")
    engine.refuses = False
    assert caches.isolation()[0] == SHARED, "nothing was emptied for what ran"
    assert engine.start(caches, T) == "-t"
    assert caches.isolation() == (EMPTIED, "")


def test_where_it_worked_before_a_failure_is_one_and_nothing_starts() -> None:
    engine = Engine()
    caches = engine.caches()
    engine.start(caches, T, W)
    engine.refuses = True
    for domain in (W, R, T):
        with pytest.raises(InfrastructureError, match="permission denied"):
            engine.start(caches, domain)
        assert engine.happened == []
    assert caches.isolation() == (EMPTIED, "")
    engine.refuses = False
    assert engine.start(caches, T) == "-t"


def test_it_can_be_turned_off() -> None:
    engine = Engine()
    caches = engine.caches("sandbox.empty_caches is off")
    assert engine.start(caches, T, W, W, R, T) == "twwrt"
    assert caches.isolation() == (SHARED, "sandbox.empty_caches is off")


def test_many_threads_leave_no_gap() -> None:
    engine, places = Engine(), threading.Lock()
    caches, random_ = engine.caches(), random.Random(1)
    order = [random_.choice([T, W, R]) for _ in range(2000)]

    def start(domain: Domain) -> None:
        with caches.before(domain):
            assert places.acquire(blocking=False), "two are started at once"
            engine.happened.append(domain.value[0])
            places.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, order))
    domains = {domain.value[0]: domain for domain in FORGOTTEN_BEFORE}
    assert sorted(word for word in engine.happened if word != "-") == sorted(d.value[0] for d in order)
    since: set[Domain] = set()
    for word in engine.happened:
        if word == "-":
            since.clear()
        else:
            assert not since & FORGOTTEN_BEFORE[domains[word]]
            since.add(domains[word])


def test_they_are_emptied_as_soon_as_the_last_worker_is_gone() -> None:
    engine = Engine()
    caches = engine.caches()

    def removed() -> str:
        caches.begin_ahead()
        caches.close()
        return "".join(engine.happened)

    engine.start(caches, T)
    assert removed() == "-t", "a trainer's traces are left to the next start"
    engine.start(caches, W)
    engine.alive = {J}
    assert removed() == "w", "there may be a second worker"
    engine.alive = {R}
    assert removed() == "w"
    engine.alive = {Domain.HOLDER, Domain.TELEMETRY}
    assert removed() == "w-"
    assert removed() == "w-" and engine.start(caches, T) == "t"
    # whoever comes in between leaves traces of its own
    engine.start(caches, W)
    engine.alive = set()
    assert removed() == "w-" and engine.start(caches, R, T) == "r-t"


def test_a_failure_ahead_is_found_by_the_start_after_it() -> None:
    engine = Engine()
    caches = engine.caches()
    engine.start(caches, T, W)
    engine.refuses = True
    caches.begin_ahead()
    caches.close()
    with pytest.raises(InfrastructureError, match="permission denied"):
        engine.start(caches, T)


def test_nothing_is_emptied_ahead_where_it_never_worked_or_is_turned_off() -> None:
    for refuses, off in ((True, ""), (False, "it is off")):
        engine = Engine()
        engine.refuses = refuses
        caches = engine.caches(off)
        engine.start(caches, T, W)
        caches.begin_ahead()
        caches.close()
        assert engine.happened == ["t", "w"]
