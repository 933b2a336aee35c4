"""Ways to run the sandbox's PID 1: natively in a PID namespace, and in a container of the real image."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bench import bench, make_bench

__all__ = ["bench", "make_bench"]

PROJECT = Path(__file__).resolve().parents[2]
ENTRYPOINT = PROJECT / "sandbox_image" / "entrypoint.py"
IMAGE = "glovebox-sandbox:latest"
LABEL = "glovebox.test=image"

# The same posture as the controller's, as far as the command line can say it.
SEALED = [
    "--network=none",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=256",
    "--memory=2g",
    "--tmpfs=/tmp:exec,mode=1777,size=512m",
    "--tmpfs=/work:uid=10001,size=64m",
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def pid_namespace() -> list[str]:
    """The command line that makes what follows PID 1; what it kills is not this machine's."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        prefix[1:1] = ["--user", "--map-root-user"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no PID namespace (neither root nor user namespaces)")
    return prefix


@pytest.fixture
def pid1(pid_namespace: list[str]) -> list[str]:
    """Command line of the entrypoint as PID 1; verb and arguments follow."""
    return [*pid_namespace, sys.executable, "-I", "-S", str(ENTRYPOINT)]


@pytest.fixture(scope="session")
def image() -> str:
    """The sandbox image, built by `make image`."""
    if (
        subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode
        != 0
    ):
        pytest.skip(f"no container engine or no {IMAGE}: run `make image`")
    return IMAGE


@pytest.fixture
def container(image: str) -> Iterator[Run]:
    """Runs the image sealed: `container("exec", "--limit", "5", "--", ...)`; leaves nothing behind."""
    name = f"glovebox-test-{uuid.uuid4().hex[:12]}"

    def run(*arguments: str, options: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        command = ["docker", "run", "--rm", "--name", name, "--label", LABEL, *SEALED, *(options or [])]
        return subprocess.run(
            [*command, image, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    yield run
    subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
