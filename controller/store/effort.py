"""The journal and the state it adds up to, written together and from any thread."""

from __future__ import annotations

import threading

from controller.core.events import AnyEvent, Record
from controller.core.experiment import Experiment
from controller.core.state import ResearchState, apply
from controller.ports import Journal, Observer


class Chronicle:
    """What `fold` says of the journal, kept up to date line by line.

    Whoever decides by the state and writes what it decided holds `lock` meanwhile.
    """

    def __init__(self, journal: Journal, state: ResearchState, observer: Observer) -> None:
        self.state = state
        self.lock = threading.RLock()
        self._journal = journal
        self._observer = observer

    def record(self, event: AnyEvent) -> Record:
        """Write one fact down and let the state and the observer know."""
        with self.lock:
            record = self._journal.append(event)
            apply(self.state, record)
            self._observer.recorded(record, self.state)
            return record

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
        """train.py as the experiment ran it."""
        return self.text(experiment.proposal.train_sha256)

    def diff(self, experiment: Experiment) -> str:
        """The experiment's change against its parent."""
        return self.text(experiment.proposal.diff_sha256)
