"""Train one GPT for as long as the budget lasts and save it: the baseline every experiment starts from.

The file reads from top to bottom: constants, hardware, model, optimizer, schedule, loop, summary. It runs on
one CUDA device, in the dtype and the way that suit the card, or on the CPU (float32, not compiled).

What it prints about itself is a claim. The score is measured elsewhere, on the checkpoint, by a process that
imports this file and calls `build_model()`: importing must stay free of side effects.
"""

import contextlib
import functools
import gc
import importlib
import importlib.util
import itertools
import math
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

# Both are read when torch is imported. The first lets freed CUDA blocks be merged. The second makes waiting
# CPU threads sleep instead of spin: if another process needs the CPU, spinning makes a step ten times slower.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from prepare import (
    EVAL_TOKENS,
    LEAVE_SECONDS,
    MAX_SEQ_LEN,
    SCALE,
    SEED,
    VOCAB_SIZE,
    WALL_SECONDS,
    Tokenizer,
    evaluate_bpb,
    make_dataloader,
    report,
    save_checkpoint,
    time_left,
)

# --- tunable constants -------------------------------------------------------
# A name ending in _CPU or _GPU applies only at that scale of the data, every other name at both.
# Model
DEPTH_CPU = 2  # transformer blocks. choices: 1, 2, 3, 4
DEPTH_GPU = 8  # transformer blocks. choices: 6, 7, 8, 9, 10, 12
WIDTH_CPU = 64  # channels of the residual stream. choices: 64, 128, 192
WIDTH_GPU = 512  # channels of the residual stream. choices: 384, 512, 640, 768
HEAD_DIM_CPU = 64  # channels of an attention head. choices: 32, 64
HEAD_DIM_GPU = 128  # channels of an attention head. choices: 64, 128
MLP_RATIO = 4  # hidden channels of the MLP per channel of the stream. choices: 2, 3, 4, 6
PAIR_ROWS_CPU = 32768  # rows of the table of token pairs. choices: 8192, 16384, 32768, 65536
PAIR_ROWS_GPU = 65536  # rows of the table of token pairs. choices: 16384, 32768, 65536, 131072
WINDOW_PATTERN_GPU = "SSSL"  # by layer: L whole context, S short window. choices: "L", "SL", "SSL", "SSSL"
SHORT_WINDOW_DIVISOR_GPU = 4  # a short window is the context over this. choices: 2, 4, 8
ROTARY_BASE = 10000.0  # longest rotary wavelength over 2 pi, tokens. range: 1e2..1e6 log
LOGIT_SOFTCAP_CPU = 0.0  # bound on the magnitude of a logit; 0 none, a fifth faster. choices: 0.0, 15.0, 30.0
LOGIT_SOFTCAP_GPU = 15.0  # the same; compiled it costs nothing. range: 8..40
# Batch
BATCH_TOKENS_CPU = 2048  # tokens per optimizer step. choices: 512, 1024, 2048, 4096
BATCH_TOKENS_GPU = 524288  # tokens per optimizer step. choices: 131072, 262144, 524288
# Optimizer
MATRIX_LR_CPU = 0.02  # Muon, matrices inside the blocks. range: 5e-3..1e-1 log
MATRIX_LR_GPU = 0.04  # Muon, matrices inside the blocks. range: 5e-3..1e-1 log
EMBEDDING_LR_CPU = 1.0  # AdamW, token, pair and value embeddings. range: 0.1..3 log
EMBEDDING_LR_GPU = 0.6  # AdamW, token, pair and value embeddings. range: 0.1..3 log
UNEMBEDDING_LR = 0.004  # AdamW, output projection. range: 1e-3..2e-2 log
SCALAR_LR = 0.5  # AdamW, mixing scalars. range: 0.05..2 log
WEIGHT_DECAY = 0.2  # Muon, cautious, falling to zero over the run. range: 0.0..0.5
MUON_MOMENTUM = 0.95  # reached after a warm-up. range: 0.85..0.98
ADAM_BETA1 = 0.8  # range: 0.5..0.95
ADAM_BETA2 = 0.95  # range: 0.9..0.995
# Schedule, in fractions of the training time
WARMUP_FRACTION = 0.0  # the learning rate rises from zero. range: 0.0..0.1
WARMDOWN_FRACTION = 0.6  # the learning rate falls to zero at the end. range: 0.2..1.0
# --- end of tunable constants ------------------------------------------------

