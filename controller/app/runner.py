"""`glovebox runner`: the process that alone holds the engine's socket, put together out of settings."""

from __future__ import annotations

import threading

from controller.app import machine
from controller.app.device import resolve_devices
from controller.core.containers.builders import Files
from controller.core.containers.templates import Templates
from controller.core.errors import UserError
from controller.files import remove_partial
from controller.sandbox.inputs import HarnessFiles
from controller.sandbox.runner.server import Runner
from controller.sandbox.runner.specs import SpecBuilder
from controller.settings import PROJECT, Settings
from controller.store import data


def serve(config: Settings, stop: threading.Event) -> None:
    """Take orders for the containers of the home until `stop` is set.

    Raises UserError, NotReady, InfrastructureError.
    """
    if config.runner is None:
        raise UserError("Where is the runner to listen? Set GLOVEBOX_RUNNER to a path for its socket.")
    ours = config.model_copy(update={"runner": None})  # we are the ones who ask the engine
    machine.sandbox_of(ours).describe()
    devices = resolve_devices(ours)
    home = config.home.resolve()
    folder = home / machine.RUNNER_FOLDER
    remove_partial([folder / "harness"])
    harness = HarnessFiles.materialise(PROJECT / "harness", folder)
    templates = Templates(
        slots=tuple(device.sandbox for device in devices),
        home=home,
        files=Files(harness.folder, data.folder(home), folder / "train"),
        judging=config.judge,
        budget_seconds=config.budget.wall_seconds,
        rehearsal_seconds=config.rehearsal.seconds,
    )
    told = [device.told() for device in devices]
    Runner(machine.sandbox_of(ours, devices), SpecBuilder(templates), told).serve(config.runner, stop)
