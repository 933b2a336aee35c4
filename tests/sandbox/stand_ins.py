"""Programs in the place of those of an image on a machine with GPUs, where the runtime `nvidia` is runc.

Everything else in such an image is what it is: torch, asked by anything but the probe, finds no GPU.
"""

from __future__ import annotations

import json

NVIDIA_SMI = """#!/bin/sh
# Which GPU is asked for says what the machine is like.
case "$NVIDIA_VISIBLE_DEVICES $*" in
    lost*) echo "Unable to determine the device handle for GPU0000:07:00.0: GPU is lost."; exit 15 ;;
    *name,driver_version*) echo "NVIDIA Stand-in, 580.65.06" ;;
    *-L) ;;
    *)
        echo "0, GPU-0, NVIDIA Stand-in, 24576, 0, Disabled, Default, Disabled"
        echo "1, lost, NVIDIA Stand-in, 24576, 0, Disabled, Default, Disabled" ;;
esac
"""
FOUND = {
    "torch": "2.13.0",
    "cuda": "13.0",
    "arches": ["sm_80"],
    "devices": 1,
    "name": "NVIDIA Stand-in",
    "capability": [8, 9],
    "total_bytes": 25_000_000_000,
    "free_bytes": 24_000_000_000,
    "bf16": True,
    "correct": True,
}
OF_ANOTHER_SIZE = f"""#!/bin/sh
[ "$1" = -c ] || exec python3 "$@"
if [ "$NVIDIA_VISIBLE_DEVICES" = 1 ]; then
    echo '{json.dumps({**FOUND, "total_bytes": 50_000_000_000})}'
else
    echo '{json.dumps(FOUND)}'
fi
"""
"""GPU 1 is another one."""
PYTHON = f"""#!/bin/sh
[ "$1" = -c ] || exec python3 "$@"
cat <<'END'
{json.dumps(FOUND)}
END
"""