GPU_SCALE = SCALE == "gpu"
DEPTH = DEPTH_GPU if GPU_SCALE else DEPTH_CPU
WIDTH = WIDTH_GPU if GPU_SCALE else WIDTH_CPU
HEAD_DIM = HEAD_DIM_GPU if GPU_SCALE else HEAD_DIM_CPU
PAIR_ROWS = PAIR_ROWS_GPU if GPU_SCALE else PAIR_ROWS_CPU
WINDOW_PATTERN = WINDOW_PATTERN_GPU if GPU_SCALE else "L"  # nothing to save in a short context
LOGIT_SOFTCAP = LOGIT_SOFTCAP_GPU if GPU_SCALE else LOGIT_SOFTCAP_CPU
BATCH_TOKENS = BATCH_TOKENS_GPU if GPU_SCALE else BATCH_TOKENS_CPU
MATRIX_LR = MATRIX_LR_GPU if GPU_SCALE else MATRIX_LR_CPU
EMBEDDING_LR = EMBEDDING_LR_GPU if GPU_SCALE else EMBEDDING_LR_CPU

GATE_CHANNELS = 32  # leading channels of the stream that steer the value-embedding gates
VARIANCE_BETA = 0.95  # memory of Muon's per-row variance
PEAK_FLOPS = 989.5e12  # dense bfloat16 of an H100 or H200, per second; mfu_percent is a share of it

# --- hardware -----------------------------------------------------------------

Capability = tuple[
    int, int
]  # NVIDIA's number for what a card can do: 9.0 Hopper, 8.x Ampere and Ada, 7.5 Turing


def cuda_dtype(capability: Capability | None) -> torch.dtype:
    """bfloat16 where the card has it, float16 where it has tensor cores, else float32; None: no card."""
    if capability is None or capability < (7, 0):
        return torch.float32
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAPABILITY = torch.cuda.get_device_capability() if DEVICE.type == "cuda" else None
CUDA_DTYPE = cuda_dtype(CAPABILITY)
autocast_ctx = contextlib.nullcontext()  # for the scorer, which else casts to bfloat16; the model casts


@dataclass(frozen=True)
class Way:
    """How the model computes: with its parts compiled, with flex attention for short windows."""

    compiled: bool
    flex: bool


PLAIN = Way(compiled=False, flex=False)


def ways(capability: Capability | None, compiler: bool) -> tuple[Way, ...]:
    """What to try on a card, the fastest first; the last one works everywhere.

    Triton, which torch.compile writes kernels in, supports cards from 8.0 on.
    """
    if capability is None or capability < (8, 0) or not compiler:
        return (PLAIN,)
    return Way(compiled=True, flex=True), Way(compiled=True, flex=False), PLAIN


