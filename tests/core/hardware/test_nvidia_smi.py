"""Lines of nvidia-smi, and look-alikes. Written after documentation and users' reports, not captured here."""

from __future__ import annotations

import pytest

from controller.core.hardware.nvidia_smi import FIELDS, GpuLost, GpuSample, command, parse

MIB = 1024**2

SAMPLES: list[tuple[str, GpuSample]] = [
    (
        "0, 34, 345, 72.47, 0, 1, 0x0000000000000001",
        GpuSample(0, 34.0, 345.0, 72.47, 0.0, 1 * MIB),
    ),
    (
        "1, 61, 1755, 689.90, 100, 71234, 0x0000000000000004",  # a power cap is how a GPU is set up
        GpuSample(1, 61.0, 1755.0, 689.9, 1.0, 71234 * MIB),
    ),
    (
        "0, 88, 1200, 300.00, 97, 20000, 0x0000000000000048",
        GpuSample(
            0, 88.0, 1200.0, 300.0, 0.97, 20000 * MIB, frozenset({"hw_slowdown", "hw_thermal_slowdown"})
        ),
    ),
    (
        "0, 83, 1400, 250.1, 97, 20000, 0x00000000000000A4\r",
        GpuSample(
            0,
            83.0,
            1400.0,
            250.1,
            0.97,
            20000 * MIB,
            frozenset({"sw_thermal_slowdown", "hw_power_brake_slowdown"}),
        ),
    ),
    ("0, 45, [N/A], [Not Supported], [Unknown Error], 512, N/A", GpuSample(0, 45.0, used_bytes=512 * MIB)),
    ("0, nan, -1, inf, ERR!, , 0x", GpuSample(0)),
]


@pytest.mark.parametrize(("line", "expected"), SAMPLES)
def test_a_sample(line: str, expected: GpuSample) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "0, [GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost]",
        "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  "
        "Reboot the system to recover this GPU",
        "Unable to determine the device handle for GPU0000:07:00.0: Unknown Error",
        "The GPU has fallen off the bus or has otherwise become inaccessible",
        "0, [GPU requires reset], 0, 0, 0, 0, 0x0",
        "The GPU requires a reset before it can be used again",
    ],
)
def test_a_lost_gpu(line: str) -> None:
    lost = parse(line)
    assert isinstance(lost, GpuLost)
    assert lost.said and len(lost.said) <= 200


@pytest.mark.parametrize(
    "line",
    [
        "",
        "No devices were found",
        'Field "clocks_event_reasons.active" is not a valid field to query.',
        "sh: 1: nvidia-smi: not found",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "index, temperature.gpu, clocks.sm, power.draw, utilization.gpu, memory.used, clocks_event",
        "0, 34, 345, 72.47, 0, 1",
        "0, 34, 345, 72.47, 0, 1, 0x1, 0x1",
        "gpu0, 34, 345, 72.47, 0, 1, 0x1",
    ],
)
def test_what_says_nothing_about_a_gpu(line: str) -> None:
    assert parse(line) is None


def test_an_old_driver_is_asked_by_the_old_name() -> None:
    shell, option, script = command(1)
    new, _, old = script.partition(" || ")
    assert (shell, option) == ("sh", "-c")
    assert "clocks_event_reasons" in new and "clocks_throttle_reasons" in old
    assert all(field in new and field in old for field in FIELDS)
