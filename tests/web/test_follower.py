"""What is shown of a home is what its journal says, whatever happens to the journal meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.core.state import ResearchState, fold
from controller.store.journal import NAME, read_records
from controller.store.snapshot import EVERY
from controller.views.report import _both_scores
from controller.views.stairs import climb
from controller.web.follower import Follower, Standing
from controller.web.live import LiveLog, last_lines
from tests.web.fabricate import Effort, fabricate, reports, write_log


def known(follower: Follower) -> Standing:
    with follower.standing() as standing:
        return standing


@pytest.fixture
def effort(tmp_path: Path) -> Effort:
    return fabricate(tmp_path / "home", 8)


def same(one: ResearchState, other: ResearchState) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in vars(other) if name != "experiments")


def test_it_stands_where_the_journal_says(effort: Effort) -> None:
    follower = Follower(effort.home)
    follower.look()
    standing, records = known(follower), list(read_records(effort.home))
    state, stairs = climb(records)
    assert standing.complete and standing.failure is None
    assert same(standing.state, state) and standing.stairs == stairs
    assert [row.number for row in standing.rows] == [*range(9)]
    assert standing.both == _both_scores(state) != []
    assert [row.kind for row in standing.rows][:4] == ["keep", "discard", "keep", "crash"]
    assert standing.rows[8].kind == "open" and standing.rows[8].phase == "training"


def test_it_follows_line_by_line_and_says_so(effort: Effort) -> None:
    follower = Follower(effort.home)
    follower.look()
    before = follower.version
    follower.look()
    assert follower.version == before
    effort.finish()
    effort.writer.write()
    follower.look()
    assert follower.version > before and same(known(follower).state, fold(read_records(effort.home)))
    assert known(follower).rows[8].kind == "replicate"


def test_finished_experiments_do_not_stay_in_memory(tmp_path: Path) -> None:
    follower = Follower(fabricate(tmp_path / "home", 3 * EVERY).home)
    follower.look()
    standing = known(follower)
    assert len(standing.rows) == 3 * EVERY + 1
    assert len(standing.state.experiments._kept[1]) <= 2 * EVERY
    assert standing.state.experiments[1].number == 1


def test_a_line_that_is_half_written_is_waited_for(effort: Effort) -> None:
    journal = effort.home / NAME
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-40])
    follower = Follower(effort.home)
    follower.look()
    seen, version = known(follower).state.seq, follower.version
    assert seen == effort.writer.seq - 1 and known(follower).complete
    follower.look()
    assert follower.version == version
    with journal.open("ab") as file:
        file.write(whole[-40:])
    follower.look()
    assert known(follower).state.seq == effort.writer.seq and follower.version > version


def test_a_home_without_an_effort_fills_by_itself(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "home")
    follower.look()
    assert known(follower).complete and known(follower).rows == []
    made = fabricate(tmp_path / "home", 2)
    follower.look()
    assert len(known(follower).rows) == 3 and known(follower).state.seq == made.writer.seq


def test_a_home_that_is_replaced_is_read_anew(effort: Effort, tmp_path: Path) -> None:
    follower = Follower(effort.home)
    follower.look()
    shutil.rmtree(effort.home)
    follower.look()
    assert known(follower).rows == []
    fabricate(tmp_path / "other", 2)
    shutil.move(tmp_path / "other", effort.home)
    follower.look()
    assert len(known(follower).rows) == 3 and known(follower).failure is None


@pytest.mark.parametrize("experiments", [2, 12])
def test_another_journal_in_the_same_file_is_read_anew(
    effort: Effort, tmp_path: Path, experiments: int
) -> None:
    follower = Follower(effort.home)
    follower.look()
    other = fabricate(tmp_path / "other", experiments)
    (effort.home / NAME).write_bytes((other.home / NAME).read_bytes())
    for _ in range(2):
        follower.look()
    assert len(known(follower).rows) == experiments + 1 and known(follower).failure is None


def test_a_broken_chain_is_one_sentence_and_what_stands_before_it(effort: Effort) -> None:
    journal = effort.home / NAME
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    follower = Follower(effort.home)
    for _ in range(3):
        follower.look()
    standing = known(follower)
    assert standing.failure is not None and "audit.jsonl line" in standing.failure
    assert 0 < len(standing.rows) < 9
    version = follower.version
    follower.look()
    assert follower.version == version


def test_a_journal_that_cannot_be_read_for_a_while(effort: Effort) -> None:
    follower, journal = Follower(effort.home), effort.home / NAME
    content = journal.read_bytes()
    journal.unlink()
    journal.mkdir()
    follower.look()
    assert "cannot be read" in (known(follower).failure or "")
    journal.rmdir()
    journal.write_bytes(content)
    follower.look()
    assert known(follower).failure is None and len(known(follower).rows) == 9


def test_the_loss_of_a_run_is_known_while_it_trains(effort: Effort) -> None:
    follower = Follower(effort.home)
    follower.look()
    first = known(follower).live[8][1].curve
    assert first.step == 294 and len(first.losses) == 21
    before = follower.printed
    follower.look()
    assert follower.printed == before
    with (effort.home / "runs" / "000008" / "run.log").open("a", encoding="utf-8") as log:
        log.writelines(reports(200.0, begin=100.0))
    follower.look()
    assert follower.printed == before + 1
    assert known(follower).live[8][1].curve.step == 594
    effort.finish()
    effort.writer.write()
    follower.look()
    assert known(follower).live == {}


def test_a_log_that_is_cut_or_replaced_is_read_on(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 50.0)
    path = tmp_path / "runs" / "000000" / "run.log"
    live = LiveLog(path, 300.0)
    assert live.follow() and not live.follow()
    path.write_text("cut\n", encoding="utf-8")
    assert not live.follow() and live.curve.step == 144
    with path.open("a", encoding="utf-8") as log:
        log.write("report: step=900 seconds=150.0 loss=2.9\n")
    assert live.follow() and live.curve.step == 900
    path.unlink()
    assert not live.follow()
    path.write_text("report: step=5 seconds=160.0 loss=2.9\n", encoding="utf-8")
    other = tmp_path / "other"
    other.write_text("report: step=6 seconds=160.0 loss=2.9\n" * 9, encoding="utf-8")
    other.replace(path)
    live.follow()
    assert live.curve.step in (6, 900)


def test_the_last_lines_are_safe_and_few(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none") == []
    path = tmp_path / "run.log"
    path.write_bytes(b"x\n" * 100_000 + b"\x1b[31mred\x1b[0m \xff\rlast")
    assert last_lines(path)[-2:] == ["red �", "last"] and len(last_lines(path)) == 16
