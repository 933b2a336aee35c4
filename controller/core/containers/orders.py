"""Every request that a runner accepts. Pure.

Only the runner has access to the engine's socket. A caller names the container or volume of an experiment
that it wants to start, watch or end. It cannot name an image, a path, an environment variable, a flag or a
limit, because there is no field for one. The runner describes the container from its own settings
(`templates`) and refuses the request if the caller expects a different one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from controller.core.hardware.slots import MOST_SLOTS
from controller.core.program.policy import MAX_BYTES
from controller.core.untrusted import clean_line
from controller.core.values import Draw


class Item(StrEnum):
    """The containers and volumes of an attempt, by their names within it."""

    HOLDER = "holder"
    TRAINER = "trainer"
    WORKER = "worker"
    WORKER_2 = "worker-2"
    JUDGE = "judge"
    REHEARSAL = "rehearsal"
    TELEMETRY = "telemetry"
    WORKSPACE = "workspace"
    REQUESTS = "requests"
    REPLIES = "replies"
    REQUESTS_2 = "requests-2"
    REPLIES_2 = "replies-2"


VOLUMES = frozenset({Item.WORKSPACE, Item.REQUESTS, Item.REPLIES, Item.REQUESTS_2, Item.REPLIES_2})
SEEDED = frozenset({Item.TRAINER, Item.WORKER, Item.WORKER_2, Item.JUDGE})
TRAINS = frozenset({Item.TRAINER, Item.REHEARSAL})
"""Items whose request carries the text of a train.py. The workers use that of their trainer."""

_NUMBER = "0|[1-9][0-9]{0,8}"
_ITEMS = "|".join([*Item, "prepare", "caches"])

Experiment = Annotated[str, Field(pattern=f"^({_NUMBER}|try|rehearsal|slot)$")]
Label = Annotated[str, Field(pattern=f"^({_NUMBER}|try|rehearsal|slot|prepare|doctor)$")]
"""Values of the label that says which experiment a container or volume belongs to."""
Name = Annotated[
    str,
    Field(
        pattern=f"^glovebox-[0-9a-f]{{8}}-({_NUMBER}|try|rehearsal|slot|prepare|doctor)-[1-9][0-9]{{0,5}}-({_ITEMS})$"
    ),
]
"""Name of a container or volume, in any home."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Order(_Message):
    """One container or volume of one attempt at one experiment."""

    experiment: Experiment
    attempt: Annotated[int, Field(ge=1, le=999_999)]
    item: Item
    slot: Annotated[int, Field(ge=0, lt=MOST_SLOTS)] = 0
    """Whose GPU and CPUs it gets."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """With the judge: that of its probes. With trainer and workers: that of the run. Nobody else has one."""
    draw: Draw | None = None
    """Which fresh rows the judge draws; None: the scoring does not belong to an effort."""


class Start(_Message):
    """Create and start a container. The text of its train.py follows in `text_bytes` bytes."""

    verb: Literal["start"] = "start"
    order: Order
    digest: Digest
    """Digest of the container that the caller expects."""
    text_bytes: Annotated[int, Field(ge=0, le=MAX_BYTES)] = 0


class CreateVolume(_Message):
    verb: Literal["create-volume"] = "create-volume"
    order: Order
    digest: Digest


class Follow(_Message):
    """Stream a container's output until it ends."""

    verb: Literal["follow"] = "follow"
    name: Name
    since: FiniteFloat | None = None
    """Unix seconds; earlier output is not sent again."""


class Wait(_Message):
    """Wait for a container's end, and kill it at the deadline."""

    verb: Literal["wait"] = "wait"
    name: Name
    deadline: FiniteFloat | None
    """On CLOCK_MONOTONIC, which all containers of a machine share; None: it ends by itself."""


class Ask(_Message):
    verb: Literal["running-since", "alive", "begin", "kill"]
    name: Name


class Output(_Message):
    verb: Literal["output"] = "output"
    name: Name
    limit: Annotated[int, Field(ge=1, le=1024**2)]


class Remove(_Message):
    verb: Literal["remove"] = "remove"
    containers: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    volumes: Annotated[tuple[Name, ...], Field(max_length=64)] = ()


class Leftovers(_Message):
    verb: Literal["leftovers"] = "leftovers"
    keep: Annotated[tuple[Label, ...], Field(max_length=64)] = ()


class Usage(_Message):
    """CPU time of these containers, or of all of the home's."""

    verb: Literal["usage"] = "usage"
    names: Annotated[tuple[Name, ...], Field(max_length=64)] = ()


class Describe(_Message):
    """`describe`: engine, image and runtime. `devices`: where experiments run. `ping`: whether the runner
    answers.
    """

    verb: Literal["describe", "devices", "ping"]


Request = Annotated[
    Start | CreateVolume | Follow | Wait | Ask | Output | Remove | Leftovers | Usage | Describe,
    Field(discriminator="verb"),
]

VERBS: tuple[str, ...] = tuple(
    verb for kind in get_args(get_args(Request)[0]) for verb in get_args(kind.model_fields["verb"].annotation)
)
"""Every verb of a request."""

REQUEST_BYTES = 16 * 1024
"""No valid request is longer."""

_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


def parse(raw: bytes) -> Request:
    """Parse a request. Raises ValueError with one sentence that is safe to print."""
    try:
        return _REQUEST.validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(clean_line(f"not a valid request: {where}: {first['msg']}")) from None


def names(request: Request) -> tuple[str, ...]:
    """The containers and volumes that a request names."""
    match request:
        case Follow() | Wait() | Ask() | Output():
            return (request.name,)
        case Remove():
            return request.containers + request.volumes
        case Usage():
            return request.names
        case _:
            return ()
