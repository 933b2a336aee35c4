"""Whether this machine is ready: each check is one question with an answer a person can act on."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controller.app import agent as choose
from controller.app import device as hardware
from controller.app import machine
from controller.app.device import Device, resolve_devices
from controller.core.errors import GloveboxError, UserError
from controller.core.untrusted import clean_line
from controller.sandbox.engine import connection as engine
from controller.sandbox.engine.caches import EMPTIED
from controller.settings import Settings
from controller.store import data
from controller.store.lock import home_in_use

_USERS = {
    "mapped": "user ids of containers are mapped",
    "rootless": "the engine is rootless",
    "shared": "user ids of containers are those of the host (docs/sandbox.md says how to map them)",
}


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return {"check": self.name, "ok": self.ok, "detail": self.detail}

    def as_line(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name:<8} {clean_line(self.detail, 2000)}"


def examine(config: Settings) -> list[Check]:
    """Run every check; a failed one does not stop the others."""
    devices = functools.cache(lambda: resolve_devices(config))
    questions: dict[str, Callable[[Settings], str]] = {
        "engine": _engine,
        "caches": lambda config: _caches(config, devices),
        "device": lambda _: hardware.sentence(devices()),
        "home": _home,
        "data": lambda config: _data(config, devices),
        "agent": _agent,
        "key": _key,
        "notify": _notify,
        "disk": machine.require_disk,
    }
    return [_ask(name, question, config) for name, question in questions.items()]


def _ask(name: str, question: Callable[[Settings], str], config: Settings) -> Check:
    try:
        return Check(name, True, question(config))
    except GloveboxError as error:
        return Check(name, False, str(error))


def _engine(config: Settings) -> str:
    description = machine.sandbox_of(config).describe()
    through = f"through the runner at {config.runner}" if config.runner else f"at {engine.address()}"
    return (
        f"{description['engine']} {through}, image {description['image'][:19]}, "
        f"runtime {description['runtime']}, {description['confinement']}, {_USERS[description['users']]}"
    )


def _caches(config: Settings, devices: Callable[[], list[Device]]) -> str:
    description = machine.sandbox_of(config, devices() if config.slots else ()).describe()
    if description["isolation"] == EMPTIED:
        return "emptied before an experiment's code starts"
    return (
        f"shared: what a worker saw may be of use to a later run (docs/decisions/channels.md); "
        f"{description['obstacle']}"
    )


def _home(config: Settings) -> str:
    existing = machine.existing(config.home)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} cannot be written to; choose another --home or fix its permissions.")
    used = " (a controller is at work in it)" if home_in_use(config.home) else ""
    return f"{config.home}{used}"


def _data(config: Settings, devices: Callable[[], list[Device]]) -> str:
    info = data.read(config.home)
    data.require_scale(info, devices()[0].scale, config.home)
    return f"size {info.size}, context {info.max_seq_len}, vocabulary {info.vocab_size}"


def _agent(config: Settings) -> str:
    agent = choose.make_agent(config)  # also finds out whether its model has a price
    model = f", {config.claude.model} at {config.claude.base_url}" if agent.name == "claude" else ""
    return f"{config.agent} → {agent.name}{model}"


def _notify(config: Settings) -> str:
    """Whether a webhook answers shows only with the first notice; a test request would be one."""
    command = config.notify.command
    if command is not None and shutil.which(shlex.split(command)[0]) is None:
        raise UserError(f"There is no program {shlex.split(command)[0]}, which notify.command names.")
    ways = [name for name in ("command", "webhook") if getattr(config.notify, name) is not None]
    return f"by {' and '.join(ways)} on {', '.join(config.notify.on)}" if ways else "nobody is told"


def _key(config: Settings) -> str:
    """Where the key comes from. Whether the API accepts it shows with the first request."""
    key, file = config.api_key(), config.anthropic_api_key_file
    if key is None:
        if config.agent == "claude":
            raise UserError("None, and the agent claude needs one: set ANTHROPIC_API_KEY.")
        return "none; only the agent claude needs one"
    if config.anthropic_api_key is not None or file is None:
        return "from ANTHROPIC_API_KEY"
    if file.stat().st_mode & 0o077:
        raise UserError(f"The key file {file} can be read by others; run: chmod 600 {file}.")
    return f"from {file}"
