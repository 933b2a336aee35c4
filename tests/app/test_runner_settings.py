"""What `make up` tells the runner of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.app import runner_settings
from controller.settings import Settings


@pytest.mark.parametrize("slots", [(), "auto", ({"cpus": "0"}, {"cpus": "1"})])
def test_untouched_settings_are_to_the_letter_those_that_the_runner_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: Any
) -> None:
    """300 is 300.0, but not in the text of a container's environment, and both sides compare those."""
    monkeypatch.chdir(tmp_path)
    ours = Settings(slots=slots)
    for line in runner_settings.lines(ours).splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value.strip("'"))
    theirs = Settings()
    for section in runner_settings.SECTIONS:
        assert repr(getattr(ours, section)) == repr(getattr(theirs, section))
    assert ours.slots == theirs.slots
