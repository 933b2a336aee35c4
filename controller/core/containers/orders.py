"""What may be said to a runner, and nothing else. Pure.

The runner alone holds the engine's socket. A caller says which container or volume of which experiment it
wants started, watched or ended; it cannot say an image, a path, an environment, a flag or a limit, because
there is no field for one. The runner makes the container from its own settings (`core.templates`) and refuses
if that is not the one the caller expects.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from controller.core.program.policy import MAX_BYTES
from controller.core.untrusted import clean_line
from controller.core.values import Draw


class Item(StrEnum):
    """The containers and volumes of an attempt, by the names they have within it."""

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
TRAINS = frozenset({Item.TRAINER, Item.REHEARSAL})
"""What comes with the text of a train.py; the workers get the one their trainer came with."""

_NUMBER = "0|[1-9][0-9]{0,8}"
_ITEMS = "|".join([*Item, "prepare", "caches"])

Experiment = Annotated[str, Field(pattern=f"^({_NUMBER}|try|rehearsal|slot)$")]
Label = Annotated[str, Field(pattern=f"^({_NUMBER}|try|rehearsal|slot|prepare|doctor)$")]
"""What can stand in the label that says which experiment something belongs to."""
Name = Annotated[
    str,
    Field(
        pattern=f"^glovebox-[0-9a-f]{{8}}-({_NUMBER}|try|rehearsal|slot|prepare|doctor)-[1-9][0-9]{{0,5}}-({_ITEMS})$"
    ),
]
"""Name of a container or volume of some home."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Order(_Said):
    """One container or volume of one attempt at one experiment."""

    experiment: Experiment
    attempt: Annotated[int, Field(ge=1, le=999_999)]
    item: Item
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Of the judge's probes; the judge has one, nothing else does."""
    draw: Draw | None = None
    """Of the judge's fresh rows; None: its scoring is of no effort."""


class Start(_Said):
    """Create and start a container. The text of its train.py follows in `text_bytes` bytes."""

    verb: Literal["start"] = "start"
    order: Order
    digest: Digest
    """Of the container that the caller expects to get."""
    text_bytes: Annotated[int, Field(ge=0, le=MAX_BYTES)] = 0


class CreateVolume(_Said):
    verb: Literal["create-volume"] = "create-volume"
    order: Order
    digest: Digest


class Follow(_Said):
    """Stream a container's output until it ends."""

    verb: Literal["follow"] = "follow"
    name: Name
    since: FiniteFloat | None = None
    """Unix seconds; what it printed before is known already."""


class Wait(_Said):
    """See a container through to its end, and end it at the deadline."""

    verb: Literal["wait"] = "wait"
    name: Name
    deadline: FiniteFloat | None
    """Of CLOCK_MONOTONIC, which all containers of a machine share; None: it ends by itself."""


class Ask(_Said):
    verb: Literal["running-since", "alive", "begin", "kill"]
    name: Name


class Output(_Said):
    verb: Literal["output"] = "output"
    name: Name
    limit: Annotated[int, Field(ge=1, le=1024**2)]


class Remove(_Said):
    verb: Literal["remove"] = "remove"
    containers: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    volumes: Annotated[tuple[Name, ...], Field(max_length=64)] = ()


class Leftovers(_Said):
    verb: Literal["leftovers"] = "leftovers"
    keep: Annotated[tuple[Label, ...], Field(max_length=64)] = ()


class Describe(_Said):
    """`describe`: engine, image and runtime. `device`: where experiments run. `ping`: is anybody there.
    `usage`: what the home's containers use of the CPUs.
    """

    verb: Literal["describe", "device", "ping", "usage"]


Request = Annotated[
    Start | CreateVolume | Follow | Wait | Ask | Output | Remove | Leftovers | Describe,
    Field(discriminator="verb"),
]

VERBS: tuple[str, ...] = tuple(
    verb for kind in get_args(get_args(Request)[0]) for verb in get_args(kind.model_fields["verb"].annotation)
)
"""All that can be asked for."""

REQUEST_BYTES = 16 * 1024
"""More than any of the above can take."""

_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


def parse(raw: bytes) -> Request:
    """The request that these bytes are. Raises ValueError with one safe sentence if they are none."""
    try:
        return _REQUEST.validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(clean_line(f"no request of ours: {where}: {first['msg']}")) from None


def names(request: Request) -> tuple[str, ...]:
    """The containers and volumes that a request speaks of by name."""
    match request:
        case Follow() | Wait() | Ask() | Output():
            return (request.name,)
        case Remove():
            return request.containers + request.volumes
        case _:
            return ()
