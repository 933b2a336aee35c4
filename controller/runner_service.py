"""`glovebox runner`: the process that alone holds the engine's socket, put together out of settings."""

from __future__ import annotations

import threading

from controller import data, machine
from controller.core.model import UserError
from controller.core.templates import Files, Templates
from controller.device import resolve_device
from controller.files import remove_partial
from controller.harness_files import HarnessFiles
from controller.runner.server import Runner
from controller.runner.workshop import Workshop
from controller.settings import PROJECT, Settings


def serve(config: Settings, stop: threading.Event) -> None:
    """Take orders for the containers of the home until `stop` is set.

    Raises UserError, NotReady, InfrastructureError.
    """
    if config.runner is None:
        raise UserError("Where is the runner to listen? Set GLOVEBOX_RUNNER to a path for its socket.")
    ours = config.model_copy(update={"runner": None})  # we are the ones who ask the engine
    machine.sandbox_of(ours).describe()
    device = resolve_device(ours)
    home = config.home.resolve()
    folder = home / machine.RUNNER_FOLDER
    remove_partial([folder / "harness"])
    harness = HarnessFiles.materialise(PROJECT / "harness", folder)
    templates = Templates(
        containers=device.sandbox,
        home=home,
        files=Files(harness.folder, data.folder(home), folder / "train"),
        judging=config.judge,
        budget_seconds=config.budget.wall_seconds,
        rehearsal_seconds=config.rehearsal.seconds,
    )
    Runner(machine.sandbox_of(ours, device), Workshop(templates), device.told()).serve(config.runner, stop)
