"""The effort as it stands: the journal and the state it adds up to, written together from any thread."""

from __future__ import annotations

import datetime as dt
import threading

from controller.core.errors import Interrupted
from controller.core.events import AgentAbsent, AnyEvent, Paused, Record, Voided
from controller.core.experiment import Experiment
from controller.core.state import ResearchState, apply
from controller.ports import Clock, Journal, Observer


class Effort:
    """What `fold` makes of the journal, kept up to date line by line.

    A thread that decides by the state and records what it decided holds `lock` meanwhile.
    """

    def __init__(self, journal: Journal, state: ResearchState, observer: Observer, clock: Clock) -> None:
        self.state = state
        self.lock = threading.RLock()
        self._journal = journal
        self._observer = observer
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._is_closed = False

    def record(self, event: AnyEvent) -> Record:
        """Write one fact down and let the state and the observer know. Raises Interrupted once closed."""
        with self.lock:
            if self._is_closed:
                raise Interrupted("the session is over")
            record = self._journal.append(event)
            if isinstance(event, Paused | AgentAbsent | Voided):
                self._heard[record.time] = self._clock.monotonic()
            apply(self.state, record)
            self._observer.recorded(record, self.state)
            return record

    def close(self) -> None:
        """Nothing more is recorded, even if a thread still tries. Idempotent."""
        with self.lock:
            self._is_closed = True

    def seconds_since(self, time: str) -> float:
        """How long ago a Paused, AgentAbsent or Voided was recorded, whatever the wall clock did meanwhile.

        For one of an earlier process the journal's time is all there is.
        """
        heard = self._heard.get(time)
        if heard is None:
            now = self._clock.now()
            ago = (now - dt.datetime.fromisoformat(time)).total_seconds()
            self._heard[time] = heard = self._clock.monotonic() - max(0.0, ago)
        return self._clock.monotonic() - heard

    def training(self, experiment: int, elapsed: float, limit: float) -> None:
        """Tell the observer, which hears one thing at a time."""
        with self.lock:
            self._observer.training(experiment, elapsed, limit)

    def alive(self) -> None:
        """Tell the observer that the loop goes round."""
        with self.lock:
            self._observer.alive()

    def put_text(self, text: str) -> str:
        """Store a text as a blob; return its sha256."""
        # surrogatepass: a refused text may be anything, and what was refused must still be on record.
        return self._journal.put_blob(text.encode("utf-8", "surrogatepass"))

    def put_bytes(self, content: bytes) -> str:
        """Store bytes as a blob; return their sha256."""
        return self._journal.put_blob(content)

    def text(self, sha256: str) -> str:
        """A blob's text. Raises VerificationFailed if it is missing or is not what its name says."""
        return self._journal.get_blob(sha256).decode("utf-8", "surrogatepass")

    def source(self, experiment: Experiment) -> str:
        """train.py as it was proposed."""
        return self.text(experiment.train_sha256)

    def as_run(self, experiment: Experiment) -> str:
        """train.py as the experiment ran it, with the controller's seed."""
        return self.text(experiment.ran_sha256)

    def diff(self, experiment: Experiment) -> str:
        """The experiment's change against its parent."""
        return self.text(experiment.diff_sha256)
