"""Lists of GPUs as nvidia-smi prints them, which one is chosen, and what is said of it."""

from __future__ import annotations

import pytest

from controller.core.errors import NotReady
from controller.core.hardware.gpu_listing import COMMAND, Choice, ListedGpu, choose, every, named_twice, parse

ONE = """\
0, GPU-aaaa, NVIDIA H200, 143771, 0, Disabled, Default, Disabled
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
"""
SPLIT = """\
0, GPU-aaaa, NVIDIA A100-SXM4-40GB, 40960, 0, Disabled, Default, Enabled
1, GPU-bbbb, NVIDIA A100-SXM4-40GB, 40960, 0, Disabled, Default, Disabled
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 1g.5gb      Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""
LAPTOP = """\
0, GPU-cccc, NVIDIA GeForce RTX 4060 Laptop GPU, 8188, 612, Enabled, Default, [N/A]
GPU 0: NVIDIA GeForce RTX 4060 Laptop GPU (UUID: GPU-cccc)
"""


def gpu(index: int, gib: int = 24, name: str = "NVIDIA L4", **rest: object) -> ListedGpu:
    return ListedGpu(index, f"GPU-{index}", name, gib * 1024**3, 0, **rest)  # type: ignore[arg-type]


def test_what_the_lines_say() -> None:
    assert parse(ONE) == (ListedGpu(0, "GPU-aaaa", "NVIDIA H200", 143771 * 1024**2, 0),)
    first, second = parse(SPLIT)
    assert (first.mig, first.slices) == (True, ("MIG-1111", "MIG-2222"))
    assert (second.mig, second.slices) == (False, ())
    [laptop] = parse(LAPTOP)
    assert laptop.display and not laptop.mig and laptop.used_bytes == 612 * 1024**2


@pytest.mark.parametrize(
    ("gpus", "ids"),
    [
        ((), ()),
        (parse(ONE), ("0",)),
        (parse(SPLIT), ("MIG-1111", "MIG-2222", "1")),
        ([gpu(0), gpu(1, compute_mode="Prohibited"), gpu(2)], ("0", "2")),
        ([gpu(0, mig=True)], ()),
    ],
)
def test_every_device_that_takes_work(gpus: list[ListedGpu], ids: tuple[str, ...]) -> None:
    assert every(gpus) == ids


@pytest.mark.parametrize(
    ("ids", "twice"),
    [
        (("0", "1"), None),
        (("1", "GPU-bbbb"), "GPU-bbbb"),
        (("MIG-1111", "0:1"), None),
        (("MIG-2222", "1", "0:1"), "0:1"),
        (("7", "7"), "7"),
    ],
)
def test_a_device_that_is_named_twice(ids: tuple[str, ...], twice: str | None) -> None:
    assert named_twice(parse(SPLIT), ids) == twice


@pytest.mark.parametrize("text", ["", "No devices were found\n", "sh: 1: nvidia-smi: not found", "0, GPU-a"])
def test_what_lists_nothing(text: str) -> None:
    assert parse(text) == ()


def test_a_driver_that_does_not_tell_its_memory() -> None:
    [found] = parse("0, GPU-a, NVIDIA GB10, [N/A], [Not Supported], Disabled, Default, Disabled")
    assert (found.total_bytes, found.used_bytes) == (None, None)
    assert choose([found], ()) == Choice(("0",))


CHOICES = [
    # (listed, sandbox.gpu, handed out, words of the notes)
    ([], (), ("0",), []),  # the engine could not list them
    ([], ("3",), ("3",), []),
    ([gpu(0)], (), ("0",), []),
    ([gpu(0), gpu(1)], (), ("0",), ["2 GPUs of a kind, GPU 0 is used; set sandbox.gpu to choose"]),
    ([gpu(0), gpu(1)], ("1",), ("1",), []),
    ([gpu(0), gpu(1)], ("GPU-1",), ("GPU-1",), []),
    ([gpu(0), gpu(1)], ("0", "1"), ("0", "1"), ["2 devices are handed out"]),
    ([gpu(0), gpu(1)], ("all",), ("all",), []),
    (
        [gpu(0, 2, "NVIDIA T400"), gpu(1)],
        (),
        ("1",),
        ["2 GPUs (0 (NVIDIA T400), 1 (NVIDIA L4)), GPU 1 is used"],
    ),
    ([gpu(0, display=True), gpu(1)], (), ("1",), ["GPU 1 is used"]),
    (
        [gpu(0, display=True)],
        (),
        ("0",),
        ["drives a display: other programs use 0.0 GB", "noise.gpu_foreign"],
    ),
    (
        [gpu(0, mig=True, slices=("MIG-1",)), gpu(1)],
        (),
        ("1",),
        ["GPUs (MIG-1, 1 (NVIDIA L4)), GPU 1 is used"],
    ),
    ([gpu(0, mig=True, slices=("MIG-1", "MIG-2"))], ("MIG-2",), ("MIG-2",), []),
    ([gpu(0, mig=True, slices=("MIG-1", "MIG-2"))], ("0:1",), ("0:1",), []),
    ([gpu(0, compute_mode="Exclusive_Process")], (), ("0",), ["one process at a time"]),
    ([gpu(0, compute_mode="Prohibited"), gpu(1)], (), ("1",), ["GPU 1 is used"]),
]


@pytest.mark.parametrize(("listed", "wanted", "ids", "words"), CHOICES)
def test_which_is_used(
    listed: list[ListedGpu], wanted: tuple[str, ...], ids: tuple[str, ...], words: list[str]
) -> None:
    choice = choose(listed, wanted)
    assert choice.ids == ids
    notes = "; ".join(choice.notes)
    assert [word for word in words if word not in notes] == [] and bool(notes) == bool(words), notes


def test_somebody_at_work_is_noticed() -> None:
    busy = ListedGpu(0, "GPU-0", "NVIDIA L4", 24 * 1024**3, 5 * 1024**3)
    assert choose([busy], ()).notes == ("5.4 GB of the memory of GPU 0 are in use",)


@pytest.mark.parametrize(
    ("listed", "wanted", "words"),
    [
        ([gpu(0), gpu(1)], ("2",), ["no GPU '2' here", "0 (NVIDIA L4), 1 (NVIDIA L4)"]),
        ([gpu(0, mig=True, slices=("MIG-1",))], ("MIG-9",), ["no GPU 'MIG-9' here", "may name MIG-1"]),
        (
            [gpu(0, mig=True, slices=("MIG-1",))],
            ("0",),
            ["GPU 0 (NVIDIA L4) is split (MIG)", "MIG-1 for instance"],
        ),
        ([gpu(0, mig=True, slices=("MIG-1",))], (), ["is split (MIG)", "sandbox.gpu"]),
        ([gpu(0, mig=True)], (), ["has no slice", "nvidia-smi -i 0 -mig 0"]),
        ([gpu(0, compute_mode="Prohibited")], (), ["Prohibited", "nvidia-smi -i 0 -c 0"]),
    ],
)
def test_what_is_not_fit_is_one_sentence(
    listed: list[ListedGpu], wanted: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(NotReady) as caught:
        choose(listed, wanted)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_the_list_is_asked_for_in_a_form_that_every_driver_has() -> None:
    assert (
        COMMAND[:2] == ("sh", "-c")
        and "display_active" in COMMAND[2]
        and COMMAND[2].endswith("nvidia-smi -L")
    )
