"""Replaces the package `kernels`: serves `get_kernel(name)` for flash attention, without a network.

Upstream's train.py takes FlashAttention 3 from the package `kernels`, which downloads a compiled library.
This module replaces it and computes the same with PyTorch's own kernels: the fused causal one for the whole
context; for a window, flex attention in a compiled graph on a GPU that supports it, and elsewhere blocks of
queries with the keys that they can see.
"""

import types

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

NAMES = (
    "kernels-community/flash-attn",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "varunneal/flash-attention-3",
)
"""Names that `get_kernel` knows; all give the same module."""

BLOCK = 256
"""Queries per block when a window is computed in blocks."""

FLEX_TOKENS = 128
"""Block length of flex attention: shorter rows have nothing to skip."""

MAJOR = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
"""Major compute capability of the GPU; 0 without one. A constant, for the benefit of torch.compile."""


def get_kernel(repo_id: str, *_build: object, **_which: object) -> types.ModuleType:
    """A module with `flash_attn_func`, also under `flash_attn_interface`, where some versions have it.

    The requested build (revision, version) is ignored. Raises ValueError for an unknown name.
    """
    if not has_kernel(repo_id):
        raise ValueError(
            f"there is no kernel {repo_id!r} here, and nothing can be downloaded; there is flash attention as"
            f" {', '.join(NAMES)}"
        )
    return _FLASH


def has_kernel(repo_id: str, *_build: object, **_which: object) -> bool:
    """Whether `get_kernel` knows this name."""
    return repo_id in NAMES


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Attention of q [B, T, heads, D] to k and v [B, T, kv_heads, D], as contiguous [B, T, heads, D].

    `heads` is a multiple of `kv_heads`: neighbouring queries share one. `window_size` is how many positions
    to the left and to the right of its own a query sees, negative for all; if `causal`, none to the right.
    `softmax_scale` is 1 / sqrt(D) by default. Raises ValueError if the shapes do not fit.
    """
    _check(q, k, v)
    tokens = q.size(1)
    left, right = (tokens if side < 0 else side for side in window_size)
    if causal:
        right = 0
    # Autocast leaves different inputs in float32 on CPU and CUDA; the values have the dtype the script chose.
    q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
    k, v = _for_each_head(k, q.size(1)), _for_each_head(v, q.size(1))
    if left >= tokens - 1 and (right == 0 or right >= tokens - 1):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=right == 0, scale=softmax_scale)
    elif torch.compiler.is_compiling() and q.is_cuda and flex_supports(MAJOR, q.dtype, tokens, q.size(3)):
        out = _flex(q, k, v, left, right, softmax_scale)
    else:
        out = _by_blocks(q, k, v, left, right, softmax_scale)
    return out.transpose(1, 2).contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ValueError."""
    fits = q.dim() == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2] and k.size(2) == v.size(2)
    if not fits or q.size(2) % k.size(2) != 0 or q.size(3) != k.size(3):
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(
            f"q must be [B, T, heads, D] and k, v [B, T, kv_heads, D] of the same rows: {shapes}"
        )


def _for_each_head(x: Tensor, heads: int) -> Tensor:
    """[B, kv_heads, T, D] → [B, heads, T, D], each repeated for the queries that share it."""
    return x if x.size(1) == heads else x.repeat_interleave(heads // x.size(1), dim=1)


def flex_supports(major: int, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether flex attention works, and pays off, on a card of compute capability `major`.

    Triton supports cards from Ampere on. In float32, tiles exceed the shared memory of smaller cards.
    """
    built = dtype in (torch.bfloat16, torch.float16) and head_dim in (16, 32, 64, 128, 256)
    return major >= 8 and built and tokens >= FLEX_TOKENS


def _flex(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, scale: float | None) -> Tensor:
    """A window as a block-sparse mask, with which flex attention skips work; slow unless compiled."""

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key <= left) & (key - query <= right)

    mask = create_block_mask(visible, None, None, q.size(2), k.size(2), device=q.device.type)
    out = flex_attention(q, k, v, block_mask=mask, scale=scale)
    assert isinstance(out, Tensor)
    return out


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, scale: float | None) -> Tensor:
    """A window in blocks of queries, each with the keys that its queries see.

    Blocks do not depend on the row's length or on other rows, so a prefix is computed exactly as in the row.
    """
    tokens, done = q.size(2), []
    for first in range(0, tokens, BLOCK):
        end = min(first + BLOCK, tokens)
        from_key, to_key = max(0, first - left), min(tokens, end + right)
        query = torch.arange(first, end, device=q.device)[:, None]
        key = torch.arange(from_key, to_key, device=q.device)
        seen = (query - key <= left) & (key - query <= right)
        keys, values = k[:, :, from_key:to_key], v[:, :, from_key:to_key]
        done.append(
            F.scaled_dot_product_attention(q[:, :, first:end], keys, values, attn_mask=seen, scale=scale)
        )
    return torch.cat(done, 2)


_FLASH = types.ModuleType("flash_attn_interface", flash_attn_func.__doc__)
_FLASH.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
_FLASH.flash_attn_interface = _FLASH  # type: ignore[attr-defined]
