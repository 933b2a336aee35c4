"""A machine that seems to have a GPU: what is told of it, and a run that then finds none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_end_to_end import make_effort, train_py
from tests.sandbox.stand_ins import NVIDIA_SMI, PYTHON
from tests.support.bench import image_with
from tests.support.glovebox import Glovebox, no_leftovers, remove_leftovers

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def image(engine: None) -> Iterator[str]:
    with image_with(nvidia_smi=NVIDIA_SMI, python=PYTHON) as tag:
        yield tag


def pretend_size(data: Path) -> None:
    """Let the data say that they are for a small GPU."""
    size = {"scale": "gpu", "size": "small"}
    public = json.loads((data / "public" / "manifest.json").read_text()) | size
    del public["fingerprint"]
    fingerprint = hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()
    public["fingerprint"] = fingerprint
    judge = json.loads((data / "judge" / "manifest.json").read_text()) | size
    judge["public_fingerprint"] = fingerprint
    for side, manifest in (("public", public), ("judge", judge)):
        path = data / side / "manifest.json"
        path.unlink()  # it is a link to the data every test shares
        path.write_text(json.dumps(manifest))


def test_a_run_without_the_gpu_it_was_meant_for(
    tmp_path: Path, with_data: Callable[[Path], None], image: str
) -> None:
    made, _ = make_effort(tmp_path, with_data, train_py(), [train_py(lr=0.03)])
    pretend_size(made.home / "data")
    settings = {"GLOVEBOX_SANDBOX__IMAGE": image, "GLOVEBOX_SANDBOX__GPU_ACCESS": "runtime"}
    command = Glovebox(made.home, made.folder, {**made.environment, **settings})
    try:
        checks = {check["check"]: check["detail"] for check in command("doctor", "--json").json()}
        assert "CUDA 13.0 in the image, compute capability 8.9, 24.0 of 25.0 GB free" in checks["device"]
        assert "2 GPUs of a kind, GPU 0 is used" in checks["device"]
        assert checks["data"].startswith("size small, ")
        said = command("run", "--budget", "30", "--agent", "replay:ideas", "--experiments", "1")
        assert said.status == 2 and "nothing has a score; the baseline: no-gpu" in said.err, said
        [row] = command("log", "--json").json()
        assert (row["verdict"], row["cause"]) == ("crash", "no-gpu"), row
        ran = command("show", "0", "--json").json()["provenance"]
        assert (ran["scale"], ran["size"], ran["device"]) == ("gpu", "small", "NVIDIA Stand-in")
        assert (ran["driver"], ran["cuda"], ran["capability"]) == ("580.65.06", "13.0", "8.9")
        assert ran["gpu_memory"] == "25.0 GB"
        record = json.loads((command.home / "runs" / "000000" / "experiment.json").read_text())
        assert record["provenance"] == ran
        assert no_leftovers(command.home)
    finally:
        remove_leftovers(command.home)
