"""A .env beside the project serves make, compose and the command at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller import settings


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
