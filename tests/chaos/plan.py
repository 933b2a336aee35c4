"""Where and when the controller is killed: at every named place, and at moments drawn at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controller.core.containers.domains import Domain
from controller.failpoints import NAMES, OF_A_CALLER, OF_THE_RUNNER, OF_THE_SANDBOX

_AGENT = ("api_", "proposal_rebased", "proposal_dropped", "rehears", "agent_")
_ELSEWHERE = {
    f"container-{done}-{domain}"
    for done in ("due", "created", "started")
    for domain in (Domain.PREPARE, Domain.TELEMETRY)
} | {
    "container-told",
    "made-ready",
    "order-received-begin",
    "order-carried-out-begin",
    "before-experiment_moved",
    "after-experiment_moved",
}
"""Only another command comes there, a GPU, or an effort on several slots: test_failpoints.py."""
NOISY = ("before-slot_disturbed", "after-slot_disturbed", "before-slot_ready", "after-slot_ready")
"""Where an effort comes to on a machine that somebody else uses too; `rare.py` makes one."""
LONG = ("snapshot-due", "snapshot-written")
"""Where an effort comes to once in two hundred experiments; the same."""
_FREQUENT = {
    "file-written": 12,
    "blob-stored": 4,
    "container-removed": 6,
    "container-kill-due": 2,
    "container-killed": 2,
    "start-ordered": 6,
    "start-answered": 6,
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

    def __init__(self, seed: int, words: Sequence[str] = (), *, through_runner: bool = False) -> None:
        """With `words`, only places whose name holds one of them. `through_runner`: of such a controller."""
        self._random = random.Random(seed)
        self._only = bool(words)
        others = {*OF_THE_RUNNER, *(OF_THE_SANDBOX if through_runner else OF_A_CALLER)}
        others |= {*_ELSEWHERE, *NOISY, *LONG}
        reachable = [name for name in chosen(NAMES, words) if name not in others]
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
    "before-voided": "first-worker-done",
    "after-voided": "first-worker-done",
    "before-resumed": "after-paused",
    "after-resumed": "after-paused",
    "before-slot_ready": "after-slot_disturbed",
    "after-slot_ready": "after-slot_disturbed",
}
"""Where the controller is killed first, so that the next one comes to the place."""

WATCHED = {"training": Domain.TRAINER, "late": Domain.TRAINER, "scoring": Domain.JUDGE}
"""Whose start a kill waits for."""


def chosen(names: Sequence[str], words: Sequence[str]) -> list[str]:
    """Those that hold one of the words; without words all."""
    return [name for name in names if not words or any(word in name for word in words)]


class RunnerDeck:
    """Deals the kills of the runner: at every place it comes to, and at moments."""

    def __init__(self, seed: int, words: Sequence[str] = ()) -> None:
        """With `words`, only places whose name holds one of them."""
        self._random = random.Random(seed)
        self._only = bool(words)
        names = [*OF_THE_RUNNER, *OF_THE_SANDBOX, "file-written"]
        reachable = [name for name in chosen(names, words) if name not in _ELSEWHERE]
        self._random.shuffle(reachable)
        self._rehearsals = [name for name in reachable if _of_claude(name)]
        self._others = itertools.cycle([name for name in reachable if not _of_claude(name)])

    def deal(self, agent: str, count: int) -> list[Kill]:
        """The kills of one effort."""
        return [self._kill(agent) for _ in range(count)]

    def _kill(self, agent: str) -> Kill:
        if not self._only and self._random.random() < _AT_MOMENTS:
            return Kill("moment", seconds=self._random.uniform(0.0, 6.0))
        if agent == "claude" and self._rehearsals:
            return Kill("place", self._rehearsals.pop())
        place = next(self._others, "")
        return Kill("place", place, self._random.randint(1, min(_FREQUENT.get(place, 1), 2)))


_AT_MOMENTS = 0.3
"""Share of a runner's kills."""


def _of_claude(name: str) -> bool:
    return any(part in name for part in _AGENT)
