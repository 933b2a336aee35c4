"""The pages and their addresses."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from controller.core.errors import GloveboxError, UserError, VerificationFailed
from controller.ports import Clock
from controller.web import assets, compare, experiment, forms, metrics, now, progress, record, steering, table
from controller.web.controls import CONTROLS
from controller.web.follower import Follower, Standing
from controller.web.now import Pulse
from controller.web.rows import Query
from controller.web.security import SIGN_IN, Guard, is_admitted, is_open
from controller.web.stream import Stream
from controller.web.templating import environment
from controller.web.token import Token

_MOST_COMPARED = 6
_LONGEST_FORM = 4096
_MONTH_SECONDS = 30 * 86400
_WITH_ORIGIN = "same-origin"
"""With `no-referrer` browsers would hide where a form comes from, which is checked."""


@dataclass
class Site:
    """All that the pages are made from."""

    follower: Follower
    clock: Clock
    pulse: Callable[[], Pulse]
    token: Token
    loopback: bool
    """Bound to it, where nobody has to show the token to read."""
    ended: Callable[[], bool]

    def __post_init__(self) -> None:
        self.stream = Stream(self.follower, secrets.token_hex(4), self.ended)

    def app(self) -> ASGIApp:
        routes = [
            Route("/", self.now),
            Route("/progress", self.progress),
            Route("/experiments", self.experiments),
            Route("/experiments/{number:int}", self.experiment),
            Route("/experiments/{number:int}/texts/{name}", self.text),
            Route("/compare", self.compare),
            Route("/record", self.record),
            Route("/data/progress.json", self.points),
            Route("/data/losses.json", self.losses),
            Route("/events", self.events),
            Route("/metrics", self.metrics),
            Route("/health", self.health),
            Route(SIGN_IN, self.sign_in, methods=["GET"]),
            Route(SIGN_IN, self.signed_in, methods=["POST"]),
            Route("/static/{name}", assets.serve),
            Route("/steer/{verb}", self.control, methods=["GET"]),
            Route("/steer/{verb}", self.steer, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {kind: self.refused for kind in (GloveboxError, HTTPException, OSError)}
        return Guard(
            Starlette(routes=routes, exception_handlers=handlers), self.token, loopback=self.loopback
        )

    # --- pages ----------------------------------------------------------------------------------------------

    def now(self, request: Request) -> Response:
        pulse, time = self.pulse(), self.clock.now()
        return self._page(request, "now", lambda standing: now.context(standing, pulse, time))

    def progress(self, request: Request) -> Response:
        return self._page(request, "progress", progress.context)

    def experiments(self, request: Request) -> Response:
        query = Query.read(request.query_params)
        return self._page(request, "experiments", lambda standing: table.context(standing, query))

    def experiment(self, request: Request) -> Response:
        number = request.path_params["number"]
        return self._page(request, "experiment", lambda standing: experiment.context(standing, number))

    def text(self, request: Request) -> Response:
        number, name = request.path_params["number"], request.path_params["name"]
        return self._page(request, "text", lambda standing: experiment.named_text(standing, number, name))

    def compare(self, request: Request) -> Response:
        numbers = _numbers(request)
        return self._page(request, "compare", lambda standing: compare.context(standing, numbers))

    def record(self, request: Request) -> Response:
        time = self.clock.now()
        return self._page(request, "record", lambda standing: record.context(standing, time))

    def _page(
        self, request: Request, name: str, context: Callable[[Standing], dict[str, Any]], status: int = 200
    ) -> Response:
        with self.follower.standing() as standing:
            version = self.stream.version()
            told = self._frame(request, standing) | context(standing)
        html = environment().get_template(f"{name}.html").render(told, page=name, version=version)
        return HTMLResponse(html, status)

    def _frame(self, request: Request, standing: Standing) -> dict[str, Any]:
        """What every page shows."""
        state = standing.state
        return {
            "asked": CONTROLS.get(request.query_params.get("asked", "")),
            "steers": is_admitted(request.headers, self.token),
            "tag": state.tag,
            "home": str(standing.home),
            "begun": state.seq >= 0,
            "complete": standing.complete,
            "failure": standing.failure,
            "experiments": len(standing.rows),
            "pulse": self.pulse(),
        }

    # --- data -----------------------------------------------------------------------------------------------

    def points(self, request: Request) -> Response:
        with self.follower.standing() as standing:
            told = progress.points(standing) | {"both": progress.both_scores(standing)["rows"]}
        return JSONResponse(told)

    def losses(self, request: Request) -> Response:
        numbers = _numbers(request)
        with self.follower.standing() as standing:
            return JSONResponse(experiment.loss_points(standing, numbers))

    async def events(self, request: Request) -> Response:
        return self.stream.open()

    def metrics(self, request: Request) -> Response:
        pulse = self.pulse()
        with self.follower.standing() as standing:
            content = metrics.render(standing, pulse, self.stream.listeners)
        return Response(content, headers={"content-type": metrics.CONTENT_TYPE})

    async def health(self, request: Request) -> Response:
        return PlainTextResponse("at work\n")

    # --- steering -------------------------------------------------------------------------------------------

    def control(self, request: Request) -> Response:
        """The form. On loopback its address can be read without the token, and it would be of no use."""
        verb = _verb(request)
        if not is_admitted(request.headers, self.token):
            return RedirectResponse(SIGN_IN, 303)
        return self._control(request, verb, request.query_params)

    async def steer(self, request: Request) -> Response:
        """Only those who have shown the token get here: Guard."""
        verb = _verb(request)
        fields = await forms.read(request, CONTROLS[verb].most)
        return await run_in_threadpool(self._steer, request, verb, fields)

    def _steer(self, request: Request, verb: str, fields: Mapping[str, str]) -> Response:
        client = request.client.host if request.client else "from nowhere"
        try:
            steering.ask(self.follower, verb, fields, client)
        except UserError as error:  # nobody has to type it again
            return self._control(request, verb, fields, str(error), 400)
        return RedirectResponse(steering.place(verb, fields), 303)

    def _control(
        self, request: Request, verb: str, fields: Mapping[str, str], wrong: str = "", status: int = 200
    ) -> Response:
        def told(standing: Standing) -> dict[str, Any]:
            return steering.form(standing, verb, fields, wrong)

        response = self._page(request, "control", told, status)
        response.headers["referrer-policy"] = _WITH_ORIGIN
        return response

    # --- the token ------------------------------------------------------------------------------------------

    def sign_in(self, request: Request) -> Response:
        return self._form()

    async def signed_in(self, request: Request) -> Response:
        fields = await forms.read(request, _LONGEST_FORM)
        if not self.token.is_token(fields.get("token", "").strip()):
            return self._form("This is not the token; the home's file web-token has it.", 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self.token.cookie,
            self.token.session,
            max_age=_MONTH_SECONDS,
            httponly=True,
            samesite="strict",
            # Behind a proxy that adds TLS, only the browser knows that there is some.
            secure=request.headers.get("origin", "").startswith("https://"),
        )
        return response

    def _form(self, wrong: str = "", status: int = 200) -> Response:
        html = environment().get_template("sign-in.html").render(wrong=wrong, page="sign-in")
        return HTMLResponse(html, status, {"referrer-policy": _WITH_ORIGIN})

    # --- errors ---------------------------------------------------------------------------------------------

    def refused(self, request: Request, error: Exception) -> Response:
        status, sentence = _told(error)
        if "text/html" not in request.headers.get("accept", "") or is_open(request.url.path):
            return PlainTextResponse(sentence + "\n", status)
        return self._page(request, "error", lambda _: {"sentence": sentence, "status": status}, status)


def _told(error: Exception) -> tuple[int, str]:
    match error:
        case HTTPException(status_code=404):
            return 404, "There is no such page."
        case HTTPException():
            return error.status_code, f"{error.detail}."
        case experiment.Unknown():
            return 404, str(error)
        case UserError():
            return 400, str(error)
        case VerificationFailed():
            return 500, f"The journal is damaged: {error}."
        case OSError():
            return 503, f"The home cannot be read: {error.strerror or 'its disk failed'}."
        case _:
            return 500, str(error)


def _numbers(request: Request) -> list[int]:
    """The experiments that an address names, each once. Raises UserError."""
    given = dict.fromkeys(request.query_params.getlist("n"))
    if not 1 <= len(given) <= _MOST_COMPARED:
        raise UserError(f"Name one to {_MOST_COMPARED} experiments, `?n=3&n=7`.")
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in given):
        raise UserError("n is the number of an experiment.")
    return [int(number) for number in given]


def _verb(request: Request) -> str:
    """Raises HTTPException."""
    verb: str = request.path_params["verb"]
    if verb not in CONTROLS:
        raise HTTPException(404)
    return verb
