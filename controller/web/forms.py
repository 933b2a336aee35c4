"""Forms that a page sends, read by hand: a few fields, each once."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

from controller.core.errors import UserError

KIND = "application/x-www-form-urlencoded"
_MOST_FIELDS = 20


async def read(request: Request, most: int) -> dict[str, str]:
    """The fields of a form of at most so many bytes, with the line ends of Python.

    Raises HTTPException: it is no form, or too long; what is too long is not read to its end.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != KIND:
        raise HTTPException(415, f"A form has to be sent as {KIND}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"The form is longer than {most // 1024} KiB")
    return parsed(bytes(body))


def parsed(body: bytes) -> dict[str, str]:
    """Raises HTTPException if it has too many fields."""
    try:
        found = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise HTTPException(400, "The form has too many fields") from None
    return {name: values[0].replace("\r\n", "\n") for name, values in found.items()}


def whole_number(fields: Mapping[str, str], name: str) -> int:
    """Raises UserError."""
    given = fields.get(name, "").strip()
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise UserError(f"Name one {name} by its number.")
    return int(given)
