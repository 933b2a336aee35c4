"""Makes what was prepared fit the frontier of the day, and rehearses what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import suppress

from controller.core.errors import Interrupted
from controller.core.events import Prepared
from controller.core.experiment import Experiment
from controller.core.program.rebase import Stale, refit
from controller.proposals.context import Briefing
from controller.proposals.services import JournalDesk
from controller.store.effort import Chronicle

#: How long a thread gets to notice that it is to end. It can do no harm afterwards: then its desk is closed.
_GRACE_SECONDS = 5.0


class Fitting:
    """For one researcher, in whose thread alone it is called."""

    def __init__(
        self,
        chronicle: Chronicle,
        briefing: Briefing,
        make_desk: Callable[[threading.Event], JournalDesk],
        stop: threading.Event,
    ) -> None:
        """`make_desk` makes a desk with an event that stops what is done at it; `stop` stops us."""
        self._chronicle = chronicle
        self._briefing = briefing
        self._make_desk = make_desk
        self._stop = stop
        self._foresight: _Foresight | None = None

    def fit(self, prepared: Prepared) -> str:
        """train.py of a prepared proposal on the frontier as it is. Raises Stale, Interrupted."""
        try:
            train_py = self._refit(prepared, self._briefing.frontier_py, self._briefing.tried())
            if self._is_new(prepared, train_py) and (failure := self._failure(train_py)) is not None:
                raise Stale(f"on the new frontier its rehearsal failed: {failure}")
            return train_py
        finally:
            self.close()

    def foresee(self, prepared: Prepared, winner: Experiment) -> None:
        """`winner` is about to be kept: rehearse already what was prepared, made to fit that frontier."""
        if self._foresight is None:
            with suppress(Stale):
                train_py = self._refit(prepared, self._chronicle.source(winner), ())
                if self._is_new(prepared, train_py):
                    self._foresight = _Foresight(self._make_desk(threading.Event()), train_py)

    def close(self) -> None:
        """Break off what is under way."""
        if self._foresight is not None:
            self._foresight.break_off()
            self._foresight = None

    def _refit(self, prepared: Prepared, frontier_py: str, tried: Collection[str]) -> str:
        return refit(
            prepared,
            self._chronicle.text(prepared.train_sha256),
            parent_py=self._briefing.train_py(prepared.parent),
            frontier_py=frontier_py,
            tried=tried,
        )

    def _is_new(self, prepared: Prepared, train_py: str) -> bool:
        """True if a rehearsal of the text may end otherwise than the one of what was prepared."""
        before = self._chronicle.state.rehearsed
        if before and before.train_sha256 == prepared.train_sha256 and before.result == "inconclusive":
            return False  # nothing would be learnt this time either
        return train_py != self._chronicle.text(prepared.train_sha256)

    def _failure(self, train_py: str) -> str | None:
        """Two changes that passed by themselves may fail together."""
        if self._foresight is not None and self._foresight.train_py == train_py:
            return self._foresight.failure(self._stop)
        return self._make_desk(self._stop).rehearse(train_py)


class _Foresight:
    """Rehearses a text in a thread and remembers what came of it."""

    def __init__(self, desk: JournalDesk, train_py: str) -> None:
        """`desk.stop` must be nobody else's event: it is set to break the rehearsal off."""
        self.train_py = train_py
        self._desk = desk
        self._failure: str | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="foresight", daemon=True)
        self._thread.start()

    def failure(self, stop: threading.Event) -> str | None:
        """What `Desk.rehearse` said, which is waited for. Raises Interrupted if `stop` is set meanwhile."""
        while self._thread.is_alive():
            self._thread.join(0.1)
            if stop.is_set():
                raise Interrupted("stopped by a person")
        if self._error is not None:
            raise self._error
        return self._failure

    def break_off(self) -> None:
        """End it. Nothing of it reaches the journal afterwards."""
        self._desk.stop.set()
        self._thread.join(_GRACE_SECONDS)
        self._desk.close()

    def _run(self) -> None:
        try:
            self._failure = self._desk.rehearse(self.train_py)
        except Exception as error:
            self._error = error
