"""`glovebox prepare`: run the harness's one-time data preparation in a container of the sandbox image."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from controller import data, machine
from controller.core.containers import PREPARE_CORPUS, PREPARE_HOME, preparer
from controller.core.engine_info import owner_inside
from controller.core.model import InfrastructureError, UserError
from controller.core.place import Place
from controller.device import resolve_device
from controller.harness_files import HarnessFiles
from controller.seccomp import sealed
from controller.settings import PROJECT, Settings

NAMED_CORPORA = ("stdlib", "climbmix")
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


def prepare(config: Settings, request: Request, stop: threading.Event) -> None:
    """Make home/data, or find that it is there.

    Raises UserError, NotReady, InfrastructureError, Interrupted.
    """
    if config.runner is not None:
        raise UserError(
            "A runner prepares no data; that is for whoever owns this machine: run `make prepare` there."
        )
    corpus = _corpus_folder(request.corpus)
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
        Place(config.home.resolve(), "prepare"),
        arguments=_arguments(request, scale, corpus),
        limit_seconds=LIMIT_SECONDS,
        owner=owner_inside(engine["users"], home.st_uid, home.st_gid),
        harness=harness.folder,
        corpus=corpus,
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
    if end.exit_code == 2:
        where = f" ({PREPARE_CORPUS} is {corpus})" if corpus else ""
        raise UserError(f"The data was not prepared; the line above says why{where}.")
    if end.exit_code != 0:
        reason = "ran out of memory" if end.oom_killed else f"ended with status {end.exit_code}"
        raise InfrastructureError(
            f"The preparation of the data {reason}; running it again resumes or starts clean."
        )
    data.read(config.home)


def _fitting(config: Settings) -> str:
    """The size for the memory of the GPU, or for the CPU."""
    gpu = resolve_device(config).gpu
    return data.size_for(gpu.total_bytes if gpu else None)


def _corpus_folder(corpus: str) -> Path | None:
    if corpus in NAMED_CORPORA:
        return None
    folder = Path(corpus).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(
            f"There is no corpus {corpus!r}: choose stdlib, climbmix or a folder of parquet, jsonl or txt."
        )
    return folder


def _arguments(request: Request, scale: str, corpus: Path | None) -> tuple[str, ...]:
    options = {
        "--out": f"{PREPARE_HOME}/data",
        "--downloads": f"{PREPARE_HOME}/downloads",
        "--corpus": PREPARE_CORPUS if corpus else request.corpus,
        "--scale": scale,
        "--shards": request.shards,
        "--workers": request.workers,
    }
    return tuple(word for key, value in options.items() if value is not None for word in (key, str(value)))


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
