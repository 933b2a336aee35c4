"""Names that a terminal would obey come out of the command as text (A2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.glovebox import Glovebox
from tests.support.hostile import unseen
from tests.support.story import tell

NAME = "home [/] [red]\x1b[31m\u202e\x1b]52;c;aGk=\x07"


@pytest.mark.parametrize("arguments", [["status"], ["doctor"], ["verify"], ["try", "no \x1b[2J such"]])
def test_a_name_is_shown_and_not_obeyed(glovebox: Glovebox, tmp_path: Path, arguments: list[str]) -> None:
    command = replace(glovebox, home=tmp_path / NAME)
    tell(command.home)
    said = command(*arguments, GLOVEBOX_CLAUDE__MODEL="a\x1b[31mmodel")
    assert "Traceback" not in said.err
    assert "home [/] [red]" in said.out + said.err or arguments[0] in ("verify", "try"), said
    assert unseen(said.out + said.err) == set()