def has_compiler() -> bool:
    """Whether there is Triton, and a C compiler for its launchers."""
    names = (os.environ.get("CC", "gcc"), "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, names))


MAX_ROWS = 128  # per forward pass: more keep an H100 no busier
FREE_SHARE = 0.85  # of the free memory to plan with; the rest is for cuBLAS and fragmentation


def row_bytes(config: "ModelConfig", dtype: torch.dtype, compiled: bool) -> int:
    """Estimated peak memory of one row of the context in a forward and backward pass, bytes.

    `numbers` values in the compute dtype per layer and channel are kept for the backward pass, and
    `loss_bytes` bytes per vocabulary entry are alive at once in the loss. Compiled, this gives 47 GB for 128
    rows at the default size, where an H200 used 45; the uncompiled numbers were counted on a CPU.
    """
    numbers, loss_bytes = (6 + 2 * MLP_RATIO, 8) if compiled else (18 + 2 * MLP_RATIO, 24)
    layers = config.depth * config.width * numbers * dtype.itemsize
    return config.context * (layers + config.vocab_size * loss_bytes)


def rows_that_fit(room: float, each: float, wanted: int) -> int:
    """How many of `wanted` rows to take at a time if each takes `each` bytes of `room`; at least 1.

    A divisor of `wanted` if there is a good one; otherwise the last pass does a few rows more.
    """
    most = max(1, min(MAX_ROWS, wanted, int(room / each)))
    divisor = max(rows for rows in range(1, most + 1) if wanted % rows == 0)
    return divisor if 2 * divisor > most else -(-wanted // -(-wanted // most))


def free_memory() -> float:
    """Bytes of the device that this process can still take, its own limit included."""
    free, total = torch.cuda.mem_get_info()
    limit = torch.cuda.get_per_process_memory_fraction() * total
    return min(free, limit - torch.cuda.memory_reserved())


def start_device() -> None:
    """Let the driver create its context while Python imports the compiler: both take seconds."""
    if DEVICE.type == "cuda":
        context = threading.Thread(target=torch.zeros, args=(1,), kwargs={"device": DEVICE})
        context.start()
        if ways(CAPABILITY, has_compiler())[0].compiled:
            importlib.import_module("torch._inductor.compile_fx")
        context.join()


# --- model --------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """The architecture; `windows[i]` is how many positions, its own included, a query of layer i sees."""

    vocab_size: int
    pair_rows: int
    context: int
    width: int
    head_dim: int
    windows: tuple[int, ...]

    @property
    def depth(self) -> int:
        return len(self.windows)

    @property
    def heads(self) -> int:
        return self.width // self.head_dim


def windows_of(pattern: str, depth: int, context: int) -> tuple[int, ...]:
    """Repeat a pattern of L (whole context) and S (short window) over the layers; the last one is L."""
    spans = {"L": context, "S": max(1, context // SHORT_WINDOW_DIVISOR_GPU)}
    return (*(spans[pattern[layer % len(pattern)]] for layer in range(depth - 1)), context)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in on x's device: on CUDA the one that suits the card, float32 on the CPU."""
    return CUDA_DTYPE if x.is_cuda else torch.float32


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without learned gain."""
    return F.rms_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """A bias-free linear map: kept in float32, applied in the dtype of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Embedding):
    """A lookup table: kept in float32, read in the compute dtype, which halves the traffic on CUDA."""

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight.to(compute_dtype(idx)))


def rotary_tables(context: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, float32 [context, 1, head_dim / 2] (arXiv:2104.09864)."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim / 2]) of x [B, T, heads, head_dim] by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def window_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """bool [queries, keys], True where a query sees a key: itself and the `window` - 1 before it.

    The last query and the last key are at the same position.
    """
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    age = position - torch.arange(keys, device=device)
    return (age >= 0) & (age < window)


@functools.cache
def window_blocks(tokens: int, window: int, device: torch.device) -> BlockMask:
    """The same mask, T by T, in block-sparse form, with which flex attention skips work."""

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    return create_block_mask(visible, None, None, tokens, tokens, device=device.type)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention within a window of fewer than all T tokens, its work and memory linear in T.

    The first `window` queries need no mask but the causal one. The others go in blocks as long as the window:
    a block sees its own keys and those of the block before, through one mask that all of them share. What
    pads the last block lies in the future of every query that counts.
    """
    blocks = -(-q.size(2) // window) - 1  # after the first one
    first = [x[:, :, :window] for x in (q, k, v)]
    q, k, v = (F.pad(x, (0, 0, 0, (blocks + 1) * window - x.size(2))) for x in (q, k, v))
    queries = q[:, :, window:].unflatten(2, (blocks, window)).transpose(1, 2).flatten(0, 1)
    keys, values = (x.unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3).flatten(0, 1) for x in (k, v))
    mask = window_mask(window, 2 * window, window, q.device)
    others = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    others = others.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)
    return torch.cat((F.scaled_dot_product_attention(*first, is_causal=True), others), dim=2)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, blocks: BlockMask | None = None) -> Tensor:
    """Causal attention within a window; q, k, v and the result are [B, heads, T, head_dim].

    Whole-context layers use the fused causal kernel. It has no windows and would compute the whole triangle,
    so short windows use flex attention if there is a mask for it (it has to be compiled), and blocks
    otherwise.
    """
    tokens = q.size(2)
    if window >= tokens:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if blocks is not None:
        out = flex_attention(q, k, v, block_mask=blocks)
        assert isinstance(out, Tensor)
        return out
    return attend_in_blocks(q, k, v, window)[:, :, :tokens]


def pair_row(idx: Tensor, rows: int) -> Tensor:
    """The row of a hashed table for each token and the one before it: int64 [B, T], 0 to rows - 1.

    The multipliers are arbitrary odd numbers. Pairs may share a row; frequent ones win it.
    """
    before = F.pad(idx[:, :-1], (1, 0))
    return (36313 * before + 27191 * idx) % rows


class Places(NamedTuple):
    """Positional data for attention, shared by all layers."""

    cos: Tensor
    sin: Tensor
    blocks: BlockMask | None  # of the short window, for flex attention


class Attention(nn.Module):
    """Self-attention with rotary positions, normalised queries and keys, and gated value embeddings."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.window = config.windows[layer]
        self.query = Linear(config.width, config.width)
        self.key = Linear(config.width, config.width)
        self.value = Linear(config.width, config.width)
        self.out = Linear(config.width, config.width)
        self.gate = Linear(GATE_CHANNELS, config.heads) if has_value_embedding(layer, config.depth) else None

    def forward(self, x: Tensor, extra_value: Tensor | None, places: Places) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.query(x).view(heads), self.key(x).view(heads), self.value(x).view(heads)
        if self.gate is not None and extra_value is not None:
            # A second value per token that skips the layers below (arXiv:2410.17897), admitted head by head.
            gate = 2 * torch.sigmoid(self.gate(x[..., :GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * extra_value.view(heads)
        q, k = (norm(rotate(x, places.cos, places.sin)).transpose(1, 2) for x in (q, k))
        mixed = attend(q, k, v.transpose(1, 2), self.window, places.blocks)
        x = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x


def has_value_embedding(layer: int, depth: int) -> bool:
    """Every second layer has one, the last layer always."""
    return (depth - 1 - layer) % 2 == 0


class MLP(nn.Module):
    """Two linear maps around a squared ReLU (arXiv:2109.08668)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = Linear(width, MLP_RATIO * width)
        self.down = Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.relu(self.up(x)).square())
        return x


