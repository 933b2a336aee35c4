"""Which attention is fastest here: each kernel that this machine has, whole context and window, both ways.

    PYTHONPATH=harness python tests/bench/attention.py [ROWS [CONTEXT [HEADS [HEAD_DIM]]]]

For each kernel the seconds to its first result (compilation), the milliseconds of a forward and of a forward
with a backward pass, and the largest difference from the definition. A kernel that is not there, or fails,
says why. Needs PyTorch alone; on a GPU it measures in bfloat16, which is what docs/decisions/kernels.md asks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import kernels
import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""q, k, v [B, T, heads, D] and how many positions to the left a query sees; causal."""

TURNS = 10


def ours(q: Tensor, k: Tensor, v: Tensor, left: int) -> Tensor:
    """What scripts get: the best of PyTorch's own, as `kernels` chooses."""
    return kernels.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))


def whole(q: Tensor, k: Tensor, v: Tensor, left: int) -> Tensor:
    """The fused causal kernel without a window, for what a window saves."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def built_in_flash(q: Tensor, k: Tensor, v: Tensor, left: int) -> Tensor:
    """FlashAttention 2 inside PyTorch, which knows windows; rows of one length stand for packed ones."""
    from torch.nn.attention.varlen import varlen_attn

    rows, tokens = q.shape[:2]
    starts = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device=q.device)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out = varlen_attn(q, k, v, starts, starts, tokens, tokens, window_size=(left, 0))
    assert isinstance(out, Tensor)
    return out.view(rows, tokens, *out.shape[1:])


def flash_attn_4(q: Tensor, k: Tensor, v: Tensor, left: int) -> Tensor:
    """The wheel flash-attn-4, where it is installed."""
    from flash_attn.cute import flash_attn_func  # type: ignore[import-not-found]

    out = flash_attn_func(q, k, v, causal=True, window_size=(left, 0))
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def measure(
    attend: Attend, inputs: tuple[Tensor, Tensor, Tensor], left: int
) -> tuple[float, float, float, float]:
    """Seconds to the first result with gradients, ms forward, ms both ways, largest error of a few rows."""
    began = time.perf_counter()
    out = attend(*inputs, left)
    torch.autograd.grad(out.sum(), inputs)
    _wait()
    first = time.perf_counter() - began
    with torch.no_grad():
        forward = _milliseconds(lambda: attend(*inputs, left))
    both = _milliseconds(lambda: torch.autograd.grad(attend(*inputs, left).sum(), inputs))
    q, k, v = (x[:1, :, :1].detach().double() for x in inputs)
    exact = definition(q, k, v, left)
    return first, forward, both, (out[:1, :, :1].double() - exact).abs().max().item()


def definition(q: Tensor, k: Tensor, v: Tensor, left: int) -> Tensor:
    """Dense, in float64."""
    behind = torch.arange(q.size(1), device=q.device)[:, None] - torch.arange(q.size(1), device=q.device)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.size(-1) ** -0.5
    scores = scores.masked_fill((behind < 0) | (behind > left), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def _milliseconds(work: Callable[[], object]) -> float:
    work()
    _wait()
    began = time.perf_counter()
    for _ in range(TURNS):
        work()
    _wait()
    return 1000 * (time.perf_counter() - began) / TURNS


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (128, 2048, 4, 128) if device == "cuda" else (4, 1024, 2, 64)
    shape = (*map(int, sys.argv[1:]), *sizes[len(sys.argv) - 1 :])
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    print(f"{device}, capability {kernels.MAJOR}, {dtype}, [rows, context, heads, head_dim] = {list(shape)}")
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    kinds: dict[str, Attend] = {"whole": whole, "ours, eager": ours, "built-in flash": built_in_flash}
    kinds |= {"ours, compiled": torch.compile(ours, dynamic=False), "flash-attn-4": flash_attn_4}
    for left in (shape[1], shape[1] // 2, shape[1] // 4):
        print(f"\na query sees {left} before it")
        print(f"{'kernel':<16}{'first s':>9}{'forward ms':>12}{'both ms':>9}{'error':>11}")
        for name, attend in kinds.items():
            try:
                first, forward, both, error = measure(attend, (q, k, v), left)
            except Exception as reason:  # a kernel that is not there or does not run here is a finding
                print(f"{name:<16} {type(reason).__name__}: {' '.join(str(reason).split())[:90]}")
            else:
                print(f"{name:<16}{first:>9.2f}{forward:>12.2f}{both:>9.2f}{error:>11.1e}")


if __name__ == "__main__":
    main()
