"""Lets a script that was written for one large NVIDIA GPU run on two CPU cores, changed only at its edges.

What it asks of CUDA is answered and sizes are cut. Model, attention, optimizer, schedule, budget handling
and evaluation stay word for word. `torch.compile` still wraps and renames what it is given; it only never
compiles.
"""

from __future__ import annotations

import re

#: What makes a step take a fraction of a second. Two micro-steps of one step, at a context of 256.
SIZES = {"DEPTH": "2", "DEVICE_BATCH_SIZE": "2", "TOTAL_BATCH_SIZE": "1024"}

PRELUDE = """
def _stand_ins():
    import sys
    import types

    import prepare
    import torch

    torch.compiler.set_stance("force_eager")
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.max_memory_allocated = lambda *_: 0

    constants = types.ModuleType("constants")  # where the first version kept two of prepare's names
    constants.MAX_SEQ_LEN, constants.TIME_BUDGET = prepare.MAX_SEQ_LEN, prepare.TIME_BUDGET
    sys.modules["constants"] = constants


_stand_ins()
"""


def on_a_cpu(train_py: str) -> str:
    """The script with its hardware replaced. Raises ValueError if a size to cut is not where it was."""
    for name, value in SIZES.items():
        train_py, count = re.subn(rf"^{name} *=.*$", f"{name} = {value}", train_py, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{name} is assigned {count} times")
    return PRELUDE + train_py.replace('"cuda"', '"cpu"')
