"""Scripts, styles and the icon: a few kilobytes, served from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asset:
    """One file."""

    content: bytes
    kind: str
    digest: str


@cache
def assets() -> dict[str, Asset]:
    """By name. Read once: a request for one must not wait for the disk."""
    found = {}
    for path in FOLDER.iterdir():
        if path.suffix in _KINDS:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[path.name] = Asset(content, f"{_KINDS[path.suffix]}; charset=utf-8", digest)
    return found


def address_of(name: str) -> str:
    """Where one is served; another address once its content is another."""
    return f"/static/{name}?{assets()[name].digest}"


async def serve(request: Request) -> Response:
    """What an address with a digest answers never changes; any other is asked again whether it has."""
    asset = assets().get(request.path_params["name"])
    if asset is None:
        raise HTTPException(404)
    tag = f'"{asset.digest}"'
    forever = request.url.query == asset.digest
    headers = {
        "cache-control": "public, max-age=31536000, immutable" if forever else "no-cache",
        "content-type": asset.kind,
        "etag": tag,
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers)
