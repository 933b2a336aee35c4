"""Which agent a setting names, and whether it can work here."""

from __future__ import annotations

from pathlib import Path

from controller.agents.replay import Replay
from controller.core.errors import UserError
from controller.ports import Agent
from controller.settings import Settings
from controller.system.clock import SystemClock

REPLAY = "replay:"


def agent_name(config: Settings) -> str:
    """`claude`, `tuner` or `replay:DIR`. Raises UserError with one sentence for anything else."""
    name = config.agent
    if name == "auto":
        name = "tuner" if config.api_key() is None else "claude"
    if name == "claude" and config.api_key() is None:
        raise UserError(
            "--agent claude needs an API key in ANTHROPIC_API_KEY or in the file that anthropic_api_key_file "
            "names; without one, use the built-in tuner: --agent tuner."
        )
    require_known(name)
    return name


def require_known(name: str) -> None:
    """Raises UserError if no agent has that name, here or elsewhere."""
    if name not in ("auto", "claude", "tuner") and not (name.startswith(REPLAY) and len(name) > len(REPLAY)):
        raise UserError(f"There is no agent {name!r}; choose claude, tuner or replay:DIR.")


def why(config: Settings) -> str:
    """The reason for what `auto` means here, in words."""
    return "no API key is set" if config.api_key() is None else "an API key is set"


def make_agent(config: Settings) -> Agent:
    """Raises UserError if the agent cannot be had."""
    name = agent_name(config)
    if name.startswith(REPLAY):
        return Replay(Path(name.removeprefix(REPLAY)))
    if name == "claude" and (key := config.api_key()) is not None:
        from controller.agents.llm.conversation import Claude  # the SDK takes a second to import

        return Claude(config.claude, key, SystemClock())
    return _tuner(config)


def hire(config: Settings, name: str) -> list[Agent]:
    """The agent that a person names during an effort, and its understudy if it has one. Raises UserError."""
    config = config.model_copy(update={"agent": name})
    understudy = make_understudy(config)
    return [make_agent(config), *([understudy] if understudy else [])]


def make_understudy(config: Settings) -> Agent | None:
    """Who proposes while the agent is away, if anybody may."""
    if config.absence.understudy_after_seconds is None or agent_name(config) != "claude":
        return None
    return _tuner(config)


def _tuner(config: Settings) -> Agent:
    from controller.agents.tuner import (
        Tuner,  # brings optuna along, half of the time a command takes to start
    )

    return Tuner(seed=config.seed)
