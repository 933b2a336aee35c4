"""The climbmix corpus from a real HTTP server on this machine: retries, resume, truncation, refusal."""

import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import download
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents import BadInput

import prepare

RunPrepare = Callable[..., "subprocess.CompletedProcess[str]"]
NAMES = [f"shard_{index:05d}.parquet" for index in (0, 1, 6540, 6541, 6542)]


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, with a mood for each: how it misbehaves on the first so many requests for it."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.moods: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[tuple[str, int]] = []
        self.ranges_allowed = True
        self.hold = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked[name] += 1
        mood = self.server.moods.get(name, [])
        trouble = mood.pop(0) if mood else ""
        if name not in self.server.files or trouble.isdigit():
            self.send_error(int(trouble or 404))
            return
        content = b"not parquet at all" if trouble == "garbage" else self.server.files[name]
        start = self.range_start(name)
        if start > 0 and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if trouble in {"truncate", "stall"} else body)
        self.wfile.flush()
        if trouble == "stall":
            self.server.hold.wait(60)

    def range_start(self, name: str) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match or not self.server.ranges_allowed:
            return 0
        self.server.ranges.append((name, int(match[1])))
        return int(match[1])


@pytest.fixture(scope="module")
def shards(corpus_folder: Path) -> dict[str, bytes]:
    """Five parquet shards that share out the test corpus, in several row groups."""
    texts = [json.loads(line)["text"] for line in (corpus_folder / "texts.jsonl").read_text().splitlines()]
    files = {}
    for position, name in enumerate(NAMES):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": texts[position :: len(NAMES)]}), buffer, row_group_size=100)
        files[name] = buffer.getvalue()
    return files


@pytest.fixture
def server(shards: dict[str, bytes]) -> Iterator[Server]:
    with Server(dict(shards)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACK_OFF_SECONDS", 0.001)
    monkeypatch.setattr(download, "CHUNK_BYTES", 64)  # the shards here are small


def fetch(server: Server, folder: Path, names: list[str] = NAMES) -> dict[str, dict[str, int | str]]:
    return download.download_shards(server.url, names, folder, workers=3)


def assert_complete(folder: Path, server: Server) -> None:
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == server.files


def test_downloads_in_parallel_and_reports_hashes(server: Server, tmp_path: Path) -> None:
    facts = fetch(server, tmp_path)
    assert_complete(tmp_path, server)
    for name, content in server.files.items():
        assert facts[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert fetch(server, tmp_path) == facts
    assert set(server.asked.values()) == {1}  # nothing is downloaded twice


def test_truncated_responses_are_resumed_where_they_ended(server: Server, tmp_path: Path) -> None:
    name = NAMES[0]
    server.moods[name] = ["truncate", "truncate"]
    fetch(server, tmp_path)
    assert_complete(tmp_path, server)
    half = len(server.files[name]) // 2
    assert server.ranges[0] == (name, half // 64 * 64)
    assert len(server.ranges) == 2


def test_a_server_without_ranges_starts_the_file_again(server: Server, tmp_path: Path) -> None:
    server.ranges_allowed = False
    server.moods[NAMES[0]] = ["truncate"]
    fetch(server, tmp_path)
    assert_complete(tmp_path, server)


def test_passing_errors_are_retried(server: Server, tmp_path: Path) -> None:
    server.moods[NAMES[1]] = ["503", "429", "garbage", "500"]
    fetch(server, tmp_path)
    assert_complete(tmp_path, server)
    assert server.asked[NAMES[1]] == 5


def test_more_interruptions_than_attempts_are_fine_while_bytes_arrive(server: Server, tmp_path: Path) -> None:
    server.moods[NAMES[0]] = ["truncate"] * (download.ATTEMPTS + 3)
    fetch(server, tmp_path, NAMES[:1])
    assert (tmp_path / NAMES[0]).read_bytes() == server.files[NAMES[0]]


def test_a_complete_part_needs_no_second_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}.part").write_bytes(server.files[NAMES[0]])
    fetch(server, tmp_path)
    assert_complete(tmp_path, server)


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}.part").write_bytes(server.files[NAMES[0]] + b"more")
    fetch(server, tmp_path)
    assert_complete(tmp_path, server)


def test_a_missing_shard_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="404"):
        fetch(server, tmp_path, ["shard_00099.parquet"])
    assert server.asked["shard_00099.parquet"] == 1


def test_a_server_out_of_reach_is_reported_after_some_attempts(server: Server, tmp_path: Path) -> None:
    server.moods[NAMES[0]] = ["503"] * 100
    with pytest.raises(BadInput, match=r"after 6 attempts.*503"):
        fetch(server, tmp_path, NAMES[:1])
    assert server.asked[NAMES[0]] == download.ATTEMPTS


def climbmix_command(out: Path, *more: object) -> list[object]:
    return ["--out", out, "--corpus", "climbmix", "--shards", 2, "--scale", "cpu", "--workers", 2, *more]


def test_climbmix_end_to_end(server: Server, tmp_path: Path, run_prepare: RunPrepare) -> None:
    environment = os.environ | {"GLOVEBOX_CLIMBMIX_URL": server.url}
    done = run_prepare(*climbmix_command(tmp_path / "data"), env=environment)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "data" / "public" / "manifest.json").read_bytes())
    assert manifest["corpus"]["inputs"].keys() == set(NAMES)
    for name, facts in manifest["corpus"]["inputs"].items():
        assert facts["sha256"] == hashlib.sha256(server.files[name]).hexdigest()
    rows = {name: pq.read_metadata(io.BytesIO(content)).num_rows for name, content in server.files.items()}
    documents = {split: facts["documents"] for split, facts in manifest["splits"].items()}
    pinned = {"dev": NAMES[2], "holdout": NAMES[3], "validation": NAMES[4]}
    assert documents == {split: rows[name] for split, name in pinned.items()} | {
        "train": rows[NAMES[0]] + rows[NAMES[1]]
    }
    again = run_prepare(*climbmix_command(tmp_path / "data"), env=environment)
    assert (again.returncode, "already prepared" in again.stdout) == (0, True)
    other = run_prepare(*climbmix_command(tmp_path / "data")[:4], "--scale", "cpu", env=environment)
    assert (other.returncode, "another corpus" in other.stderr) == (2, True)


def test_a_killed_download_resumes(server: Server, tmp_path: Path, run_prepare: RunPrepare) -> None:
    server.moods = {name: ["stall"] for name in NAMES[:2]}
    environment = os.environ | {"GLOVEBOX_CLIMBMIX_URL": server.url}
    arguments = climbmix_command(tmp_path / "data", "--downloads", tmp_path / "downloads")
    command = [sys.executable, str(Path(prepare.__file__)), *map(str, arguments)]
    part = tmp_path / "downloads" / "climbmix" / f"{NAMES[0]}.part"
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    server.hold.set()
    arrived = part.stat().st_size
    assert not (tmp_path / "data").exists()
    done = run_prepare(*arguments, env=environment)
    assert done.returncode == 0, done.stderr
    assert (NAMES[0], arrived) in server.ranges


@pytest.mark.parametrize("shards", [0, -1, 6541])
def test_bad_number_of_shards(tmp_path: Path, run_prepare: RunPrepare, shards: int) -> None:
    command = ["--out", tmp_path / "data", "--corpus", "climbmix", "--scale", "cpu", "--shards", shards]
    result = run_prepare(*command)
    assert (result.returncode, "between 1 and 6540" in result.stderr) == (2, True), result.stderr
