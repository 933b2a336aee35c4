"""Small models to probe, honest ones and leaking ones, and an in-process stand-in for worker and exchange."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from nats import token_nats
from numpy.typing import NDArray
from torch import Tensor, nn

from plan import Batch
from probes import Nats

Predict = Callable[[Tensor], Tensor]
"""tokens int64 [B, T] -> logits [B, T, V]"""


def answer(predict: Predict, batches: Sequence[Batch]) -> list[Nats]:
    """Nats [B, last - first] of the columns wanted of each batch in turn, as the judge would get them."""
    scores = []
    for inputs, targets, first, last in batches:
        with torch.inference_mode():
            logits = predict(torch.from_numpy(inputs.astype(np.int64))).float().numpy()
        wanted = np.ascontiguousarray(logits[:, first:last]).reshape(targets.size, -1)
        scores.append(token_nats(wanted, targets.reshape(-1)).reshape(targets.shape))
    return scores


def text_rows(count: int, length: int, vocab: int, seed: int) -> NDArray[np.int64]:
    """Rows [count, length] of a language with regularity: each token has eight likely successors."""
    random = np.random.default_rng(seed)
    successors = random.integers(0, vocab, (vocab, 8))
    rows = np.empty((count, length), np.int64)
    rows[:, 0] = 0
    for i in range(1, length):
        usual = successors[rows[:, i - 1], random.integers(0, 8, count)]
        rows[:, i] = np.where(random.random(count) < 0.1, random.integers(0, vocab, count), usual)
    return rows


# --- honest parts: x [B, T, C] -> [B, T, C] ----------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, causal: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return y.transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.gru(x)[0]
        return output


class Convolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 8)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(F.pad(x.transpose(1, 2), (7, 0)))
        return output.transpose(1, 2)


class LongConvolution(nn.Module):
    """A filter as long as the row, by FFT: rounding spreads over the whole row, information does not."""

    def __init__(self, width: int, circular: bool = False) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(0.5, 4.0, width))
        self.circular = circular

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        filters = torch.exp(-self.decay.float() * torch.arange(length)[:, None] / 8)
        size = length if self.circular else 2 * length
        product = torch.fft.rfft(x.float(), size, dim=1) * torch.fft.rfft(filters, size, dim=0)
        output: Tensor = torch.fft.irfft(product, size, dim=1)[:, :length].to(x.dtype)
        return output


class LinearAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        k = k.float().exp()
        summed = (k * v).cumsum(1) / k.cumsum(1)
        output: Tensor = (q.sigmoid() * summed).to(x.dtype)
        return output


class Experts(nn.Module):
    """Each token goes to the one expert it likes best; experts see as many tokens as happen to come."""

    def __init__(self, width: int, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gate, choice = self.router(tokens).softmax(-1).max(-1)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            mine = choice == number
            output[mine] = expert(tokens[mine]) * gate[mine, None]
        return output.view_as(x)


class Model(nn.Module):
    """Embedding, residual blocks of the given parts with RMS norm, output projection."""

    def __init__(self, vocab: int, width: int, *parts: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.parts = nn.ModuleList(parts)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, vocab)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for part in self.parts:
            x = x + self.drop(part(F.rms_norm(x, x.shape[-1:])))
        logits: Tensor = self.head(F.rms_norm(x, x.shape[-1:]))
        return logits


def trained(model: nn.Module, rows: NDArray[np.int64], steps: int) -> nn.Module:
    """`model` in eval mode after some steps on rows [., T + 1], so that its logits are not all alike."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    random = np.random.default_rng(1)
    for _ in range(steps):
        batch = torch.from_numpy(rows[random.choice(len(rows), 16)])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


HONEST: dict[str, Callable[[int], list[nn.Module]]] = {
    "attention": lambda width: [Attention(width), Attention(width)],
    "gru": lambda width: [Recurrent(width)],
    "convolution": lambda width: [Convolution(width), Convolution(width)],
    "long-convolution": lambda width: [LongConvolution(width)],
    "linear-attention": lambda width: [LinearAttention(width)],
    "experts": lambda width: [Attention(width), Experts(width)],
}
