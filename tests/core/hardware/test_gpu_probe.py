"""Words of torch, CUDA and nvidia-smi about a GPU, and the sentence or the values they come to.

Written after torch's source, NVIDIA's documentation and users' reports, not captured on a machine of ours.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.core.errors import InfrastructureError, NotReady
from controller.core.hardware.gpu_probe import OLDEST_DRIVER, Gpu, broken, command, read, supports

SMI = "NVIDIA H200, 580.65.06\n"
ARCHES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
BUILT = {"torch": "2.13.0+cu130", "cuda": "13.0", "arches": ARCHES}
FINE = {
    **BUILT,
    "devices": 1,
    "name": "NVIDIA H200",
    "capability": [9, 0],
    "total_bytes": 150_000_000_000,
    "free_bytes": 149_400_000_000,
    "bf16": True,
    "correct": True,
}


def said(torch: dict[str, Any], smi: str = SMI) -> str:
    return f"{smi}{json.dumps(torch)}\n"


def failed(message: str, error: str = "RuntimeError", **found: Any) -> dict[str, Any]:
    return {**BUILT, **found, "error": error, "message": message}


def test_a_gpu_that_works() -> None:
    gpu = read(said(FINE), 0)
    assert gpu == Gpu(
        name="NVIDIA H200",
        driver="580.65.06",
        cuda="13.0",
        capability="9.0",
        total_bytes=150_000_000_000,
        free_bytes=149_400_000_000,
        devices=1,
        bf16=True,
    )
    assert gpu is not None and gpu.sentence() == (
        "NVIDIA H200, driver 580.65.06, CUDA 13.0 in the image, compute capability 9.0, "
        "149.4 of 150.0 GB free, bfloat16"
    )
    assert read(said(FINE, SMI + SMI), 0) == gpu  # two are handed out
    assert read(said({**FINE, "arches": ["sm_80"]}), 0) == gpu  # it did calculate
    old = read(said({**FINE, "bf16": False, "devices": 2}), 0)
    assert old is not None and old.sentence().endswith("no bfloat16, 2 devices")


@pytest.mark.parametrize(
    "text",
    [
        "sh: 1: nvidia-smi: not found\n",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
        "latest NVIDIA driver is installed and running.\n",
        "",
    ],
)
def test_no_gpu(text: str) -> None:
    assert read(text, 6) is None and broken(text) is None


CUDA_INIT = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error {}"
)
KERNEL_FAILED = (
    "CUDA error: {}\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect."
)
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx "
    "Alternatively, go to: https://pytorch.org to install a PyTorch version that has been compiled with your "
    "version of the CUDA driver."
)

FAULTS: list[tuple[dict[str, Any], list[str]]] = [
    (
        failed(TOO_OLD.format(12020)),
        [
            "driver 580.65.06 is too old for CUDA 13.0",
            "CUDA up to 12.2",
            "580 or newer",
            "GLOVEBOX_TORCH_INDEX",
        ],
    ),
    (
        failed(TOO_OLD.format(11040), cuda="12.8"),
        ["too old for CUDA 12.8", "CUDA up to 11.4", "525 or newer"],
    ),
    (
        failed(CUDA_INIT.format("804: forward compatibility was attempted on non supported HW")),
        ["too old for CUDA 13.0", "580 or newer", "cudaGetDeviceCount(). Error 804: forward compatibility"],
    ),
    (
        failed(KERNEL_FAILED.format("CUDA driver version is insufficient for CUDA runtime version")),
        ["too old for CUDA 13.0"],
    ),
    (
        failed(CUDA_INIT.format("803: system has unsupported display driver / cuda driver combination")),
        ["parts of the NVIDIA driver 580.65.06 do not match", "restart"],
    ),
    (failed(CUDA_INIT.format("802: system not yet initialized")), ["Fabric Manager", "580.65.06"]),
    (
        {"torch": "2.13.0+cpu", "cuda": None, "arches": []},
        ["PyTorch was built without CUDA", "NVIDIA H200", "GLOVEBOX_VARIANT=cuda make image"],
    ),
    (
        failed("Torch not compiled with CUDA enabled", "AssertionError", cuda=None),
        ["PyTorch was built without CUDA"],
    ),
    (
        failed(
            KERNEL_FAILED.format("no kernel image is available for execution on the device"),
            "AcceleratorError",
            capability=[6, 1],
        ),
        ["no kernels for NVIDIA H200 (compute capability 6.1)", "sm_75", "GLOVEBOX_TORCH_INDEX"],
    ),
    (failed("no words for it", capability=[7, 0]), ["no kernels", "compute capability 7.0"]),
    (
        failed(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB of "
            "which 15.62 MiB is free.",
            "OutOfMemoryError",
        ),
        ["no memory free on NVIDIA H200", "nvidia-smi", "sandbox.gpu"],
    ),
    (
        failed("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ["no memory free"],
    ),
    (
        failed(KERNEL_FAILED.format("all CUDA-capable devices are busy or unavailable")),
        ["used exclusively by another program", "nvidia-smi -c 0"],
    ),
    (
        failed(KERNEL_FAILED.format("CUDA-capable device(s) is/are busy or unavailable"), "AcceleratorError"),
        ["used exclusively by another program"],
    ),
    (failed(KERNEL_FAILED.format("unspecified launch failure")), ["NVIDIA H200 fails", "Xid"]),
    (failed(KERNEL_FAILED.format("uncorrectable ECC error encountered")), ["NVIDIA H200 fails", "Xid"]),
    (
        failed(
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a "
            "driver from http://www.nvidia.com/Download/index.aspx"
        ),
        ["CUDA finds no device in the container", "nvidia-modprobe"],
    ),
    (failed("No CUDA GPUs are available"), ["CUDA finds no device in the container"]),
    (
        failed("CUDA unknown error - this may be due to an incorrectly set up environment"),
        ["CUDA cannot be started", "nvidia_uvm"],
    ),
    ({**FINE, "correct": False}, ["calculates a product of matrices wrongly"]),
    (
        {"error": "ImportError", "message": "libcudnn.so.9: cannot open shared object file: No such file"},
        ["cannot be loaded", "libcudnn", "make image"],
    ),
    (failed("something nobody has heard of"), ["cannot use NVIDIA H200", "something nobody has heard of"]),
]


@pytest.mark.parametrize(("torch", "words"), FAULTS)
def test_a_gpu_that_torch_cannot_use_is_one_sentence_with_a_remedy(
    torch: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(NotReady) as caught:
        read(said(torch), 0)
    sentence = str(caught.value)
    assert [word for word in words if word not in sentence] == [], sentence
    assert "--device cpu" in sentence and sentence.endswith(".") and "\n" not in sentence
    assert ", or " in sentence or "; pass" in sentence or "; or" in sentence, sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.65",
            "restart",
        ),
        (
            "Unable to determine the device handle for GPU0000:07:00.0: GPU is lost.  Reboot the system",
            "The GPU was lost",
        ),
        ("Failed to initialize NVML: Unknown Error", "device files"),
        (
            "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch",
            "another version of the NVIDIA driver",
        ),
    ],
)
def test_a_gpu_that_is_there_and_does_not_work(text: str, words: str) -> None:
    sentence = broken(text)
    assert sentence is not None and words in sentence and "--device cpu" in sentence
    with pytest.raises(NotReady, match=words):
        read(text, 9)


def test_torch_that_says_nothing() -> None:
    with pytest.raises(NotReady, match=r"ended with status 137 and said nothing.*sandbox\.trainer\.memory"):
        read(SMI, 137)
    with pytest.raises(NotReady, match="said nothing"):
        read(SMI + "{half a line\n", 137)


def test_a_line_that_lacks_what_it_should_have() -> None:
    for key in ("name", "capability", "total_bytes", "bf16"):
        with pytest.raises(InfrastructureError, match="probe"):
            read(said({name: value for name, value in FINE.items() if name != key}), 0)


@pytest.mark.parametrize(
    ("arches", "capability", "fits"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 9), True),  # machine code of the same major version
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["compute_80"], (9, 0), True),  # PTX
        (["compute_90"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["sm_120"], (12, 1), True),
        (["sm_75", "sm_80"], (6, 1), False),
        (["gfx942"], (9, 4), False),
        ([], (9, 0), False),
    ],
)
def test_which_gpus_wheels_are_for(arches: list[str], capability: tuple[int, int], fits: bool) -> None:
    assert supports(arches, capability) is fits


def test_the_program_is_run_only_where_nvidia_smi_succeeds() -> None:
    shell, flag, line, program = command("print('hello')")
    assert (shell, flag, program) == ("sh", "-c", "print('hello')")
    assert line.startswith("nvidia-smi ") and ' && exec python -c "$0"' in line
    assert OLDEST_DRIVER[13] == 580
