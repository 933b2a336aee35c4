"""What the settings say about slots."""

from __future__ import annotations

import pytest

from controller.core.hardware.gpu_probe import Gpu
from controller.core.hardware.slots import MOST_SLOTS, SlotConfig, cpu_set, difference, objection

GPU = Gpu(
    name="NVIDIA L4",
    driver="580",
    cuda="13.0",
    capability="8.9",
    total_bytes=24_000_000_000,
    free_bytes=1,
    devices=1,
    bf16=True,
)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("3", {3}), ("0-3", {0, 1, 2, 3}), ("0-1,8,10-11", {0, 1, 8, 10, 11}), ("0, 2", {0, 2})],
)
def test_a_list_of_cpus(text: str, cpus: set[int]) -> None:
    assert cpu_set(text) == cpus


def test_an_engine_gets_a_list_that_it_takes() -> None:
    assert SlotConfig(cpus=" 0-2, 8").cpus == "0-2,8"


@pytest.mark.parametrize("text", ["3-1", "\u0663", "-1", "a", "1,", "0--1", "5000", "1.5", "0-99999"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of CPUs like 0-3,8"):
        cpu_set(text)


@pytest.mark.parametrize("gpu", ["", "0,1", "0 1"])
def test_what_is_no_gpu(gpu: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        SlotConfig(gpu=(gpu,))


def slots(*described: tuple[str, str]) -> list[SlotConfig]:
    return [SlotConfig(gpu=tuple(gpu.split()), cpus=cpus) for gpu, cpus in described]


@pytest.mark.parametrize(
    "given",
    [
        slots(("0", "")),
        slots(("all", "")),
        slots(("0", ""), ("1", "")),
        slots(("0", "0-3"), ("1", "4-7")),
        slots(("0 1", ""), ("2 3", "")),
        slots(("", "0"), ("", "1")),
    ],
)
def test_slots_that_can_be_used_side_by_side(given: list[SlotConfig]) -> None:
    assert objection(given) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (slots(("", "")), "has to name its GPU"),
        (slots(("", ""), ("", "")), "has to name its GPU"),
        (slots(("all", ""), ("0", "")), "cannot have all GPUs"),
        (slots(("0", ""), ("", "")), "has to name its GPU"),
        (slots(("0", ""), ("0", "")), "the GPU 0 is named twice"),
        (slots(("0 0", "")), "the GPU 0 is named twice"),
        (slots(("", "0-3"), ("", "3-6")), "the CPU 3 is in two slots"),
        (slots(("0", ""), ("1 2", "")), "as many GPUs"),
        (slots(("0", "0"), ("1", "")), "as many CPUs"),
        (slots(("0", ""), ("", "1")), "as many GPUs"),
        (slots(*((f"{number}", "") for number in range(MOST_SLOTS + 1))), "at most 32"),
    ],
)
def test_slots_that_cannot(given: list[SlotConfig], words: str) -> None:
    assert words in (objection(given) or "")


def test_devices_that_can_be_compared() -> None:
    assert difference([GPU, GPU.model_copy(update={"free_bytes": 7})]) is None
    assert difference([None, None]) is None
    other = GPU.model_copy(update={"name": "NVIDIA H200"})
    assert difference([GPU, GPU, other]) == (
        "Slot 0 has NVIDIA L4 (24 GB, compute capability 8.9) and slot 2 has NVIDIA H200 (24 GB, compute "
        "capability 8.9), so the scores of their experiments could not be compared; give each kind of device "
        "a home of its own."
    )
    assert "slot 1 has no GPU" in (difference([GPU, None]) or "")
