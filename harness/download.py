"""Download parquet shards over HTTP: in parallel, with retries, resuming earlier attempts.

A shard is `NAME.part` until its size matches the server's and its parquet footer is readable; then it is
renamed to `NAME`. So a file under its final name is complete, and an interruption loses nothing.
"""

import hashlib
import random
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import requests
from documents import BadInput

ATTEMPTS = 6  # in a row without any new bytes
BACK_OFF_SECONDS = 1.0  # exponential backoff: doubled after each fruitless attempt
TIMEOUT_SECONDS = (10, 60)  # to connect; between two reads
CHUNK_BYTES = 1 << 16  # the most that a broken connection loses


class _Incomplete(Exception):
    """This attempt did not complete the file; a retry may."""


def download_shards(
    url: str, names: list[str], folder: Path, workers: int
) -> dict[str, dict[str, int | str]]:
    """Make `folder`/NAME a complete copy of `url`/NAME for each name; return each one's {"bytes", "sha256"}.

    Raises BadInput if a shard does not exist or cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bar = _Bar(len(names))
    with ThreadPoolExecutor(min(workers, len(names))) as pool:
        futures = [pool.submit(_download, f"{url}/{name}", folder / name, bar) for name in names]
        try:
            facts = [future.result() for future in futures]
        except BaseException:
            bar.cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bar.close()
    return dict(zip(names, facts, strict=True))


def _download(url: str, path: Path, bar: "_Bar") -> dict[str, int | str]:
    if not path.exists():
        _fetch(url, path, bar)
    facts: dict[str, int | str] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    bar.file_done()
    return facts


def _fetch(url: str, path: Path, bar: "_Bar") -> None:
    """Retry until the file is complete; attempts that brought new bytes do not count against the limit."""
    part = path.with_name(path.name + ".part")
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue_file(url, part, bar)
            if not is_parquet(part):
                part.unlink()
                raise _Incomplete("what arrived is not a parquet file")
            part.rename(path)
            return
        except (requests.RequestException, _Incomplete) as error:
            arrived = part.stat().st_size if part.exists() else 0
            fruitless = 0 if arrived > before else fruitless + 1
            if fruitless >= ATTEMPTS:
                raise BadInput(f"cannot download {url} after {ATTEMPTS} attempts: {_reason(error)}") from None
            bar.cancelled.wait(BACK_OFF_SECONDS * 2 ** max(fruitless - 1, 0) * random.uniform(0.5, 1.0))


def _reason(error: Exception) -> str:
    """A short reason for a download error; the messages of requests are many lines long."""
    if isinstance(error, requests.exceptions.SSLError):
        return "the TLS connection failed (REQUESTS_CA_BUNDLE names a file of trusted authorities)"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    return str(error)


def _continue_file(url: str, part: Path, bar: "_Bar") -> None:
    """Request the bytes that `part` lacks and append them; checks the announced size.

    Raises BadInput for permanent errors (404), _Incomplete or RequestException for others.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            total = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
            if total and int(total[1]) == have:
                return  # already complete
            part.unlink()
            raise _Incomplete("the server's file is shorter than what was downloaded")
        if response.status_code in {401, 403, 404, 410}:
            raise BadInput(
                f"cannot download {url}: the server answered {response.status_code} {response.reason}"
            )
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        start = have if resumed else 0
        expected = (
            start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        )
        with part.open("ab" if resumed else "wb") as out:
            for chunk in response.iter_content(CHUNK_BYTES):
                if bar.cancelled.is_set():
                    raise BadInput("the download was cancelled")
                out.write(chunk)
                bar.advance(len(chunk))
    size = part.stat().st_size
    if expected is not None and size < expected:
        raise _Incomplete(f"the connection ended after {size} of {expected} bytes")


def is_parquet(path: Path) -> bool:
    """Whether the file's footer is readable: it comes last, so a truncated file has none."""
    try:
        return bool(pq.read_metadata(path).num_rows)
    except (OSError, ValueError):
        return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Bar:
    """Progress on stderr: in a terminal a bar redrawn in place, elsewhere a line per finished file."""

    def __init__(self, files: int) -> None:
        self.files, self.done, self.bytes = files, 0, 0
        self.started = self.drawn = time.monotonic()
        self.lock = threading.Lock()
        self.cancelled = threading.Event()
        self.terminal = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        with self.lock:
            self.bytes += count
            if self.terminal and time.monotonic() - self.drawn > 0.2:
                self._draw("\r")

    def file_done(self) -> None:
        with self.lock:
            self.done += 1
            self._draw("\r" if self.terminal else "\n")

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)

    def _draw(self, end: str) -> None:
        self.drawn = time.monotonic()
        filled = 30 * self.done // self.files
        megabytes = self.bytes / 1e6
        rate = megabytes / max(self.drawn - self.started, 1e-3)
        bar = f"[{'#' * filled:30}] {self.done}/{self.files} shards, {megabytes:.0f} MB, {rate:.1f} MB/s"
        print(f"download {bar}", end=end, file=sys.stderr, flush=True)
