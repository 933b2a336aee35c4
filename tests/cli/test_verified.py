"""`verify` leaves what it found in the home."""

from __future__ import annotations

from controller.store import verified
from tests.support.glovebox import Glovebox
from tests.support.story import tell


def test_the_command_leaves_what_it_found(glovebox: Glovebox) -> None:
    story = tell(glovebox.home)
    story.journal.close()
    assert glovebox("verify").status == 0
    first = verified.read(glovebox.home)
    assert first is not None and (first.problems, first.lines) == (0, story.state.seq + 1)
    (glovebox.home / "runs" / "000001" / "train.py").unlink()
    assert glovebox("verify").status == 4
    second = verified.read(glovebox.home)
    assert second is not None and second.problems > 0 and "000001" in second.first
