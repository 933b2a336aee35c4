"""Prints one line of JSON: can torch use this container's GPU? Nothing imports or mounts this file.

The controller runs its text in the image, on the device, as T would be run: `python -c TEXT`. The line is
interpreted by `controller.core.hardware.gpu_probe`. It protects nothing and scores nothing.

    {"torch": "2.13.0", "cuda": "13.0", "arches": ["sm_75", ...], "devices": 1, "name": "NVIDIA H200",
     "capability": [9, 0], "total_bytes": ..., "free_bytes": ..., "bf16": true, "correct": true}

Unknown keys are missing; then `error` and `message` are those of the exception.
"""

import json
from typing import Any

SIDE = 64  # rows and columns of the matrices


def look(found: dict[str, Any]) -> None:
    """Fill `found` as far as possible. Raises whatever torch raises."""
    import torch

    found |= {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "arches": torch.cuda.get_arch_list(),
    }
    if torch.version.cuda is None:
        return
    torch.cuda.init()  # unlike is_available(), it raises the reason
    free, total = torch.cuda.mem_get_info()
    found |= {
        "devices": torch.cuda.device_count(),
        "name": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "total_bytes": total,
        "free_bytes": free,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }
    left, right = (torch.randint(-3, 4, (SIDE, SIDE)).float() for _ in range(2))
    # Small integers, so the result is exact. The product tests cuBLAS, the sum torch's own kernels.
    result = (left.cuda() @ right.cuda() + left.cuda()).cpu()
    found["correct"] = bool(torch.equal(result, left @ right + left))


def main() -> None:
    found: dict[str, Any] = {}
    try:
        look(found)
    except BaseException as error:
        found |= {"error": type(error).__name__, "message": str(error)[:2000]}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
