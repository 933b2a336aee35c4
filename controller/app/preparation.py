"""`glovebox prepare`: run the harness's one-time data preparation in a container of the sandbox image."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from controller.app import corpus as data_corpus
from controller.app import machine
from controller.app.corpus import CorpusMounts
from controller.app.device import resolve_devices
from controller.core.containers.config import GIB
from controller.core.containers.engine_info import owner_inside
from controller.core.containers.names import ContainerNames
from controller.core.containers.service_builders import PREPARE_HOME, PREPARE_LINKS, preparer
from controller.core.errors import InfrastructureError, UserError
from controller.ports import Exit
from controller.sandbox.inputs import HarnessFiles, sealed
from controller.settings import PROJECT, Settings
from controller.store import data

_FAULT = 1
"""Exit status of a Python that ended with a traceback."""
LIMIT_SECONDS = 24 * 3600.0
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_CA_VARIABLES = ("GLOVEBOX_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    corpus: str
    scale: str | None
    """A name of `data.Size`; None: what fits the machine."""
    shards: int | None
    workers: int | None
    separator: str | None = None
    """Of a txt; None: what the harness has by default."""


def prepare(config: Settings, request: Request, stop: threading.Event) -> None:
    """Make home/data, or find that it is there.

    Raises UserError, NotReady, InfrastructureError, Interrupted.
    """
    if config.runner is not None:
        raise UserError("A runner does not prepare data: run `make prepare` on the machine that it runs on.")
    corpus = data_corpus.find(request.corpus)
    if request.scale not in (None, *get_args(data.Size)):
        raise UserError(f"There is no scale {request.scale!r}; choose cpu, small, medium or gpu.")
    scale = request.scale or _fitting(config)
    sandbox = machine.sandbox_of(config)
    engine = sandbox.describe()
    harness = HarnessFiles.materialise(PROJECT / "harness", config.home)
    home = config.home.stat()
    network = request.corpus == "climbmix"
    spec = preparer(
        sealed(config.sandbox),
        ContainerNames(config.home.resolve(), "prepare"),
        arguments=_arguments(request, scale, corpus),
        limit_seconds=LIMIT_SECONDS,
        owner=owner_inside(engine["users"], home.st_uid, home.st_gid),
        harness=harness.folder,
        corpus=corpus.mounts if corpus else (),
        network=network,
        ca_bundle=_ca_bundle() if network else None,
        proxies={name: os.environ[name] for name in _PROXY_VARIABLES if name in os.environ},
    )
    sandbox.remove(containers=[spec.name])
    try:
        started = sandbox.start(spec)
        following = sandbox.follow(spec.name, _print)
        end = sandbox.wait(spec.name, deadline=started + LIMIT_SECONDS, stop=stop)
        following.join(timeout=10)
    finally:
        sandbox.remove(containers=[spec.name])
    _require_success(end, corpus, spec.limits.memory)
    data.read(config.home)


def _require_success(end: Exit, corpus: CorpusMounts | None, memory: int) -> None:
    """Raises UserError for what only another request can change, InfrastructureError for the rest."""
    if end.exit_code == 2:
        where = f" ({corpus.argument} is {corpus.source})" if corpus else ""
        raise UserError(f"The data was not prepared; the line above says why{where}.")
    if end.oom_killed and end.exit_code != 0:
        raise UserError(
            f"The preparation of the data ran out of its {memory / GIB:.1f} GiB of memory: run it with fewer "
            "--workers, or set sandbox.prepare_memory higher."
        )
    if end.exit_code == _FAULT:
        raise InfrastructureError("The preparation of the data failed by a fault of ours; it is shown above.")
    if end.killed:
        raise UserError(
            f"The data was not prepared within {LIMIT_SECONDS / 3600:.0f} hours: give it less text."
        )
    if end.exit_code != 0:
        raise InfrastructureError(
            f"The preparation of the data was ended from outside (status {end.exit_code}); running it again "
            "starts clean, with what was downloaded."
        )


def _fitting(config: Settings) -> str:
    """The size for the memory of the GPU, or for the CPU."""
    gpu = resolve_devices(config)[0].gpu
    return data.size_for(gpu.total_bytes if gpu else None)


def _arguments(request: Request, scale: str, corpus: CorpusMounts | None) -> tuple[str, ...]:
    options = {
        "--out": f"{PREPARE_HOME}/data",
        "--downloads": f"{PREPARE_HOME}/downloads",
        "--corpus": corpus.argument if corpus else request.corpus,
        "--links": PREPARE_LINKS if corpus else None,
        "--scale": scale,
        "--shards": request.shards,
        "--separator": request.separator,
        "--workers": request.workers,
    }
    # With "=", so that a value may begin with a dash.
    return tuple(f"{key}={value}" for key, value in options.items() if value is not None)


def _ca_bundle() -> Path | None:
    """A private CA, as a user behind a company's proxy has it in the environment."""
    for name in _CA_VARIABLES:
        path = Path(os.environ.get(name, ""))
        if path.is_file():
            return path.resolve()
    return None


def _print(block: bytes) -> None:
    """Our own words, but a corpus may bring names of files and reasons of its own."""
    text = block.decode("utf-8", "replace")
    sys.stdout.write(
        "".join(character for character in text if character in "\n\r" or character.isprintable())
    )
    sys.stdout.flush()
