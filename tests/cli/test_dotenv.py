"""A .env beside the project serves make, compose and the command at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controller import settings, variables
from tests.cli.conftest import PROJECT


def test_variables_of_the_make_targets_do_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        "GLOVEBOX_WHEELS=/wheels",
        "OTHER=1",
        "GLOVEBOX_BUDGET__WALL_SECONDS=7",
        "ANTHROPIC_API_KEY=secret",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    config = settings.load()
    assert config.budget.wall_seconds == 7
    assert config.anthropic_api_key is not None
    assert config.anthropic_api_key.get_secret_value() == "secret"
    assert "secret" not in repr(config)


def test_no_variable_of_the_make_targets_is_taken_for_a_setting() -> None:
    scripts = [PROJECT / "Makefile", PROJECT / "compose.yaml", *(PROJECT / "sandbox_image").rglob("*.*")]
    named = {name for path in scripts for name in re.findall(r"GLOVEBOX_[A-Z_]+\b", path.read_text())}
    assert len(named) > 15
    assert variables.objection(sorted(named), settings.Settings.model_fields) is None
