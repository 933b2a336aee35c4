"""Kills the controller of one effort again and again, and keeps count of what that did."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from controller.core.containers.domains import Domain
from tests.chaos.circumstances import at_place
from tests.chaos.effort import Effort, Failed, until_overdue
from tests.chaos.plan import WATCHED, Kill

_POLL_SECONDS = 0.02
_WATCH_SECONDS = 120.0


class Tally:
    """Counts over all efforts. Safe to use from any thread."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.at_place: Counter[str] = Counter()
        self.at_random: Counter[str] = Counter()
        self.restarts = self.experiments = self.voided = self.adopted = self.efforts = 0
        self._lock = threading.Lock()

    def killed(self, name: str, effort: Effort, kill: Kill, reached: bool, wrong: Sequence[str]) -> None:
        """One life is over."""
        story = effort.story()
        running = effort.watchman.running(Domain.TRAINER)
        with self._lock:
            if reached and kill.kind in ("place", "twice"):
                self.at_place[kill.place] += 1
            else:
                self.at_random[f"{story.phase}"] += 1
            self.adopted += bool(running)
            self.violations += [f"{name}, {kill}: {one}" for one in wrong]
            kills = self.at_place.total() + self.at_random.total()
            where = f"experiment {len(story.told) - 1:>3} {story.phase:<20}"
            missed = "" if reached else "  (not reached; killed where it was)"
            print(
                f"{kills:>4}  {name:<10} {where} {kill}{missed}",
                *(f"      VIOLATION: {one}" for one in wrong),
                sep="\n",
                flush=True,
            )

    def note(self, name: str, wrong: Sequence[str]) -> None:
        """What was found in between."""
        with self._lock:
            self.violations += [f"{name}: {one}" for one in wrong]
            print(*(f"      VIOLATION: {one}" for one in wrong), sep="\n", end="\n" if wrong else "")

    def ended(self, name: str, effort: Effort, wrong: Sequence[str]) -> None:
        """One effort came to its end."""
        story = effort.story()
        with self._lock:
            self.efforts += 1
            self.restarts += effort.lives - 1 + (effort.runner.lives - 1 if effort.runner else 0)
            self.experiments += len(story.told)
            self.voided += story.voided
            self.violations += [f"{name}, at the end: {one}" for one in wrong]
            print(f"      {name:<10} at rest after {len(story.told)} experiments, {effort.lives} starts")
            print(*(f"      VIOLATION: {one}" for one in wrong), sep="\n", flush=True)

    def table(self) -> Iterator[str]:
        yield f"\n{'killed at':34} times"
        yield from (f"{place:34} {times:>5}" for place, times in sorted(self.at_place.items()))
        yield f"\n{'killed at random, in the journal last':34} times"
        yield from (f"{phase:34} {times:>5}" for phase, times in sorted(self.at_random.items()))
        yield ""
        yield from (f"VIOLATION: {one}" for one in self.violations)

    def summary(self) -> str:
        places, moments = self.at_place.total(), self.at_random.total()
        return (
            f"{places + moments} kills: {places} at {len(self.at_place)} places, {moments} at random; "
            f"{self.restarts} restarts in {self.efforts} efforts; {self.experiments} experiments, "
            f"{self.adopted} runs adopted, {self.voided} attempts void; {len(self.violations)} violations"
        )


def torment(
    effort: Effort,
    kills: Sequence[Kill],
    tally: Tally,
    name: str,
    *,
    more: int = 1,
    stop: threading.Event | None = None,
) -> None:
    """One life for each kill, or until `stop`; then the open experiment and `more` further ones, in peace."""
    try:
        if effort.runner is not None:
            effort.runner.revive()
        for kill in kills:
            if stop is not None and stop.is_set():
                break
            reached, wrong = _carry_out(effort, kill)
            tally.killed(name, effort, kill, reached, [*wrong, *effort.wrong()])
        wrong = rest(effort, more)
    except Failed as failed:
        wrong = [str(failed)]
    tally.ended(name, effort, wrong)


def rest(effort: Effort, more: int) -> list[str]:
    """The open experiment and `more` further ones, in peace; what is wrong then. Raises Failed."""
    effort.finish(more)
    once, wrong = effort.picture(), effort.wrong_at_rest()
    effort.finish()
    if effort.picture() != once:
        wrong.append("the same command at its limit changed something")
    return wrong


def _carry_out(effort: Effort, kill: Kill) -> tuple[bool, list[str]]:
    """(whether it was killed where it should be, what went wrong). Raises Failed."""
    match kill.kind:
        case "place":
            return at_place(effort, kill), []
        case "moment":
            effort.die(None, kill.seconds)
            return True, []
        case "twice":
            reached = effort.die(kill.place)
            once = effort.picture()
            effort.die(kill.place)
            return reached, [] if effort.picture() == once else ["a second recovery changed something"]
        case _:
            reached = _in_the_middle(effort, WATCHED[kill.kind], kill.seconds)
            if kill.kind == "late":
                until_overdue()
            return reached, []


def _in_the_middle(effort: Effort, domain: Domain, seconds: float) -> bool:
    """Killed so many seconds after a container of the domain was seen to run."""
    with effort.start() as process:
        end = time.monotonic() + _WATCH_SECONDS
        while not (seen := bool(effort.watchman.running(domain))) and time.monotonic() < end:
            if process.poll() is not None:
                raise Failed(f"the controller ended with status {process.returncode}")
            time.sleep(_POLL_SECONDS)
        time.sleep(seconds)
        process.kill()
    return seen
