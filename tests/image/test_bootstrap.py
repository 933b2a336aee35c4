"""The set-up scripts: what they choose, what they say when stuck, and the lock files they install."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import LABEL, PROJECT

BOOTSTRAP = PROJECT / "sandbox_image" / "bootstrap"
LOCKS = [
    PROJECT / "requirements.lock",
    PROJECT / "requirements-dev.lock",
    PROJECT / "sandbox_image" / "requirements-cpu.lock",
    PROJECT / "sandbox_image" / "requirements-cuda.lock",
]
NOT_READY = 3


def shell(script: str, **environment: str) -> str:
    """Runs a line of bash with the functions of the bootstrap scripts, where no engine answers."""
    lines = f"set -euo pipefail; cd {BOOTSTRAP}; . ./lib.sh; . ./packages.sh; {script}"
    result = subprocess.run(
        ["bash", "-c", lines],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "DOCKER_HOST": "unix:///nonexistent",
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a machine with a GPU always takes the CUDA lock")
@pytest.mark.parametrize(
    ("wheel", "variant"),
    [
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_{}.whl", "cpu"),
        ("torch-2.13.0+cpu-cp39-cp39-x_{}.whl", "cuda"),
    ],
)
def test_the_small_lock_is_taken_where_its_torch_can_be_had(tmp_path: Path, wheel: str, variant: str) -> None:
    (tmp_path / wheel.format(os.uname().machine)).touch()
    assert shell("variant cp311", GLOVEBOX_WHEELS=str(tmp_path)) == variant


def test_the_choice_of_lock_can_be_made_for_it(tmp_path: Path) -> None:
    assert shell("variant cp311", GLOVEBOX_WHEELS=str(tmp_path), GLOVEBOX_VARIANT="cpu") == "cpu"


def test_wheels_may_come_from_pips_own_setting(tmp_path: Path) -> None:
    assert shell("wheels_folder", PIP_FIND_LINKS=f"/nonexistent {tmp_path}") == str(tmp_path.resolve())


def test_a_private_ca_is_preferred(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificate")
    assert shell("ca_bundle", GLOVEBOX_CA_BUNDLE=str(bundle)) == str(bundle.resolve())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_the_locks_agree_where_they_overlap() -> None:
    pins: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version, marker in re.findall(
            r"^([\w.-]+)==([^ ;]+)(.*?) ?\\?$", lock.read_text(), re.MULTILINE
        ):
            pins.setdefault(name + marker.replace("\\", "").strip(), set()).add(version.removesuffix("+cpu"))
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("engine.sh", "no complete container engine (docker, buildx, compose); run this once as root"),
        ("env.sh dev", "git is missing; run: sudo apt-get install git"),
        ("service.sh dance", "usage: service.sh"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(image: str, script: str, sentence: str) -> None:
    command = ["docker", "run", "--rm", "--label", LABEL, "--network=none", f"--volume={PROJECT}:/project:ro"]
    command += ["--entrypoint", "bash", image, "-c", f"/project/sandbox_image/bootstrap/{script}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == NOT_READY, result.stderr
    assert result.stderr.startswith("glovebox: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1
