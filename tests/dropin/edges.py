"""Lets a script that was written for one large NVIDIA GPU run on two CPU cores, changed only at its edges.

What it asks of CUDA is answered, the attention kernel it would fetch over the network has a stand-in, and
sizes are cut. Model, optimizer, schedule, budget handling and evaluation stay word for word. `torch.compile`
still wraps and renames what it is given; it only never compiles.
"""

from __future__ import annotations

import re

#: What makes a step take a fraction of a second. Two micro-steps of one step, at a context of 256.
SIZES = {"DEPTH": "2", "DEVICE_BATCH_SIZE": "2", "TOTAL_BATCH_SIZE": "1024"}

PRELUDE = '''
def _stand_ins():
    import sys
    import types

    import prepare
    import torch
    import torch.nn.functional as F

    torch.compiler.set_stance("force_eager")
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.max_memory_allocated = lambda *_: 0

    def flash_attn_func(q, k, v, causal, window_size):
        """q, k, v [B, T, H, D]; each position sees itself and window_size[0] before it."""
        position = torch.arange(q.size(1))
        back = position[:, None] - position[None, :]
        seen = (back >= 0) & (back <= window_size[0])
        q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return y.transpose(1, 2)

    kernels = types.ModuleType("kernels")
    interface = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    kernels.get_kernel = lambda _: types.SimpleNamespace(flash_attn_interface=interface)
    constants = types.ModuleType("constants")  # where the first version kept two of prepare's names
    constants.MAX_SEQ_LEN, constants.TIME_BUDGET = prepare.MAX_SEQ_LEN, prepare.TIME_BUDGET
    sys.modules |= {"kernels": kernels, "constants": constants}


_stand_ins()
'''


def on_a_cpu(train_py: str) -> str:
    """The script with its hardware replaced. Raises ValueError if a size to cut is not where it was."""
    for name, value in SIZES.items():
        train_py, count = re.subn(rf"^{name} *=.*$", f"{name} = {value}", train_py, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{name} is assigned {count} times")
    return PRELUDE + train_py.replace('"cuda"', '"cpu"')
