"""Is this machine fit? Each check is one question with an answer a person can act on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controller import assembly, choose, data
from controller.core.model import GloveboxError, UserError
from controller.journal import home_in_use
from controller.settings import Settings


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return {"check": self.name, "ok": self.ok, "detail": self.detail}

    def as_line(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name:<8} {self.detail}"


def examine(config: Settings) -> list[Check]:
    """Ask every question; a failed one does not keep the others from being asked."""
    questions: dict[str, Callable[[Settings], str]] = {
        "engine": _engine,
        "device": _device,
        "home": _home,
        "data": _data,
        "agent": _agent,
        "disk": assembly.require_disk,
    }
    return [_ask(name, question, config) for name, question in questions.items()]


def _ask(name: str, question: Callable[[Settings], str], config: Settings) -> Check:
    try:
        return Check(name, True, question(config))
    except GloveboxError as error:
        return Check(name, False, str(error))


def _engine(config: Settings) -> str:
    description = assembly.sandbox_of(config).describe()
    return f"{description['engine']}, image {description['image'][:19]}, runtime {description['runtime']}"


def _device(config: Settings) -> str:
    return assembly.resolve_device(config).name


def _home(config: Settings) -> str:
    existing = assembly.existing(config.home)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} cannot be written to; choose another --home or mend its permissions.")
    used = " (a controller is at work in it)" if home_in_use(config.home) else ""
    return f"{config.home}{used}"


def _data(config: Settings) -> str:
    info = data.read(config.home)
    data.require_scale(info, assembly.resolve_device(config).scale, config.home)
    return f"scale {info.scale}, context {info.max_seq_len}, vocabulary {info.vocab_size}"


def _agent(config: Settings) -> str:
    return f"{config.agent} → {choose.agent_name(config)}"
