"""Who may read and steer, and what a browser may do: pure checks, and the middleware that applies them.

Whoever changes anything has to show the token. On loopback, reading needs none: whoever can reach it has an
account on this machine. But so has every web page that a browser on this machine shows. Hence a request must
name a loopback host (or a page of another site could point its own name here: DNS rebinding), and must not
come from a page of another site.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.web.token import Token

SIGN_IN = "/sign-in"
_SAFE = frozenset({"GET", "HEAD"})

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every response, unless it says otherwise itself."""


def is_open(path: str) -> bool:
    """Whether a path can be read without the token: nothing of the home may be in any answer to it."""
    return path in (SIGN_IN, "/health") or path.startswith("/static/")


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(authority: str) -> str:
    """`[::1]:8700` → `::1`; empty for what is no host."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a page of another site sent a request. Following a link from there is allowed.

    `sec-fetch-*` cannot be set by a page. Browsers leave it out where neither TLS nor loopback protects the
    connection; `origin` has to do there.
    """
    site = headers.get("sec-fetch-site")
    if site in ("same-origin", "none"):
        return False
    if site is not None:
        followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return method not in _SAFE or not followed
    origin = headers.get("origin")
    return origin is not None and _authority(origin) != headers.get("host", "").lower()


def _authority(origin: str) -> str:
    """`http://a:1` → `a:1`; empty for an opaque origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def objection(method: str, headers: Mapping[str, str], *, loopback: bool) -> str | None:
    """One sentence that says why a request is refused, whoever sent it; None if it is not."""
    if loopback and not is_loopback(host_of(headers.get("host", ""))):
        return "This server answers to localhost only; open it by that name."
    if is_foreign(method, headers):
        return "This request comes from another site, and is refused."
    return None


def is_admitted(headers: Mapping[str, str], token: Token) -> bool:
    """Whether a request shows the token, or the cookie that was given for it."""
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.is_token(shown.strip()):
        return True
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return False
    cookie = cookies.get(token.cookie)
    return cookie is not None and token.is_session(cookie.value)


class Guard:
    """Refuses what may not be read or changed, and sets the headers of everything. An ASGI middleware."""

    def __init__(self, app: ASGIApp, token: Token, *, loopback: bool) -> None:
        """`loopback`: bound to it, where nobody has to show the token to read."""
        self._app = app
        self._token = token
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if (why := objection(scope["method"], headers, loopback=self._loopback)) is not None:
            return PlainTextResponse(why + "\n", 403)
        reads = scope["method"] in _SAFE
        if (reads and self._loopback) or is_open(path) or is_admitted(headers, self._token):
            return None
        if reads and "text/html" in headers.get("accept", ""):
            return RedirectResponse(SIGN_IN, 303)
        wanted = {"www-authenticate": 'Bearer realm="glovebox"'}
        return PlainTextResponse("The token in the home's file web-token is needed.\n", 401, wanted)
