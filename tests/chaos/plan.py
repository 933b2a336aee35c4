"""Where and when the controller is killed: at every named place, and at moments drawn at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controller.core.domains import Domain
from controller.failpoints import NAMES

_AGENT = ("api_", "prepared", "preparation_dropped", "rehears", "agent_")
_WAITS = ("slot_disturbed", "slot_calm", "paused", "resumed")
_ELSEWHERE = {
    *(
        f"container-{done}-{domain}"
        for done in ("due", "created", "started")
        for domain in (Domain.PREPARE, Domain.TELEMETRY)
    ),
    *(f"{side}-{event}" for side in ("before", "after") for event in _WAITS),
}
"""Another command, a GPU, a person's pause, and noise, which is not looked for beside other tests. And a
snapshot is due every two hundred experiments only: test_failpoints.py has those."""
_FREQUENT = {
    "file-written": 12,
    "blob-stored": 4,
    "container-removed": 6,
    "volume-removed": 4,
    "container-started-worker": 2,
    "container-due-worker": 2,
    "index-read": 2,
    "discarded": 2,
    "ledger-due": 2,
}
"""Places that are reached several times in one experiment: up to which time the kill may wait."""


@dataclass(frozen=True)
class Kill:
    """How one life of the controller ends."""

    kind: str
    """`place`; `moment`, so many seconds after the start; `training` or `scoring`, so many seconds into it;
    `late`: while T runs, and nobody comes before T's deadline has passed; `twice`: two starts in a row that
    only recover."""
    place: str = ""
    nth: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.kind in ("place", "twice"):
            return self.place if self.nth == 1 else f"{self.place}:{self.nth}"
        return f"{self.kind} + {self.seconds:.2f} s"


class Deck:
    """Deals the kills of one effort after another, so that every place has its turn."""

    def __init__(self, seed: int, words: Sequence[str] = ()) -> None:
        """With `words`, only places whose name holds one of them."""
        self._random = random.Random(seed)
        self._only = bool(words)
        chosen = [name for name in NAMES if not words or any(word in name for word in words)]
        reachable = [name for name in chosen if not name.startswith("snapshot-") and name not in _ELSEWHERE]
        self._places = {
            "replay": self._cycle([name for name in reachable if not _of_claude(name)]),
            "claude": self._cycle([name for name in reachable if _of_claude(name)]),
        }

    def _cycle(self, names: list[str]) -> Iterator[str]:
        self._random.shuffle(names)
        return itertools.cycle(names)

    def deal(self, agent: str, count: int) -> list[Kill]:
        """The kills of one effort, those at its beginning first."""
        kills = [self._kill(agent) for _ in range(count)]
        return sorted(kills, key=lambda kill: kill.place not in BEGINNING)

    def _kill(self, agent: str) -> Kill:
        kind = "place" if self._only else self._kind()
        match kind:
            case "place":
                place = next(self._places[agent], "")
                return Kill(kind, place, self._random.randint(1, _FREQUENT.get(place, 1)))
            case "twice":
                return Kill(kind, "recovered")
            case "moment":
                return Kill(kind, seconds=self._random.uniform(0.0, 6.0))
            case "scoring":
                return Kill(kind, seconds=self._random.uniform(0.0, 3.0))
            case _:
                return Kill(kind, seconds=self._random.uniform(0.0, 1.0))

    def _kind(self) -> str:
        shares = {"place": 60, "moment": 18, "training": 10, "scoring": 6, "late": 3, "twice": 3}
        return self._random.choices([*shares], [*shares.values()])[0]


BEGINNING = ("base-made", "before-effort_started", "after-effort_started")
"""Places that only a new home comes to."""

PRELUDES = {
    "before-voided": "container-started-judge",
    "after-voided": "container-started-judge",
}
"""Where the controller is killed first, so that the next one comes to the place."""

WATCHED = {"training": Domain.TRAINER, "late": Domain.TRAINER, "scoring": Domain.JUDGE}
"""Whose start a kill waits for."""


def _of_claude(name: str) -> bool:
    return any(part in name for part in _AGENT)
