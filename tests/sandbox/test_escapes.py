"""Rows C6 and C7: what tests/sandbox/escapes.py tries from inside a real T, and that all of it is denied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.sandbox.inputs import SECCOMP_PROFILE
from tests.support.bench import Bench, require_runtime

pytestmark = pytest.mark.engine

ATTEMPTS = Path(__file__).with_name("escapes.py")
PLACEHOLDER = "ALLOWED: list[str] = []\n"

#: Under gVisor these reach gVisor's own kernel only, which has its own devices, namespaces and IPC.
GVISORS_OWN = {
    "a device but the harmless ones",
    "any system call that is not on the list",
    "kernel: NUMA policy",
    "kernel: System V shared memory",
    "kernel: message queues",
    "page cache: ask what others read",
    "page cache: drop it, in 64 bits",
    "page cache: drop what others read",
    "page cache: page out, or collapse, what others map",
    "process: a higher priority",
    "process: be spared by the OOM killer",
    "process: clone3",
    "process: environment of PID 1",
    "socket kernel events",
    "socket ping",
    "user: no filter",
}
GVISORS_KINDS = ("a new namespace:", "clone into a new namespace:", "mknod /dev/mem")

Attempted = dict[str, dict[str, Any]]


def attempted(bench: Bench) -> Attempted:
    """Every attempt by name: its row, whether it was denied, and how."""
    rules = json.loads(SECCOMP_PROFILE.read_text())["syscalls"]
    allowed = sorted({name for rule in rules if "ALLOW" in rule["action"] for name in rule["names"]})
    public = bench.home / "data" / "public"
    if not any(public.iterdir()):
        (public / "tokens.bin").write_bytes(b"x")
    text = ATTEMPTS.read_text()
    assert PLACEHOLDER in text
    bench.run(text.replace(PLACEHOLDER, f"ALLOWED: list[str] = {allowed}\n"), budget=60.0)
    lines = [json.loads(line) for line in bench.log_text.splitlines() if line.startswith("{")]
    return {line["attempt"]: line for line in lines}


def went_through(found: Attempted) -> dict[str, str]:
    return {name: line["how"] for name, line in found.items() if not line["denied"]}


def test_nothing_gets_out(bench: Bench) -> None:
    found = attempted(bench)
    print(*(f"{line['row']}  {name:<50} {line['how']}" for name, line in found.items()), sep="\n")
    assert went_through(found) == {}
    rows = [line["row"] for line in found.values()]
    assert (rows.count("C6"), rows.count("C7")) == (40, 114), bench.log_text


def test_it_is_the_profile_that_denies(make_bench: Callable[..., Bench]) -> None:
    """The same attempts without it: what needs no capability goes through, so the test above can fail."""
    bench = make_bench()
    bench.config = bench.config.model_copy(update={"seccomp": "unconfined"})
    gained = went_through(attempted(bench)).keys()
    assert gained >= {
        "kernel: System V shared memory",
        "page cache: drop it, in 64 bits",
        "page cache: drop what others read",
        "socket netfilter",
        "trace: be traced",
    }


def test_nothing_gets_out_of_gvisor(make_bench: Callable[..., Bench]) -> None:
    require_runtime("runsc")
    gained = went_through(attempted(make_bench(runtime="runsc")))
    assert {name for name in gained if not name.startswith(GVISORS_KINDS)} <= GVISORS_OWN
