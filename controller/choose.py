"""Which agent a setting names, and whether it can work here."""

from __future__ import annotations

from pathlib import Path

from controller.agents.replay import Replay
from controller.core.model import UserError
from controller.ports import Agent
from controller.settings import Settings

REPLAY = "replay:"


def agent_name(config: Settings) -> str:
    """`tuner` or `replay:DIR`. Raises UserError with one sentence for anything else."""
    name = config.agent
    if name == "auto":
        return "tuner"
    if name == "claude":
        if config.anthropic_api_key is None:
            raise UserError(
                "--agent claude needs an API key in ANTHROPIC_API_KEY; "
                "without one, use the built-in tuner: --agent tuner."
            )
        raise UserError("This version has no claude agent yet; use the built-in tuner: --agent tuner.")
    if name == "tuner" or (name.startswith(REPLAY) and len(name) > len(REPLAY)):
        return name
    raise UserError(f"There is no agent {name!r}; choose claude, tuner or replay:DIR.")


def make_agent(config: Settings) -> Agent:
    """Raises UserError if the agent cannot be had."""
    name = agent_name(config)
    if name.startswith(REPLAY):
        return Replay(Path(name.removeprefix(REPLAY)))
    from controller.agents.tuner import (
        Tuner,
    )  # brings optuna along, half of the time a command takes to start

    return Tuner(seed=config.seed)
