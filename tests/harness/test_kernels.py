"""The attention that scripts ask a hub for: what a window is, values and gradients, and what it allocates."""

import warnings

import kernels
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HUB = "varunneal/flash-attention-3"
ATTEND = kernels.get_kernel(HUB).flash_attn_interface.flash_attn_func

Window = tuple[int, int]


Three = tuple[Tensor, Tensor, Tensor]


def tensors(tokens: int, heads: int, kv_heads: int, size: int = 16, rows: int = 2) -> Three:
    """q, k, v as a script has them, [rows, tokens, heads, size] and so on, in float64."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(rows, tokens, number, size) for number in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


def dense(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: Window, scale: float | None = None
) -> Tensor:
    """The definition, with every product of a query and a key."""
    groups = q.size(2) // k.size(2)
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.size(-1) ** -0.5 if scale is None else scale)
    query, key = torch.arange(q.size(1))[:, None], torch.arange(k.size(1))
    left, right = window
    hidden = ((query - key > left) & (left >= 0)) | ((key - query > right) & (right >= 0))
    if causal:
        hidden |= key > query
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


CASES: list[tuple[int, int, int, bool, Window]] = [
    # tokens, heads, kv_heads, causal, window
    (1, 2, 2, True, (4, 0)),
    (7, 2, 1, True, (-1, -1)),
    (7, 2, 2, True, (0, 0)),
    (33, 4, 2, True, (8, 0)),
    (33, 4, 4, True, (8, 5)),  # causal takes the right side away
    (33, 3, 3, False, (-1, -1)),
    (33, 2, 2, False, (3, 5)),
    (33, 2, 1, False, (-1, 2)),
    (33, 2, 2, False, (4, -1)),
    (255, 2, 2, True, (255, 0)),
    (256, 2, 2, True, (128, 0)),
    (257, 4, 1, True, (64, 0)),
    (700, 2, 2, True, (350, 0)),
    (700, 2, 2, True, (698, 0)),
    (700, 2, 2, True, (699, 0)),
    (700, 2, 1, False, (300, 20)),
]


@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "causal", "window"), CASES)
def test_values_and_gradients_are_those_of_the_definition(
    tokens: int, heads: int, kv_heads: int, causal: bool, window: Window
) -> None:
    inputs = tensors(tokens, heads, kv_heads)
    for x in inputs:
        x.requires_grad_()
    out, expected = ATTEND(*inputs, causal=causal, window_size=window), dense(*inputs, causal, window)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    found = torch.autograd.grad(out, inputs, weights)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, inputs, weights), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("window", [(-1, -1), (100, 0), (400, 0)])
def test_dtypes(dtype: torch.dtype, tolerance: float, window: Window) -> None:
    q, k, v = (x.to(dtype) for x in tensors(600, 4, 2))
    out = ATTEND(q, k, v, causal=True, window_size=window)
    assert out.dtype == dtype and out.is_contiguous() and out.shape == q.shape
    expected = dense(q.double(), k.double(), v.double(), True, window)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_the_values_decide_the_dtype_where_autocast_left_others() -> None:
    q, k, v = tensors(20, 2, 2)
    assert ATTEND(q.float(), k.float(), v.bfloat16(), causal=True).dtype == torch.bfloat16


def test_a_query_sees_itself_and_as_many_before_it_as_the_window_says() -> None:
    q = torch.zeros(1, 600, 1, 8)
    v = torch.zeros(1, 600, 1, 600)
    v[0, :, 0, :] = torch.eye(600)
    share = ATTEND(q, q, v, causal=True, window_size=(3, 0))[0, :, 0]
    assert share[500].nonzero().flatten().tolist() == [497, 498, 499, 500]
    assert share[500, 500].item() == pytest.approx(1 / 4)


def test_scale() -> None:
    inputs = tensors(300, 2, 2)
    for window in ((-1, -1), (50, 0)):
        out = ATTEND(*inputs, softmax_scale=0.5, causal=True, window_size=window)
        torch.testing.assert_close(out, dense(*inputs, True, window, 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [(-1, -1), (90, 0), (300, 0)])
def test_a_row_is_answered_alike_among_other_rows_and_cut_short(dtype: torch.dtype, window: Window) -> None:
    q, k, v = (x.to(dtype) for x in tensors(700, 4, 2, rows=4))
    whole = ATTEND(q, k, v, causal=True, window_size=window)
    for row in range(4):
        alone = ATTEND(*(x[row : row + 1] for x in (q, k, v)), causal=True, window_size=window)
        assert torch.equal(alone[0], whole[row])
    for tokens in (1, 255, 256, 300, 699):
        prefix = ATTEND(*(x[:, :tokens] for x in (q, k, v)), causal=True, window_size=window)
        rounding = torch.finfo(dtype).eps * 4
        torch.testing.assert_close(prefix, whole[:, :tokens], rtol=rounding, atol=rounding)


@pytest.mark.parametrize("window", [(-1, -1), (100, 0)])
def test_it_compiles_into_one_graph(window: Window) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = ATTEND(q, k, v, causal=True, window_size=window)
        return out

    inputs = [x.float().requires_grad_() for x in tensors(600, 4, 2)]
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager")
    out, expected = compiled(*inputs), attend(*inputs)
    torch.testing.assert_close(out, expected)
    found, wanted = (torch.autograd.grad(y.square().sum(), inputs) for y in (out, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements that a mask had."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mask = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **kwargs or {})
        if isinstance(out, Tensor) and out.dtype == torch.bool:
            self.mask = max(self.mask, out.numel())
        return out


def test_no_mask_is_as_large_as_context_times_context() -> None:
    inputs = [x.float() for x in tensors(4096, 1, 1, rows=1)]
    with Largest() as seen:
        ATTEND(*inputs, causal=True, window_size=(100, 0))
    assert 0 < seen.mask <= kernels.BLOCK * (kernels.BLOCK + 100)


@pytest.mark.parametrize("window", [(40, 0), (130, 7)])
def test_flex_attention_computes_the_same(window: Window) -> None:
    """Only what it computes: on the CPU it is not compiled, so it does not skip anything."""
    q, k, v = tensors(300, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow without being compiled
        out = kernels._flex(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *window, None)
    torch.testing.assert_close(out.transpose(1, 2), dense(q, k, v, False, window), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("major", "dtype", "tokens", "head_dim", "supported"),
    [
        (0, torch.bfloat16, 2048, 128, False),
        (7, torch.float16, 2048, 64, False),
        (8, torch.bfloat16, 2048, 64, True),
        (8, torch.float16, 2048, 128, True),
        (8, torch.float32, 2048, 64, False),
        (9, torch.bfloat16, 2048, 128, True),
        (9, torch.bfloat16, 100, 128, False),
        (9, torch.bfloat16, 2048, 96, False),
        (9, torch.bfloat16, 2048, 512, False),
        (10, torch.bfloat16, 2048, 128, True),
        (12, torch.bfloat16, 2048, 256, True),
    ],
)
def test_what_gets_flex_attention(
    major: int, dtype: torch.dtype, tokens: int, head_dim: int, supported: bool
) -> None:
    assert kernels.flex_supports(major, dtype, tokens, head_dim) is supported


# --- what a script asks for ---


@pytest.mark.parametrize("name", kernels.NAMES)
def test_every_known_name_gives_it_in_both_places(name: str) -> None:
    assert kernels.has_kernel(name)
    found = kernels.get_kernel(name, version=1)
    assert found.flash_attn_func is found.flash_attn_interface.flash_attn_func is kernels.flash_attn_func


def test_an_unknown_name_says_what_there_is() -> None:
    assert not kernels.has_kernel("kernels-community/activation")
    with pytest.raises(ValueError, match=r"no kernel 'kernels-community/activation'.*flash-attention-3"):
        kernels.get_kernel("kernels-community/activation")


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((2, 8, 4, 16), (2, 8, 3, 16), (2, 8, 3, 16)),
        ((2, 8, 4, 16), (2, 9, 4, 16), (2, 9, 4, 16)),
        ((2, 8, 4, 16), (2, 8, 4, 8), (2, 8, 4, 8)),
        ((2, 8, 64), (2, 8, 64), (2, 8, 64)),
    ],
)
def test_shapes_that_do_not_fit_are_named(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"q \[{q[0]}, {q[1]}"):
        ATTEND(torch.zeros(q), torch.zeros(k), torch.zeros(v), causal=True)
