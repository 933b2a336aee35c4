"""Where experiments run, asked of the real engine: without a GPU, and with stand-ins for one in the image.

The engine's runtime `nvidia` may be an alias of runc. Then an image with a program called nvidia-smi looks
like a machine with a GPU, and torch in it is what it is: built without CUDA. Torch on a GPU is a stand-in,
too: an image whose `python` prints what the probe would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.app.device import Device, resolve_devices, sentence
from controller.core.errors import NotReady, UserError
from controller.settings import Settings
from tests.sandbox.stand_ins import NVIDIA_SMI, OF_ANOTHER_SIZE, PYTHON
from tests.support.bench import Bench, image_with

pytestmark = pytest.mark.engine

Resolve = Callable[..., Device]


@pytest.fixture(scope="module")
def without_cuda() -> Iterator[str]:
    with image_with(nvidia_smi=NVIDIA_SMI) as tag:
        yield tag


@pytest.fixture(scope="module")
def with_cuda() -> Iterator[str]:
    with image_with(nvidia_smi=NVIDIA_SMI, python=PYTHON) as tag:
        yield tag


@pytest.fixture
def resolve(bench: Bench) -> Resolve:
    """Settings of SandboxConfig can be overridden."""

    def ask(device: str = "auto", **sandbox: object) -> Device:
        [found] = resolve_all(bench, device=device, **sandbox)
        return found

    return ask


def resolve_all(bench: Bench, slots: object = (), device: str = "auto", **sandbox: object) -> list[Device]:
    containers = {"empty_caches": False, **sandbox}
    given = {"home": bench.home, "device": device, "sandbox": containers, "slots": slots}
    return resolve_devices(Settings.model_validate(given))


NO_GPU = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")


@NO_GPU
@pytest.mark.parametrize("access", ["cdi", "device-request", "runtime"])
def test_a_gpu_that_is_not_there(resolve: Resolve, access: str) -> None:
    with pytest.raises(NotReady, match=r"NVIDIA|sandbox\.runtime"):
        resolve("gpu", gpu_access=access)
    found = resolve("auto", gpu_access=access)
    assert (found.scale, found.name, found.sandbox.gpu) == ("cpu", "cpu", ())
    assert found.sentence().startswith("cpu; no GPU: The engine ")
    assert resolve("cpu", gpu_access=access).sentence() == "cpu"


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_gpu_and_an_image_whose_torch_knows_none(resolve: Resolve, without_cuda: str, device: str) -> None:
    """It must not train on the CPU without a word."""
    with pytest.raises(NotReady, match=r"PyTorch was built without CUDA.*NVIDIA Stand-in.*GLOVEBOX_VARIANT"):
        resolve(device, image=without_cuda, gpu_access="runtime")
    assert resolve("cpu", image=without_cuda, gpu_access="runtime").name == "cpu"


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_gpu_that_is_lost(resolve: Resolve, without_cuda: str, device: str) -> None:
    with pytest.raises(NotReady, match=r"The GPU was lost.*Xid"):
        resolve(device, image=without_cuda, gpu_access="runtime", gpu=["lost"])


def test_a_gpu_on_which_torch_has_calculated(resolve: Resolve, with_cuda: str) -> None:
    found = resolve(image=with_cuda, gpu_access="runtime")
    assert (found.scale, found.name, found.sandbox.gpu) == ("gpu", "NVIDIA Stand-in", ("0",))
    assert found.gpu is not None and (found.gpu.capability, found.gpu.cuda) == ("8.9", "13.0")
    assert found.notes == (
        '2 GPUs of a kind, GPU 0 is used; set sandbox.gpu to choose, or slots = "auto" for all',
    )
    assert resolve(image=with_cuda, gpu_access="runtime", gpu=["1"]).sandbox.gpu == ("1",)
    with pytest.raises(NotReady, match="There is no GPU '7' here"):
        resolve(image=with_cuda, gpu_access="runtime", gpu=["7"])


def test_slots_with_a_gpu_each(bench: Bench, with_cuda: str) -> None:
    each = [{"gpu": ["0"]}, {"gpu": ["1"], "cpus": ""}]
    for slots in ("auto", each):
        found = resolve_all(bench, slots, image=with_cuda, gpu_access="runtime")
        assert [one.sandbox.gpu for one in found] == [("0",), ("1",)]
        assert {one.name for one in found} == {"NVIDIA Stand-in"}
    assert sentence(found).startswith(
        "2 slots (slot 0: GPU 0, all CPUs; slot 1: GPU 1, all CPUs), each: NVIDIA"
    )
    again = [{"gpu": ["0"]}, {"gpu": ["GPU-0"]}]
    with pytest.raises(UserError, match="name one GPU twice, the second time as GPU-0"):
        resolve_all(bench, again, image=with_cuda, gpu_access="runtime")


def test_slots_for_gpus_that_are_not_listed_or_too_many(bench: Bench) -> None:
    listing_fails = NVIDIA_SMI.replace("    *)", "    *) exit 6 ;;\n    never)")
    with image_with(nvidia_smi=listing_fails, python=PYTHON) as image:
        [found] = resolve_all(bench, "auto", image=image, gpu_access="runtime")
    assert found.notes == ("the engine does not list the GPUs, so there is one slot; name them in slots",)
    line = 'echo "$n, GPU-$n, NVIDIA Stand-in, 24576, 0, Disabled, Default, Disabled"'
    many = f"#!/bin/sh\ncase $* in *index*) for n in $(seq 0 32); do {line}; done ;; esac\n"
    with (
        image_with(nvidia_smi=many, python=PYTHON) as image,
        pytest.raises(UserError, match="33 GPUs and slices, but at most 32 slots"),
    ):
        resolve_all(bench, "auto", image=image, gpu_access="runtime")


def test_slots_with_different_gpus_are_refused(bench: Bench) -> None:
    with (
        image_with(nvidia_smi=NVIDIA_SMI, python=OF_ANOTHER_SIZE) as image,
        pytest.raises(UserError, match=r"Slot 0 has NVIDIA Stand-in \(25 GB.* slot 1 has .*50 GB.*own\."),
    ):
        resolve_all(bench, "auto", image=image, gpu_access="runtime")


@NO_GPU
def test_slots_without_a_gpu(bench: Bench) -> None:
    assert [one.sandbox.cpus for one in resolve_all(bench, "auto")] == [""]
    found = resolve_all(bench, [{"cpus": "0"}, {"cpus": "1"}])
    assert [(one.scale, one.sandbox.cpus, one.sandbox.gpu) for one in found] == [
        ("cpu", "0", ()),
        ("cpu", "1", ()),
    ]
    with pytest.raises(NotReady, match=r"Slot 1 names CPUs 4000, but the engine has only CPUs 0 to \d+"):
        resolve_all(bench, [{"cpus": "0"}, {"cpus": "4000"}])
    with pytest.raises(NotReady, match="NVIDIA"):
        resolve_all(bench, [{"gpu": ["0"]}, {"gpu": ["1"]}])


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="this machine has no GPU")
def test_the_gpu_of_this_machine(resolve: Resolve) -> None:
    found = resolve("gpu")
    assert found.gpu is not None and found.gpu.driver[0].isdigit() and found.gpu.free_bytes > 0
