"""Parse the judge's output lines. Pure; the judge runs only our code, so an invalid line is our fault."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError

from controller.core.errors import InfrastructureError
from controller.core.untrusted import clean_line
from controller.core.values import Cause, Fresh, Refusal, Score

_WORKER_FAILED = "worker-failed"
"""The judge's cause for a worker that gave up; the worker's exit says why."""


class _Scored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["scored"]
    val_bpb: FiniteFloat
    holdout_bpb: FiniteFloat
    bytes: int = Field(gt=0)
    tokens: int = Field(gt=0)
    holdout_bytes: int = Field(ge=0)
    fresh: Fresh
    seconds: FiniteFloat
    probes: dict[str, JsonValue]


class _Confirmed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["confirmed"]
    holdout_bpb: FiniteFloat
    holdout_bytes: int = Field(ge=0)
    fresh: Fresh
    seconds: FiniteFloat
    probes: dict[str, JsonValue]


class _Refused(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["refused"]
    cause: str
    detail: str


_FIRST: TypeAdapter[_Scored | _Refused] = TypeAdapter(
    Annotated[_Scored | _Refused, Field(discriminator="status")]
)
_SECOND: TypeAdapter[_Confirmed | _Refused] = TypeAdapter(
    Annotated[_Confirmed | _Refused, Field(discriminator="status")]
)

_Answer = TypeVar("_Answer")


def score(line: bytes) -> Score | Refusal | None:
    """What the judge found with the first worker: an unconfirmed score, or None if that worker gave up.

    Raises InfrastructureError.
    """
    answer = _read(_FIRST, line)
    if isinstance(answer, _Refused):
        return _refusal(answer)
    return Score(**answer.model_dump(exclude={"status"}))


def confirmation(line: bytes, scored: Score) -> Score | Refusal | None:
    """What the judge found with the second worker: `scored` confirmed, or None if that worker gave up.

    Raises InfrastructureError.
    """
    answer = _read(_SECOND, line)
    if isinstance(answer, _Refused):
        return _refusal(answer)
    probes = scored.probes | {"confirmation": answer.probes}
    told = dict(answer) | {"probes": probes, "confirmed": True}
    return scored.model_copy(update={name: told[name] for name in told if name != "status"})


def _read(kinds: TypeAdapter[_Answer], line: bytes) -> _Answer:
    try:
        return kinds.validate_json(line)
    except ValidationError as error:
        said = clean_line(line.decode("utf-8", errors="replace"))
        raise InfrastructureError(f"The judge's answer makes no sense: {said}.") from error


def _refusal(answer: _Refused) -> Refusal | None:
    if answer.cause == _WORKER_FAILED:
        return None
    try:
        cause = Cause(answer.cause)
    except ValueError:
        cause = Cause.PROTOCOL
    return Refusal(cause=cause, detail=clean_line(answer.detail))
