"""What the engine, the image, the data or the disk lack is one sentence, too, and nothing is half done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.glovebox import Glovebox, no_leftovers

pytestmark = pytest.mark.engine


def untouched(home: Path) -> bool:
    return not any((home / name).exists() for name in ("audit.jsonl", "repo", "runs", "results.tsv"))


def test_no_image(on_engine: Glovebox) -> None:
    on_engine("run", GLOVEBOX_SANDBOX__IMAGE="glovebox-not-built:1").refused(3, "image", "make image")
    assert untouched(on_engine.home)


def test_an_unknown_runtime(on_engine: Glovebox) -> None:
    on_engine("run", GLOVEBOX_SANDBOX__RUNTIME="runq").refused(3, "runtime", "sandbox.runtime")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_gpu_is_demanded_of_a_machine_without_one(on_engine: Glovebox) -> None:
    on_engine("run", "--device", "gpu").refused(3, "GPU", "NVIDIA container toolkit", "--device cpu")
    said = on_engine("run", "--device", "gpu", GLOVEBOX_SANDBOX__GPU_ACCESS="runtime")
    said.refused(
        3, "change the setting sandbox."
    )  # of the runtime, or of the access if there is one by that name
    assert untouched(on_engine.home) and no_leftovers(on_engine.home)


def test_no_data(on_engine: Glovebox) -> None:
    on_engine("run", "--device", "cpu").refused(3, "no prepared data", f"prepare --home {on_engine.home}")
    assert untouched(on_engine.home)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest.update(scale="gpu"), ["scale gpu", "scale cpu", "--device"]),
        (lambda manifest: manifest.update(version=2), ["version 2", "needs 1"]),
        (lambda manifest: manifest.update(fingerprint="0"), ["judge", "other data"]),
        (lambda manifest: manifest.pop("scale"), ["manifest", "not one of ours"]),
        (
            lambda manifest: manifest["files"].update({"train/99999.bin": {"bytes": 1}}),
            ["99999.bin", "missing"],
        ),
    ],
    ids=["scale", "version", "fingerprint", "incomplete", "file"],
)
def test_data_that_do_not_fit(
    on_engine: Glovebox, with_data: Callable[[Path], None], change: Change, words: list[str]
) -> None:
    with_data(on_engine.home)
    path = on_engine.home / "data" / "public" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.unlink()  # it is a link to the data every test shares
    path.write_text(json.dumps(manifest))
    on_engine("run", "--device", "cpu").refused(2, *words)
    assert untouched(on_engine.home)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{"])
def test_a_manifest_of_garbage(on_engine: Glovebox, content: bytes) -> None:
    public = on_engine.home / "data" / "public"
    public.mkdir(parents=True)
    (public / "manifest.json").write_bytes(content)
    on_engine("run", "--device", "cpu").refused(2, "manifest")


def test_less_disk_than_a_run_needs(on_engine: Glovebox, with_data: Callable[[Path], None]) -> None:
    with_data(on_engine.home)
    said = on_engine("run", "--device", "cpu", GLOVEBOX_MIN_FREE_BYTES=str(10**18))
    said.refused(3, "free disk", "min_free_bytes")
    assert untouched(on_engine.home)


def test_doctor_on_a_machine_that_is_fit(on_engine: Glovebox, with_data: Callable[[Path], None]) -> None:
    with_data(on_engine.home)
    checks = on_engine("doctor", "--device", "cpu", "--json").json()
    assert {check["check"] for check in checks} == {
        "engine",
        "caches",
        "device",
        "home",
        "data",
        "agent",
        "key",
        "disk",
        "notify",
    }
    assert all(check["ok"] for check in checks), checks
    assert on_engine("doctor", "--device", "cpu").out.count("ok  ") == 9


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_doctor_says_why_it_is_the_cpu(on_engine: Glovebox) -> None:
    [check] = [check for check in json.loads(on_engine("doctor", "--json").out) if check["check"] == "device"]
    assert check["ok"] and check["detail"].startswith("cpu; no GPU: The engine cannot give a GPU"), check


@pytest.mark.parametrize(
    ("settings", "says", "why"),
    [
        ({}, "emptied before", ""),
        ({"GLOVEBOX_SANDBOX__EMPTY_CACHES": "false"}, "shared: ", "sandbox.empty_caches is off"),
        ({"GLOVEBOX_SLOTS": '[{"cpus": "0"}, {"cpus": "1"}]'}, "shared: ", "on 2 slots at once"),
    ],
)
def test_doctor_says_whether_the_kernels_caches_are_emptied(
    on_engine: Glovebox, settings: dict[str, Any], says: str, why: str
) -> None:
    said = on_engine("doctor", "--json", **settings).out
    [check] = [check for check in json.loads(said) if check["check"] == "caches"]
    assert check["ok"] and check["detail"].startswith(says) and why in check["detail"], check


def test_a_corpus_with_too_little_text(on_engine: Glovebox) -> None:
    (on_engine.folder / "input.txt").write_text("one\n--\ntwo")
    said = on_engine("prepare", "--corpus", "input.txt", "--separator", "--", "--scale", "cpu")
    said.refused(2, "not prepared", "the line above", f"/corpus/input.txt is {on_engine.folder}/input.txt")
    assert "prepare: the corpus has too little text" in said.out
    assert not (on_engine.home / "data").exists() and no_leftovers(on_engine.home)


def test_too_little_memory_for_a_corpus(on_engine: Glovebox) -> None:
    (on_engine.folder / "input.txt").write_text("text")
    little = json.dumps({"prepare_memory": 60_000_000})
    said = on_engine("prepare", "--corpus", "input.txt", "--scale", "cpu", GLOVEBOX_SANDBOX=little)
    said.refused(2, "ran out of its 0.1 GiB", "--workers", "sandbox.prepare_memory")
    assert no_leftovers(on_engine.home)


def test_preparing_twice_and_preparing_something_else(prepared: Path, on_engine: Glovebox) -> None:
    again = Glovebox(prepared, prepared.parent)
    manifest = prepared / "data" / "public" / "manifest.json"
    before = manifest.stat()
    assert again("prepare", "--corpus", "corpus", "--scale", "cpu").status == 0
    again("prepare", "--scale", "gpu").refused(2, "not prepared")
    after = manifest.stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
