"""From an order to a container spec: built from the runner's own settings, with its own copy of train.py.

The runner mounts nothing that its clients could replace. The text of a train.py comes with the order for its
trainer. It is stored in a folder that only the runner writes and stays unchanged until the trainer is
removed: the workers of the attempt mount that same copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import TRAINS, Item, Order
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.templates import Templates
from controller.core.containers.volumes import VolumeSpec
from controller.core.errors import InfrastructureError
from controller.failpoints import reach
from controller.files import make_folder, write_atomic
from controller.store import data

_WORKERS = frozenset({Item.WORKER, Item.WORKER_2})

DIFFERENT = (
    "runner and controller have different settings or versions, so the runner would start something "
    "unexpected; `make up` restarts both, and what a command line would change (--budget, --device) "
    "has to be changed in the settings"
)


@dataclass(frozen=True)
class SpecBuilder:
    """The templates and the folder for copies of train.py."""

    templates: Templates

    @property
    def names(self) -> ContainerNames:
        """Only for what is the same for all of the home: its prefix."""
        return ContainerNames(self.templates.home, "0")

    def name(self, order: Order) -> str:
        """Of the container or volume that is asked for."""
        return ContainerNames(self.templates.home, order.experiment, order.attempt).name(order.item)

    def volume(self, order: Order, digest: str) -> VolumeSpec:
        """Raises ValueError if the order is invalid, or if the spec is not the one the client expects."""
        spec = self.templates.volume(order)
        if spec.digest() != digest:
            raise ValueError(DIFFERENT)
        return spec

    def container(self, order: Order, digest: str, text: bytes) -> ContainerSpec:
        """The container's spec, with its train.py in place.

        Raises ValueError if the order is invalid, or if the spec is not the one the client expects;
        InfrastructureError.
        """
        if (order.item in TRAINS) != bool(text):
            raise ValueError(f"a train.py comes with a trainer and with a rehearsal, not with a {order.item}")
        spec = self.templates.container(order, lambda: data.row_tokens(self.templates.files.data))
        if spec.digest() != digest:
            raise ValueError(DIFFERENT)
        if text:
            self._seal(order, text)
            reach("train-sealed")
        elif order.item in _WORKERS and not self._sealed(order).is_file():
            raise InfrastructureError("The train.py of this attempt is gone.")
        return spec

    def drop_copies(self, containers: Collection[str]) -> None:
        """Remove the copies of train.py that belonged to these removed containers."""
        for name in containers:
            experiment, attempt, item = name.removeprefix(self.names.prefix).split("-", 2)
            if item in TRAINS:
                shutil.rmtree(self._folder / f"{experiment}-{attempt}", ignore_errors=True)
                reach("copies-forgotten")

    def drop_stale_copies(self, containers: Collection[str]) -> None:
        """Remove the copies that belong to none of these containers, the ones that exist."""
        used = {"-".join(name.removeprefix(self.names.prefix).split("-", 2)[:2]) for name in containers}
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in used:
                    shutil.rmtree(folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        if self.templates.files.sealed is None:
            raise AssertionError("a runner has a folder for copies of train.py")
        return self.templates.files.sealed

    def _sealed(self, order: Order) -> Path:
        names = ContainerNames(self.templates.home, order.experiment, order.attempt)
        return self.templates.files.train(names, Path())

    def _seal(self, order: Order, text: bytes) -> None:
        path = self._sealed(order)
        try:
            if path.exists() and path.read_bytes() != text:
                raise ValueError("this attempt was started with another train.py; remove its trainer first")
            make_folder(path.parent)
            for folder in (self._folder, path.parent):
                folder.chmod(0o755)  # regardless of our umask: containers run as other users
            write_atomic(path, text, 0o444)
        except OSError as error:
            raise InfrastructureError(
                f"The runner cannot keep train.py in {path.parent}: {error.strerror}."
            ) from error
