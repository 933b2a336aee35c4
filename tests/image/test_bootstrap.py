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
    text = lock.read_text(encoding="utf-8")
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


INDEX = "https://somebody:secret@index.example/cu126"
CUDA_LOCK = PROJECT / "sandbox_image" / "requirements-cuda.lock"

DOCKER = """#!/bin/sh
# Knows every image, but not what it was made from; keeps what a build is given.
case "$*" in
    *buildx*)
        printf '%s\\n' "$@" >"$KEEP/arguments"
        for argument in "$@"; do
            case $argument in
                lock=*) cp "${argument#lock=}/requirements.lock" "$KEEP" ;;
                id=pip_environment,src=*) cp "${argument#*src=}" "$KEEP/pip_environment" ;;
            esac
        done ;;
esac
"""


def build(tmp_path: Path, **environment: str) -> tuple[str, str, str]:
    """Arguments, lock file and pip's environment with which image.sh calls the builder."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    command = ["bash", str(BOOTSTRAP / "image.sh")]
    ours = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": "/nonexistent", "KEEP": str(tmp_path)}
    subprocess.run(
        command,
        env={**ours, "GLOVEBOX_BASE_IMAGE": "bookworm-of-ours", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return (
        (tmp_path / "arguments").read_text(),
        (tmp_path / "requirements.lock").read_text(),
        (tmp_path / "pip_environment").read_text(),
    )


def packages(lock: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))


def label(arguments: str) -> str:
    return arguments.split("glovebox.inputs=")[1].split("\n", maxsplit=1)[0]


def test_the_image_is_built_from_the_lock_of_its_variant(tmp_path: Path) -> None:
    arguments, lock, environment = build(tmp_path, GLOVEBOX_VARIANT="cuda")
    assert lock == CUDA_LOCK.read_text() and "glovebox-sandbox:cuda" in arguments
    assert "GLOVEBOX_TORCH_INDEX" not in environment


def test_a_lock_of_ones_own_takes_its_place(tmp_path: Path) -> None:
    own = tmp_path / "own.lock"
    own.write_text("torch==2.9.1 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    arguments, lock, _ = build(tmp_path, GLOVEBOX_VARIANT="cuda", GLOVEBOX_LOCK=str(own))
    assert lock == own.read_text()
    theirs, _, _ = build(tmp_path, GLOVEBOX_VARIANT="cuda")
    assert label(arguments) != label(theirs)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        build(tmp_path, GLOVEBOX_LOCK="/nonexistent.lock")
    assert caught.value.returncode == NOT_READY
    assert "there is no lock file /nonexistent.lock" in caught.value.stderr


def test_torch_from_another_index_comes_without_hashes_and_the_rest_with_them(tmp_path: Path) -> None:
    arguments, lock, environment = build(tmp_path, GLOVEBOX_TORCH_INDEX=INDEX)
    gone = packages(CUDA_LOCK.read_text()) - packages(lock)
    assert {"torch", "triton", "nvidia-cublas", "cuda-toolkit"} <= gone
    assert {name for name in gone if not name.startswith(("nvidia-", "cuda-"))} == {"torch", "triton"}
    assert {"numpy", "safetensors", "filelock", "sympy"} <= packages(lock) and "--hash=sha256:" in lock
    assert "export GLOVEBOX_TORCH=torch==2.13.0\n" in environment and INDEX in environment
    assert "somebody" not in arguments + lock  # an address may hold a password
    other, _, _ = build(tmp_path, GLOVEBOX_TORCH_INDEX=INDEX.replace("cu126", "cu128"))
    assert label(other) != label(arguments)


def test_the_version_of_torch_is_the_same_for_every_cuda(tmp_path: Path) -> None:
    lock = tmp_path / "own.lock"
    lock.write_text("numpy==2.0\ntorch==2.13.0+cpu \\\n    --hash=sha256:00\n")
    assert shell(f"torch_requirement {lock}") == "torch==2.13.0"
