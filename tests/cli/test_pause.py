"""`pause`, `continue` and `health`, from another process than the one at work."""

from __future__ import annotations

from controller.core.events import Paused
from controller.observers.heartbeat import Heartbeat
from controller.store.journal import Journal
from controller.store.lock import HomeLock
from controller.store.pause import read
from controller.system.clock import SystemClock
from tests.support.fakes import HandClock
from tests.support.glovebox import Glovebox, begin


def test_a_pause_is_asked_for_shown_and_ended(glovebox: Glovebox) -> None:
    glovebox("pause").refused(2, "No effort was started")
    begin(glovebox.home)
    assert "No controller is at work" in glovebox("pause", "--reason", "new \x1b[31mdisk").out
    wish = read(glovebox.home)
    assert wish.paused and wish.reason == "new disk" and "@" in wish.by
    assert glovebox("status", "--json").json()["pause_asked_for"] is True
    journal = Journal(glovebox.home, SystemClock())
    journal.append(Paused(why="person", by=wish.by, reason=wish.reason))
    journal.close()
    assert f"paused by {wish.by} since" in glovebox("status").out
    assert glovebox("continue").status == 0
    assert not read(glovebox.home).paused


def test_health_tells_work_from_silence(glovebox: Glovebox) -> None:
    glovebox("health").refused(3, "No controller")
    with HomeLock(glovebox.home):
        said = glovebox("health")
        assert (said.status, said.out) == (0, "at work\n")  # `prepare`, say
        life = Heartbeat(glovebox.home, SystemClock(), scoring_seconds=0, asking_seconds=0)
        life.show("experiment 7: scoring")
        said = glovebox("health")
        assert (said.status, said.out) == (0, "experiment 7: scoring\n")
        begin(glovebox.home)
        assert "at work" in (told := glovebox("status").out) and "experiment 7: scoring." in told
        assert glovebox("status", "--json").json()["doing"] == "experiment 7: scoring"
        long_ago = Heartbeat(glovebox.home, HandClock(), scoring_seconds=0, asking_seconds=0)
        long_ago.show("experiment 7: training", seconds=-400.0)
        glovebox("health").refused(3, "overdue", "experiment 7: training")
        assert "overdue" in glovebox("status").out


def test_who_is_gone_has_left_word(glovebox: Glovebox) -> None:
    begin(glovebox.home)
    life = Heartbeat(glovebox.home, SystemClock(), scoring_seconds=0, asking_seconds=0)
    life.show("experiment 7: training")
    glovebox("health").refused(3, "No controller", "last heartbeat", "experiment 7: training")
    glovebox("run", "--tag", "other").refused(2, "belongs to the effort t")
    glovebox("health").refused(3, "No controller", "the last one ended: The home", "belongs to the effort t")
