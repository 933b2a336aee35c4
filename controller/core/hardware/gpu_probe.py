"""What torch in the image makes of a GPU, or why it cannot use it, as one sentence with the remedy. Pure.

`harness/gpu_probe.py` is run in the image on the device, after nvidia-smi. The error messages of CUDA and
torch are from torch's source (c10/cuda/CUDAFunctions.cpp) and users' reports; on a real GPU, only the
fault-free case was tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from controller.core.errors import InfrastructureError, NotReady
from controller.core.untrusted import clean_line
from controller.core.values import Value

SECONDS = 180.0
"""The longest a probe may take: a cold start reads some gigabytes of libraries from disk."""

OLDEST_DRIVER: Mapping[int, int] = {13: 580, 12: 525, 11: 450}
"""Major version of CUDA → the oldest driver on Linux that runs programs built for it (NVIDIA, CUDA
Compatibility, minor version compatibility)."""

_CPU = "or pass --device cpu"
_OTHER_CUDA = "build the image with another CUDA (GLOVEBOX_TORCH_INDEX or GLOVEBOX_LOCK; docs/service.md)"


class Gpu(Value):
    """A GPU on which torch has calculated."""

    name: str
    driver: str
    cuda: str
    """The version that the image's torch was built for."""
    capability: str
    """Compute capability, `9.0` for instance."""
    total_bytes: int
    free_bytes: int
    devices: int
    """How many torch sees."""
    bf16: bool
    """Whether it has bfloat16 in hardware."""

    def sentence(self) -> str:
        others = f", {self.devices} devices" if self.devices > 1 else ""
        return (
            f"{self.name}, driver {self.driver}, CUDA {self.cuda} in the image, compute capability "
            f"{self.capability}, {self.free_bytes / 1e9:.1f} of {self.total_bytes / 1e9:.1f} GB free, "
            f"{'bfloat16' if self.bf16 else 'no bfloat16'}{others}"
        )


def command(program: str) -> tuple[str, ...]:
    """Prints the GPU's name and driver according to nvidia-smi, then the line of `program`."""
    query = "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader"
    return "sh", "-c", f'{query} 2>&1 && exec python -c "$0"', program


#: What nvidia-smi or the engine's toolkit prints for a GPU that is present but broken.
_BROKEN: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"driver/library version mismatch", re.IGNORECASE),
        "The kernel runs another version of the NVIDIA driver than is installed: restart the machine, ",
    ),
    (
        re.compile(
            r"GPU is lost|fallen off the bus|requires? (?:a )?reset|Unable to determine the device handle",
            re.IGNORECASE,
        ),
        "The GPU was lost: restart the machine and look for Xid in the kernel's log (dmesg), ",
    ),
    (
        re.compile(r"Failed to initialize NVML: (?:Unknown Error|Insufficient Permissions)", re.IGNORECASE),
        "A container may not use the GPU's device files: restart the engine, look at no-cgroups in the "
        "configuration of the NVIDIA container toolkit, ",
    ),
)


def broken(said: str) -> str | None:
    """A sentence if the output is about a GPU that is present but broken; None: there is no GPU."""
    for words, sentence in _BROKEN:
        if words.search(said):
            return f"{sentence}{_CPU} ({clean_line(said)})."
    return None


def read(said: str, status: int | None) -> Gpu | None:
    """Parse the output of `command`. None if nvidia-smi shows no GPU.

    Raises NotReady, with the remedy, if there is a GPU that torch cannot use.
    """
    lines = said.splitlines()
    listed = [line.rpartition(", ") for line in lines if re.search(r", \d+(?:\.\d+)+\s*$", line)]
    if not listed:
        if sentence := broken(said):
            raise NotReady(sentence)
        return None
    name, driver = clean_line(listed[0][0]), clean_line(listed[0][2])
    found = _torch_line(lines)
    if found is None:
        raise NotReady(
            f"nvidia-smi shows {name}, but PyTorch in the image ended with status {status} and said nothing: "
            f"check that the container has enough memory (sandbox.trainer.memory), {_CPU}."
        )
    if sentence := _fault(found, name, driver):
        raise NotReady(sentence)
    try:
        major, minor = found["capability"]
        return Gpu(
            name=clean_line(found["name"]),
            driver=driver,
            cuda=clean_line(found["cuda"]),
            capability=f"{major}.{minor}",
            total_bytes=found["total_bytes"],
            free_bytes=found["free_bytes"],
            devices=found["devices"],
            bf16=found["bf16"],
        )
    except (LookupError, TypeError, ValueError) as error:
        raise InfrastructureError(
            f"The GPU probe printed something unexpected: {clean_line(lines[-1])}."
        ) from error


def _torch_line(lines: list[str]) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


