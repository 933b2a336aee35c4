"""A server of a home, in a thread of this process."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from controller.store.journal import GENESIS, NAME, encode_line
from controller.system.clock import SystemClock
from controller.web.follower import Follower
from controller.web.now import Pulse
from controller.web.serve import Server, address, listen
from controller.web.server import Site
from controller.web.token import Token
from tests.support.hostile import effort

SECRET = "a-token-that-nobody-guesses-0123456789"
SIGNED_IN = {"Cookie": f"{Token(SECRET).cookie}={Token(SECRET).session}"}
AT_WORK = Pulse(True, 0.0, "A controller is at work.")
PAGE = {"Accept": "text/html"}


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Served:
    """A home that is served."""

    home: Path
    url: str
    follower: Follower

    def get(
        self, path: str, headers: Mapping[str, str] = PAGE, method: str = "GET", body: str = ""
    ) -> Answer:
        """One request on a connection of its own; header names are in lower case in the answer."""
        where = urlsplit(self.url)
        assert where.hostname is not None
        with contextlib.closing(http.client.HTTPConnection(where.hostname, where.port, timeout=20)) as asking:
            asking.request(method, path, body or None, dict(headers))
            answer = asking.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read())

    def caught_up(self, head: str) -> None:
        """Wait until the journal is known up to the line with this hash."""

        def is_known() -> bool:
            with self.follower.standing() as standing:
                return standing.complete and standing.state.head == head

        until(is_known)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not happen")
        time.sleep(0.01)


@contextlib.contextmanager
def served(home: Path, *, loopback: bool = True) -> Iterator[Served]:
    """Serve on a free port of loopback, if need be as if it were none; the token is SECRET."""
    stop = threading.Event()
    with listen("127.0.0.1", 0) as listening, Follower(home) as follower:
        app = Site(follower, SystemClock(), lambda: AT_WORK, Token(SECRET), loopback, stop.is_set).app()
        thread = threading.Thread(target=Server(app, stop).run, args=(listening,))
        thread.start()
        try:
            yield Served(home, address(listening), follower)
        finally:
            stop.set()
            thread.join()


def write_hostile(home: Path, text: str) -> str:
    """Replace a home by one in which every text is `text`, run.log included; its journal's head."""
    home.mkdir(parents=True, exist_ok=True)
    head, lines = GENESIS, []
    records, state = effort(text)
    for record in records:
        line = encode_line(record.data, record.seq, record.time, head)
        start = line.rindex(b',"hash":"') + 9
        head = line[start : start + 64].decode()
        lines.append(line + b"\n")
    for experiment in state.experiments:
        folder = home / "runs" / f"{experiment.number:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.log").write_text(f"{text}\n{text}", "utf-8", "surrogatepass")
    (home / "new").write_bytes(b"".join(lines))
    (home / "new").replace(home / NAME)
    return head