class Block(nn.Module):
    """One pre-norm layer: attention, then MLP, each added to the stream.

    First the stream is scaled by `stream`, and its start, scaled by `skip`, is added again.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config.width)

    def forward(
        self,
        x: Tensor,
        start: Tensor,
        stream: Tensor,
        skip: Tensor,
        extra_value: Tensor | None,
        places: Places,
    ) -> Tensor:
        x = stream * x + skip * start
        x = x + self.attention(norm(x), extra_value, places)
        x = x + self.mlp(norm(x))
        return x


class Stem(nn.Module):
    """The start of the stream: each token's embedding plus that of the pair it ends."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.width)
        self.pair_embedding = Embedding(config.pair_rows, config.width)

    def forward(self, idx: Tensor) -> Tensor:
        pairs = pair_row(idx, self.pair_embedding.num_embeddings)
        x = norm(self.embedding(idx) + self.pair_embedding(pairs))
        return x


class Head(nn.Module):
    """The stream's end: float32 logits [B, T, vocabulary], or given targets their nats, float32 [B * T]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.unembedding = Linear(config.width, config.vocab_size)

    def forward(self, x: Tensor, targets: Tensor | None) -> Tensor:
        logits: Tensor = self.unembedding(norm(x)).float()
        if LOGIT_SOFTCAP > 0:
            logits = LOGIT_SOFTCAP * torch.tanh(logits / LOGIT_SOFTCAP)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")


INITIAL_STD = {
    "stem.embedding.weight": 1.0,
    "stem.pair_embedding.weight": 0.1,
    "head.unembedding.weight": 0.001,
}


class GPT(nn.Module):
    """Decoder-only transformer.

    `model(idx)` maps int64 tokens [B, T], T at most the context, to float32 logits [B, T, vocabulary];
    `model(idx, targets, reduction)` to the cross-entropy in nats, targets of -1 ignored.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): Embedding(config.vocab_size, config.width)
                for layer in range(config.depth)
                if has_value_embedding(layer, config.depth)
            }
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.head = Head(config)
        self.stream_scale = nn.Parameter(torch.ones(config.depth))  # what a layer keeps of the stream
        self.skip_scale = nn.Parameter(
            torch.full((config.depth,), 0.1)
        )  # what it adds of the embedding again
        cos, sin = rotary_tables(config.context, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.way = PLAIN
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Every block starts as the identity and every prediction as nearly uniform."""
        bound = math.sqrt(3 / self.config.width)  # uniform, with a standard deviation of 1 / sqrt(width)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight", "gate.weight")):
                nn.init.zeros_(parameter)
            elif name in INITIAL_STD:
                nn.init.normal_(parameter, std=INITIAL_STD[name])
            elif parameter.ndim == 2:
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        learning = torch.is_grad_enabled()
        # The parts were compiled for training; a pass without gradients would recompile them.
        with torch.enable_grad() if self.way.compiled else contextlib.nullcontext():
            places = self.places(idx)
            start = self.stem(idx)
            x = start.view_as(start)  # the same tensor passed twice would compile another variant
            scales = zip(self.stream_scale.unbind(), self.skip_scale.unbind(), strict=True)
            for layer, (block, (stream, skip)) in enumerate(zip(self.blocks, scales, strict=True)):
                name = str(layer)
                extra_value = self.value_embeddings[name](idx) if name in self.value_embeddings else None
                x = block(x, start, stream, skip, extra_value, places)
            out: Tensor = self.head(x, targets)
        out = out if learning else out.detach()
        if targets is None or reduction == "none":
            return out
        return out.sum() / (targets != -1).sum() if reduction == "mean" else out.sum()

    def places(self, idx: Tensor) -> Places:
        """The positions of idx [B, T]: rotary tables in the compute dtype, and the mask of a short window."""
        tokens, dtype = idx.size(1), compute_dtype(idx)
        window = min(self.config.windows)
        blocks = window_blocks(tokens, window, idx.device) if self.way.flex and window < tokens else None
        return Places(self.cos[:tokens].to(dtype), self.sin[:tokens].to(dtype), blocks)

    def go(self, way: Way) -> None:
        """Compute in this way from now on.

        The parts are compiled, not the whole: layers that differ only in their weights share one graph, so
        that eight of them cost no more than the two or three that differ otherwise.
        """
        self.way = way
        for part in (self.stem, *self.blocks, self.head):
            part._compiled_call_impl = None
            if way.compiled:
                part.compile(dynamic=False, fullgraph=True)

    def flops_per_token(self) -> float:
        """Training FLOPs per token: 6 a weight in a product, 12 a channel attended to (arXiv:2204.02311)."""
        weights = sum(p.numel() for p in self.blocks.parameters()) + self.head.unembedding.weight.numel()
        return 6 * weights + 12 * self.config.width * sum(self.config.windows)


def build_model() -> GPT:
    """A fresh model, on the default device, with the same weights on every call."""
    torch.manual_seed(SEED)
    windows = windows_of(WINDOW_PATTERN, DEPTH, MAX_SEQ_LEN)
    return GPT(ModelConfig(VOCAB_SIZE, PAIR_ROWS, MAX_SEQ_LEN, WIDTH, HEAD_DIM, windows))


# --- optimizer ----------------------------------------------------------------

# One row per iteration: the odd quintic that best moves all singular values towards one, given the result of
# the rows before ("Polar Express", arXiv:2505.16932, with its safety factor).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def frobenius(matrices: Tensor) -> Tensor:
    """Norm of each of [N, rows, columns], as [N, 1, 1]."""
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    return norms


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to each of [N, rows, columns], roughly; in the compute dtype."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = (x / (1.02 * frobenius(x) + 1e-6)).to(compute_dtype(x))
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def even_out(update: Tensor, variance: Tensor, beta: float) -> Tensor:
    """Divide each row (or column) of the update by its running RMS; the norm stays (arXiv:2510.05491).

    `variance` [N, rows, 1] or [N, 1, columns] is the running mean square; it is advanced in place.
    """
    over = -1 if variance.size(-1) == 1 else -2
    variance.lerp_(update.square().mean(dim=over, keepdim=True), 1 - beta)
    scaled = update * variance.clamp_min(1e-10).rsqrt()
    return scaled * (frobenius(update) / frobenius(scaled).clamp_min(1e-10))


def muon_update(
    weights: Tensor,
    gradients: Tensor,
    velocity: Tensor,
    variance: Tensor,
    rate: float,
    momentum: float,
    decay: float,
) -> None:
    """One Muon step on matrices of one shape [N, rows, columns], in place.

    The method is from kellerjordan.github.io/posts/muon, here with Nesterov momentum.
    """
    velocity.lerp_(gradients, 1 - momentum)
    update = even_out(orthogonalise(gradients.lerp(velocity, momentum)).float(), variance, VARIANCE_BETA)
    shrink = weights * (update * weights >= 0)  # cautious: only decay what the step shrinks anyway
    weights.sub_(update.add_(shrink, alpha=decay), alpha=rate)


Group = dict[str, Any]  # parameters, their current rates, and the optimizer's state


class Muon:
    """Momentum whose every step on a matrix is orthogonalised; matrices of one shape step together.

    Not compiled: that takes seconds and would save about one second per run.
    """

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        shapes = sorted({tuple(p.shape) for p in matrices})
        self.param_groups = [self.group([p for p in matrices if tuple(p.shape) == shape]) for shape in shapes]

    def group(self, matrices: list[nn.Parameter]) -> Group:
        """The group of N matrices of one shape."""
        rows, columns = matrices[0].shape
        around = (len(matrices), rows, 1) if rows >= columns else (len(matrices), 1, columns)
        return {
            "params": matrices,
            "lr": MATRIX_LR,
            "momentum": MUON_MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "velocity": matrices[0].new_zeros(len(matrices), rows, columns),
            "variance": matrices[0].new_zeros(around),
        }

    @torch.no_grad()
    def step(self) -> None:
        """Advance every matrix; each has a gradient."""
        for group in self.param_groups:
            parameters = group["params"]
            weights = torch.stack(parameters)
            gradients = torch.stack([p.grad for p in parameters])
            _, rows, columns = weights.shape
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5  # tall matrices change their output as much
            memory = group["velocity"], group["variance"]
            muon_update(weights, gradients, *memory, rate, group["momentum"], group["weight_decay"])
            torch._foreach_copy_(parameters, list(weights.unbind()))


class AdamW:
    """torch's fused AdamW without decay and without torch.optim, whose imports take 2.5 s on a CPU."""

    def __init__(self, rates: list[tuple[list[nn.Parameter], float]]) -> None:
        self.param_groups: list[Group] = [
            {
                "params": parameters,
                "lr": rate,
                "mean": [torch.zeros_like(p) for p in parameters],
                "square": [torch.zeros_like(p) for p in parameters],
                "steps": [torch.zeros((), device=p.device) for p in parameters],
            }
            for parameters, rate in rates
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Advance every parameter; each has a gradient."""
        for group in self.param_groups:
            torch._foreach_add_(group["steps"], 1)
            torch._fused_adamw_(
                group["params"],
                [p.grad for p in group["params"]],
                group["mean"],
                group["square"],
                [],
                group["steps"],
                lr=group["lr"],
                beta1=ADAM_BETA1,
                beta2=ADAM_BETA2,
                weight_decay=0.0,
                eps=1e-10,
                amsgrad=False,
                maximize=False,
            )


Optimizers = tuple[Muon, AdamW]


def build_optimizers(model: GPT) -> Optimizers:
    """Muon for the matrices inside the blocks, AdamW for embeddings, output projection and scalars.

    AdamW's learning rates were tuned at a width of 768 and scale with 1 / sqrt(width).
    """
    scale = (768 / model.config.width) ** 0.5
    adamw = AdamW(
        [
            ([model.head.unembedding.weight], UNEMBEDDING_LR * scale),
            ([m.weight for m in model.modules() if isinstance(m, Embedding)], EMBEDDING_LR * scale),
            ([model.stream_scale], SCALAR_LR * 0.01),  # a gain on the whole stream is sensitive
            ([model.skip_scale], SCALAR_LR),
        ]
    )
    optimizers = Muon(list(model.blocks.parameters())), adamw
    for group in groups_of(optimizers):
        group["peak_lr"] = group["lr"]
    return optimizers


def groups_of(optimizers: Optimizers) -> Iterator[Group]:
    """The parameter groups of all optimizers."""
    return itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers)


# --- schedule -----------------------------------------------------------------

SETTLING_STEPS = 3  # steps before the schedule begins: compilation, allocation, first touch
MOMENTUM_WARMUP_FRACTION = 0.3  # of the training time
LINE_EVERY = 0.02  # of the training time
SAVE_EVERY = 0.2  # of the training time: a kill at any moment then leaves a recent checkpoint
EVALUATION_SHARE = 0.1  # of the training time: most that the printed estimate may cost
MARGIN_SHARE = 0.005  # of the time left: a margin in case things go slower than measured


@dataclass
class Clock:
    """The run's progress through the wall-clock time left to it, as measured by itself; seconds.

    Progress is zero until `start`, then reaches one where the reserve for evaluating and saving begins.
    """

    reserve: float
    step_seconds: float = 0.0
    available: float = math.inf

    def start(self, reserve: float) -> None:
        """Begin the schedule, which ends where the reserve begins."""
        self.reserve, self.available = reserve, max(1e-3, time_left() - reserve)

    def observe_step(self, seconds: float) -> None:
        """Track a decaying maximum: a hiccup counts, but not for ever."""
        self.step_seconds = max(seconds, 0.9 * self.step_seconds)

    @property
    def progress(self) -> float:
        """Fraction of the training time that is spent, 0 to 1."""
        if math.isinf(self.available):
            return 0.0
        return min(1.0, max(0.0, 1 - (time_left() - self.reserve) / self.available))

    @property
    def over(self) -> bool:
        """Whether one more step would run into the reserve."""
        return time_left() - self.step_seconds < self.reserve


def lr_multiplier(progress: float) -> float:
    """Trapezoid over the training time: up from zero, flat at one, down to zero."""
    rise = progress / WARMUP_FRACTION if WARMUP_FRACTION > 0 else 1.0
    fall = (1 - progress) / WARMDOWN_FRACTION if WARMDOWN_FRACTION > 0 else 1.0
    return min(1.0, rise, fall)


def set_rates(optimizers: Optimizers, progress: float) -> None:
    """Set every parameter group's rates for this moment."""
    for group in groups_of(optimizers):
        group["lr"] = group["peak_lr"] * lr_multiplier(progress)
        if "momentum" in group:
            warmth = min(1.0, progress / MOMENTUM_WARMUP_FRACTION)
            group["momentum"] = MUON_MOMENTUM - (1 - warmth) * 0.1
            group["weight_decay"] = WEIGHT_DECAY * (1 - progress)


# --- run ----------------------------------------------------------------------

Batch = tuple[Tensor, Tensor, int]  # inputs, targets, epoch


@dataclass
class Tally:
    """What a run has done; times in seconds, moments on the clock of time.monotonic()."""

    rows: int  # per forward pass
    passes: int  # per optimizer step
    compile_seconds: float  # of the warm-up, plus what the first steps took longer than later ones
    startup_seconds: float = math.nan  # from the start of the process to the first batch, compiling aside
    began: float = math.nan
    settled: float = math.nan  # when the schedule began
    ended: float = math.nan
    steps: int = 0
    step_seconds: float = 0.0

    @property
    def step_tokens(self) -> int:
        return self.rows * self.passes * MAX_SEQ_LEN


def elapsed() -> float:
    """Seconds since the run was started, imports included."""
    return WALL_SECONDS - time_left()


def note(what: str) -> None:
    """Print a step of the start-up, with its time."""
    print(f"{elapsed():6.1f} s  {what}", flush=True)


def plan_rows(model: GPT, way: Way, wanted: int) -> int:
    """Rows per forward pass: as many of a step's as the device has memory for."""
    if DEVICE.type == "cpu":
        return rows_that_fit(MAX_ROWS, 1, wanted)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    room = FREE_SHARE * free_memory() - gradients
    return rows_that_fit(room, row_bytes(model.config, CUDA_DTYPE, way.compiled), wanted)


def attempt(model: GPT, rows: int) -> type[Exception] | None:
    """One forward and backward pass over random tokens; the class of the exception it raised, if any."""
    tokens = torch.randint(model.config.vocab_size, (rows, model.config.context), device=model.cos.device)
    try:
        model(tokens, tokens).backward()
    except Exception as error:
        note(f"{model.way} with {rows} rows: {type(error).__name__}: {str(error).strip()[:200]}")
        return type(error)
    finally:
        model.zero_grad()
    return None


def warm_up(model: GPT, candidates: tuple[Way, ...], wanted: int) -> int:
    """Compile the model in the first way that works here; returns how many rows at a time work.

    A compiler can fail in many ways on an untested card, and the memory estimate may be wrong. If the last
    way fails as well, training will fail and say why.
    """
    left, rows = list(candidates), plan_rows(model, candidates[0], wanted)
    while True:
        model.go(left[0])
        failure = attempt(model, rows)
        if failure is not None and issubclass(failure, torch.OutOfMemoryError) and rows > 1:
            rows = rows_that_fit(rows - 1, 1, wanted)
        elif failure is not None and len(left) > 1:
            del left[0]
            rows = min(rows, plan_rows(model, left[0], wanted))
        else:
            return rows
        torch.compiler.reset()
        torch.cuda.empty_cache()


def train_step(
    model: GPT,
    optimizers: Optimizers,
    scaler: GradScaler,
    batch: Batch,
    batches: Iterator[Batch],
    passes: int,
) -> tuple[Tensor, Batch]:
    """Accumulate the gradients of all passes, then step; returns the last loss, not awaited, and next batch.

    The next batch is packed as soon as the device is busy with this one.
    """
    for _ in range(passes):
        inputs, targets, _ = batch
        loss = model(inputs, targets)
        scaler.scale(loss / passes).backward()  # type: ignore[no-untyped-call]
        batch = next(batches)
    for optimizer in optimizers:
        scaler.step(optimizer)  # type: ignore[arg-type]  # all it needs is groups and a step
    scaler.update()
    model.zero_grad()
    return loss.detach(), batch


def finite(loss: Tensor, step: int) -> float:
    """The loss as a number; if training has diverged, ends the process with status 1 and one line."""
    value = loss.item()
    if not math.isfinite(value):
        sys.exit(f"training diverged: the loss of step {step} is {value}")
    return value


def timed_save(model: nn.Module) -> float:
    """Save a checkpoint; returns the seconds it took."""
    began = time.monotonic()
    save_checkpoint(model)
    return time.monotonic() - began


def evaluation_seconds(step_seconds: float, step_tokens: int) -> float:
    """Estimated seconds of evaluate_bpb: a forward pass takes about a third of a training step."""
    return 0.4 * step_seconds * EVAL_TOKENS / step_tokens


def end_reserve(step_seconds: float, step_tokens: int, save_seconds: float) -> float:
    """Seconds to reserve for the end: exit, two saves, and the evaluation if that is cheap enough."""
    evaluation = evaluation_seconds(step_seconds, step_tokens)
    if evaluation > EVALUATION_SHARE * time_left():
        evaluation = 0.0
    return LEAVE_SECONDS + MARGIN_SHARE * time_left() + 2 * save_seconds + evaluation


def train(model: GPT, optimizers: Optimizers, batches: Iterator[Batch], tally: Tally) -> None:
    """Train the model in place until the time is up, saving on the way."""
    scaler = GradScaler(DEVICE.type, enabled=compute_dtype(model.cos) == torch.float16)
    batch, next_save, next_line = next(batches), SAVE_EVERY, 0.0
    note("first batch")
    clock, tally.began = Clock(LEAVE_SECONDS), time.monotonic()
    tally.startup_seconds = elapsed() - tally.compile_seconds
    while not clock.over:
        began, progress = time.monotonic(), clock.progress
        set_rates(optimizers, progress)
        loss, batch = train_step(model, optimizers, scaler, batch, batches, tally.passes)
        loss_now = finite(loss, tally.steps)
        report(tally.steps, loss_now)
        if tally.steps > 0:  # the first step is slow: it touches everything for the first time
            clock.observe_step(time.monotonic() - began)
        tally.steps += 1
        if tally.steps == SETTLING_STEPS:
            settle(model, clock, tally)
        if progress >= next_save:
            save_checkpoint(model)
            next_save += SAVE_EVERY
        if tally.steps > SETTLING_STEPS and progress >= next_line:
            pace = f"{1000 * clock.step_seconds:.0f} ms  {time_left():.0f} s left"
            print(f"step {tally.steps:5d} ({progress:4.0%})  loss {loss_now:.4f}  {pace}", flush=True)
            next_line += LINE_EVERY
    tally.ended, tally.step_seconds = time.monotonic(), clock.step_seconds


def settle(model: GPT, clock: Clock, tally: Tally) -> None:
    """One-off costs are over: measure them, save for the first time, begin the schedule."""
    tally.compile_seconds += max(0.0, time.monotonic() - tally.began - SETTLING_STEPS * clock.step_seconds)
    collect_garbage_never_again()
    clock.start(end_reserve(clock.step_seconds, tally.step_tokens, timed_save(model)))
    tally.settled = time.monotonic()
    note("settled")


def collect_garbage_never_again() -> None:
    """Collect once, then never again: a pause can take half a second, and a run is too short to leak much."""
    gc.collect()
    gc.freeze()
    gc.disable()


def peak_memory_mb(cuda: bool) -> float:
    """Peak memory of the device, MiB; on the CPU, of the process."""
    if cuda:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def print_summary(model: GPT, tally: Tally, val_bpb: float) -> None:
    """Print the run's claim about itself in upstream's format; unknown values, NaN, are left out."""
    cuda = DEVICE.type == "cuda"
    settled_flops = model.flops_per_token() * tally.step_tokens * max(0, tally.steps - SETTLING_STEPS)
    mfu = 100 * settled_flops / (tally.ended - tally.settled) / PEAK_FLOPS if cuda else 0.0
    lines = {
        "val_bpb": f"{val_bpb:.6f}",
        "training_seconds": f"{tally.ended - tally.began:.1f}",
        "total_seconds": f"{elapsed():.1f}",
        "startup_seconds": f"{tally.startup_seconds:.1f}",
        "compile_seconds": f"{tally.compile_seconds:.1f}",
        "peak_vram_mb": f"{peak_memory_mb(cuda):.1f}",
        "mfu_percent": f"{mfu:.2f}",
        "total_tokens_M": f"{tally.steps * tally.step_tokens / 1e6:.1f}",
        "num_steps": f"{tally.steps}",
        "num_params_M": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
        "depth": f"{DEPTH}",
    }
    print("---")
    for key, value in lines.items():
        if value != "nan":
            print(f"{key + ':':<18}{value}", flush=True)


def leave() -> NoReturn:
    """Exit at once: shutting down an interpreter with threads and a CUDA context takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """Train, save, estimate if there is time, report."""
    note("imported")
    torch.set_float32_matmul_precision("high")
    tokenizer = Tokenizer.from_directory()
    start_device()
    note(f"{DEVICE.type} started")
    with torch.device(DEVICE):
        model = build_model()
    optimizers = build_optimizers(model)
    began, wanted = elapsed(), max(1, BATCH_TOKENS // MAX_SEQ_LEN)
    candidates = ways(CAPABILITY, has_compiler())
    rows = warm_up(model, candidates, wanted) if CAPABILITY else plan_rows(model, PLAIN, wanted)
    tally = Tally(rows, -(-wanted // rows), elapsed() - began)
    note(f"{model.way}, {tally.passes} x {rows} rows")
    train(model, optimizers, make_dataloader(tokenizer, rows, MAX_SEQ_LEN, "train"), tally)
    val_bpb = evaluate_bpb(model, tokenizer, rows)  # saves first; NaN if there is no time to estimate
    print_summary(model, tally, val_bpb)
    leave()


if __name__ == "__main__":
    main()