#: (pattern of the error, sentence); the first match wins. The field `cuda` is the image's version.
_FAULTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"driver on your system is too old|driver version is insufficient|Error 804\b|Error 35\b"),
        "The driver {driver} is too old for CUDA {cuda}, which the image's PyTorch was built for{found}: "
        "install driver {oldest}, {other}, {cpu}",
    ),
    (
        re.compile(r"Error 803\b|unsupported display driver"),
        "The parts of the NVIDIA driver {driver} do not match: restart the machine, reinstall the "
        "driver, {cpu}",
    ),
    (
        re.compile(r"Error 802\b|system not yet initialized"),
        "{name} is not ready: machines with NVSwitch need NVIDIA's Fabric Manager in the driver's version "
        "({driver}); install and start nvidia-fabricmanager, {cpu}",
    ),
    (
        re.compile(r"out of memory|_ALLOC_FAILED|MEMORY_ALLOCATION"),
        "There is no memory free on {name}: end the programs that use it (nvidia-smi lists them), choose "
        "another GPU in sandbox.gpu, {cpu}",
    ),
    (
        re.compile(r"busy or unavailable|Error 46\b"),
        "{name} is used exclusively by another program: end it (nvidia-smi lists it), or allow several with "
        "`nvidia-smi -c 0`, {cpu}",
    ),
    (
        re.compile(
            r"GPU is lost|fallen off the bus|ECC error|unspecified launch failure|hardware stack error"
            r"|illegal (?:memory access|instruction)|requires reset"
        ),
        "{name} fails: look for Xid in the kernel's log (dmesg), restart the machine, {cpu}",
    ),
    (
        re.compile(r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device"),
        "nvidia-smi shows {name}, but CUDA finds no device in the container: run `nvidia-modprobe -u -c=0`, "
        "see that the NVIDIA container toolkit is current, {cpu}",
    ),
    (
        re.compile(r"driver initialization failed|CUDA unknown error|Error 999\b|Error 3\b"),
        "CUDA cannot be started on {name}: reload the module nvidia_uvm or restart the machine, {cpu}",
    ),
)


_IDLE = re.compile(r" ?Did you run some cuda functions before calling NumCudaDevices\(\) [^?]*\?")
"""A guess that torch always adds and that never applies here."""


def _first_line(message: str) -> str:
    return _IDLE.sub("", message).partition("\n")[0]


def _fault(found: Mapping[str, Any], name: str, driver: str) -> str | None:
    """Why torch cannot use the GPU, in a sentence; None if it can."""
    message = str(found.get("message", ""))
    said = clean_line(f"{found.get('error', '')}: {_first_line(message)}")
    if "torch" not in found:
        return f"PyTorch in the image cannot be loaded ({said}): rebuild it with `make image`, {_CPU}."
    if found.get("cuda") is None:
        return (
            f"The image's PyTorch was built without CUDA, and there is a GPU ({name}): build the image with "
            f"`GLOVEBOX_VARIANT=cuda make image`, {_CPU}."
        )
    if unsupported := _unsupported(found, name, message):
        return unsupported
    for words, sentence in _FAULTS:
        if words.search(message):
            fields = _fields(found, name, driver, message)
            return f"{sentence.format(**fields)} (PyTorch said: {said})."
    if "error" in found:
        return (
            f"PyTorch in the image cannot use {name} (driver {driver}; it said: {said}): check that "
            f"driver and image match (docs/service.md), {_CPU}."
        )
    if found.get("correct") is not True:
        return f"{name} calculates a product of matrices wrongly: do not use it; pass --device cpu."
    return None


def _fields(found: Mapping[str, Any], name: str, driver: str, message: str) -> dict[str, str]:
    cuda = clean_line(str(found["cuda"]))
    number = re.search(r"found version (\d+)", message)
    version = int(number[1]) if number else 0  # 12020 is 12.2
    major = cuda.partition(".")[0]
    oldest = OLDEST_DRIVER.get(int(major)) if major.isdecimal() else None
    return {
        "name": name,
        "driver": driver,
        "cuda": cuda,
        "found": f" (it knows CUDA up to {version // 1000}.{version % 1000 // 10})" if version else "",
        "oldest": f"{oldest} or newer" if oldest else "a newer one",
        "other": _OTHER_CUDA,
        "cpu": _CPU,
    }


def _unsupported(found: Mapping[str, Any], name: str, message: str) -> str | None:
    """A sentence if the wheels have no kernels for this generation of GPUs."""
    if found.get("correct") is True:
        return None  # it has just run some, whatever the list says
    capability = found.get("capability")
    arches = [str(arch) for arch in found.get("arches", ())]
    missing = capability is not None and arches and not supports(arches, (capability[0], capability[1]))
    if not missing and "no kernel image is available" not in message:
        return None
    its = f" (compute capability {capability[0]}.{capability[1]})" if capability is not None else ""
    return (
        f"The image's PyTorch has no kernels for {name}{its}, only for {clean_line(' '.join(arches))}: "
        f"{_OTHER_CUDA}, {_CPU}."
    )


def supports(arches: list[str], capability: tuple[int, int]) -> bool:
    """Whether wheels built for `arches` (`sm_80`, `compute_90`…) run on a GPU of this compute capability.

    Machine code runs on GPUs of the same major version and the same or a higher minor one; `compute_…` is
    PTX, which the driver translates for anything newer. A suffix (`sm_90a`) ties code to exactly that
    capability.
    """
    for arch in arches:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        if match[4] == "a":
            fits = built == capability
        elif match[1] == "compute" and not match[4]:
            fits = built <= capability
        else:
            fits = built[0] == capability[0] and built[1] <= capability[1]
        if fits:
            return True
    return False
