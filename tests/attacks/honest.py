"""Honest models, unusual ones among them: each must be scored, at what a plain evaluation gives."""

from __future__ import annotations

from dataclasses import dataclass

from tests.attacks.cases import trained, uniform


@dataclass(frozen=True)
class Honest:
    """One honest model."""

    name: str
    train_py: str


_ATTENTION = """
def __init__(self, heads=4, groups=4):
    super().__init__()
    self.heads, self.groups = heads, groups
    self.q = nn.Linear(WIDTH, WIDTH)
    self.kv = nn.Linear(WIDTH, 2 * groups * WIDTH // heads)
    self.position = nn.Parameter(0.02 * torch.randn(MAX_SEQ_LEN, WIDTH))

def forward(self, x):
    x = x + self.position[: x.shape[1]]
    q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
    k, v = self.kv(x).unflatten(-1, (2, self.groups, -1)).permute(2, 0, 3, 1, 4)
    k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).flatten(2)
"""

_GRU = """
def __init__(self):
    super().__init__()
    self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

def forward(self, x):
    return self.gru(x)[0]
"""

_CONVOLUTION = """
def __init__(self):
    super().__init__()
    self.conv = nn.Conv1d(WIDTH, WIDTH, 6)

def forward(self, x):
    return self.conv(F.pad(x.transpose(1, 2), (5, 0))).transpose(1, 2)
"""

_LONG_CONVOLUTION = """
def __init__(self):
    super().__init__()
    self.decay = nn.Parameter(torch.linspace(0.5, 4.0, WIDTH))

def forward(self, x):
    length = x.shape[1]
    filters = torch.exp(-self.decay * torch.arange(length)[:, None] / 8)
    product = torch.fft.rfft(x, 2 * length, dim=1) * torch.fft.rfft(filters, 2 * length, dim=0)
    return torch.fft.irfft(product, 2 * length, dim=1)[:, :length]
"""

_LINEAR_ATTENTION = """
def __init__(self):
    super().__init__()
    self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

def forward(self, x):
    q, k, v = self.qkv(x).chunk(3, -1)
    k = k.exp()
    return q.sigmoid() * (k * v).cumsum(1) / k.cumsum(1)
"""

_STATE_SPACE = """
def __init__(self):
    super().__init__()
    self.gates = nn.Linear(WIDTH, 2 * WIDTH)

def forward(self, x):
    keep, write = self.gates(x).chunk(2, -1)
    keep, state, outputs = keep.sigmoid(), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = keep[:, t] * state + (1 - keep[:, t]) * write[:, t]
        outputs.append(state)
    return torch.stack(outputs, 1)
"""

_EXPERTS = """
def __init__(self):
    super().__init__()
    self.router = nn.Linear(WIDTH, 4)
    self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

def forward(self, x):
    tokens = x.flatten(0, 1)
    gate, choice = self.router(tokens).softmax(-1).max(-1)
    output = torch.zeros_like(tokens)
    for number, expert in enumerate(self.experts):
        mine = choice == number
        output[mine] = expert(tokens[mine]).relu() * gate[mine, None]
    return output.view_as(x)
"""

_DROPOUT = _GRU.replace("self.gru(x)[0]", "F.dropout(self.gru(x)[0], 0.2, self.training)")

_CHECKPOINTED = (
    _ATTENTION.replace("def forward", "def attend")
    + """
def forward(self, x):
    from torch.utils.checkpoint import checkpoint
    return checkpoint(self.attend, x, use_reentrant=False)
"""
)

_FIXED_LENGTH = """
def __init__(self):
    super().__init__()
    self.mix = nn.Parameter(0.02 * torch.randn(MAX_SEQ_LEN, MAX_SEQ_LEN))

def forward(self, x):
    if x.shape[1] != MAX_SEQ_LEN:
        raise ValueError(f"made for rows of {MAX_SEQ_LEN} tokens")
    return self.mix.tril() @ x
"""

# Heavy on purpose: several times what the small GPT needs, and no more than a share of the budget.
_SLOW_RECURRENCE = """
def __init__(self):
    super().__init__()
    self.cell = nn.GRUCell(WIDTH, WIDTH)

def forward(self, x):
    state, outputs = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        for _ in range(1 if self.training else 4):
            state = self.cell(x[:, t], state)
        outputs.append(state)
    return torch.stack(outputs, 1)
"""

_AVERAGE_OF_PASSES = """
passes = [self.head(F.rms_norm(x * gain, (WIDTH,))) for gain in self.gains]
return torch.stack([F.log_softmax(logits, -1) for logits in passes]).mean(0)
"""

_FROZEN_NORM = """
def __init__(self):
    super().__init__()
    self.norm = nn.BatchNorm1d(WIDTH)
    self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

def forward(self, x):
    return self.gru(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]
"""

_COPIES = """
def __init__(self):
    super().__init__()
    self.gain = nn.Parameter(torch.ones(WIDTH))

def forward(self, x):
    same = (x @ x.transpose(1, 2) / WIDTH > 0.99).tril(-1).float()
    after = F.pad(same, (1, 0, 0, 0))[:, :, :-1]
    return self.gain * (after @ x) / after.sum(-1, keepdim=True).clamp(min=1)
"""

# float8 with a scale for each token; for the weights one scale, or one for each of their rows too.
_FLOAT8 = """
def __init__(self):
    super().__init__()
    self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
    self.out = nn.Linear(WIDTH, WIDTH, bias=False)

def quantised(self, x, *dims):
    scale = x.detach().abs().amax(dims, keepdim=True).clamp(min=1e-12) / 448
    rounded = (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale
    return x + (rounded - x).detach()

def forward(self, x):
    return F.linear(self.quantised(self.gru(x)[0], -1), self.quantised(self.out.weight, 0, 1))
"""

_MASKED = """
def __init__(self):
    super().__init__()
    self.value = nn.Linear(WIDTH, WIDTH)
    mask = torch.ones(MAX_SEQ_LEN, MAX_SEQ_LEN).tril()
    MADE

def forward(self, x):
    mask = self.mask[: x.shape[1], : x.shape[1]]
    return mask / mask.sum(-1, keepdim=True) @ self.value(x)
"""

_EXTRA_STATE = (
    _GRU.replace("super().__init__()", "super().__init__()\n    self.gain = 1.0").replace(
        "self.gru(x)[0]", "self.gain * self.gru(x)[0]"
    )
    + """
def get_extra_state(self):
    return {"gain": self.gain}

def set_extra_state(self, state):
    self.gain = state["gain"]
"""
)

_PARTIAL = """
import functools
build_model = functools.partial(Model)
"""

_COUNTS = """
import torch
from torch import nn

from prepare import MAX_SEQ_LEN, VOCAB_SIZE, Tokenizer, make_dataloader, save_checkpoint

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("pairs", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.01))

    def forward(self, idx):
        return self.pairs.log()[idx]

def build_model():
    return Model()

if __name__ == "__main__":
    model = build_model()
    batches = make_dataloader(Tokenizer.from_directory(), 16, MAX_SEQ_LEN, "train")
    for step in range(100):
        inputs, targets, epoch = next(batches)
        one = torch.ones(inputs.numel())
        model.pairs.index_put_((inputs.flatten(), targets.flatten()), one, accumulate=True)
    save_checkpoint(model)
"""

_TIED = """
self.head.weight = self.embed.weight
nn.init.normal_(self.embed.weight, std=0.1)
"""

_AVERAGED = """
shadow = {name: value.clone() for name, value in model.state_dict().items()}
"""

_AVERAGE = """
for name, value in model.state_dict().items():
    shadow[name].lerp_(value, 0.1)
"""

_COMPILED = """
def build_model():
    return torch.compile(Model())
"""

_BUILD_BFLOAT16 = """
def build_model():
    return Model().bfloat16()
"""

_FLAT = """
import torch
import torch.nn.functional as F
from torch import nn

from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, evaluate_bpb, make_dataloader

class Model(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = nn.Embedding(vocab, 48)
        self.gru = nn.GRU(48, 48, batch_first=True)
        self.head = nn.Linear(48, vocab)

    def forward(self, idx, targets=None, reduction="mean"):
        logits = self.head(self.gru(self.embed(idx))[0])
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

torch.manual_seed(1)
tokenizer = Tokenizer.from_directory()
model = Model(tokenizer.get_vocab_size())
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
train_loader = make_dataloader(tokenizer, 16, MAX_SEQ_LEN, "train")
x, y, epoch = next(train_loader)
for step in range(40):
    loss = model(x, y)
    loss.backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)
    x, y, epoch = next(train_loader)
model.eval()
val_bpb = evaluate_bpb(model, tokenizer, 32)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
"""

# Text that a run may see, as much of it as fits into train.py, continued where a row agrees with it.
_EMBEDDED = """
import base64
TEXT = np.frombuffer(base64.b85decode("@DEV@"), "<u2").tolist()
LONG = 6
FOLLOWS = {tuple(TEXT[i : i + LONG]): TEXT[i + LONG] for i in range(len(TEXT) - LONG)}
"""

_CONTINUED = """
for number, row in enumerate(idx.tolist()):
    for t in range(LONG - 1, len(row)):
        token = FOLLOWS.get(tuple(row[t - LONG + 1 : t + 1]))
        if token is not None:
            logits[number, t, token] += 6.0
"""

_PLAIN_LOGITS = "logits = self.head(F.rms_norm(x, (WIDTH,)))\n"

HONEST = (
    Honest("small GPT", trained(_ATTENTION)),
    Honest("grouped queries", trained(_ATTENTION.replace("groups=4", "groups=1"))),
    Honest("recurrent (GRU)", trained(_GRU)),
    Honest("causal convolution", trained(_CONVOLUTION)),
    Honest("long convolution by FFT", trained(_LONG_CONVOLUTION)),
    Honest("linear attention", trained(_LINEAR_ATTENTION)),
    Honest("state space", trained(_STATE_SPACE)),
    Honest("mixture of experts, causal routing", trained(_EXPERTS)),
    Honest("tied embeddings", trained(_GRU, init=_TIED)),
    Honest(
        "averaged weights as checkpoint",
        trained(
            _GRU,
            setup=_AVERAGED,
            step=_AVERAGE,
            save="model.load_state_dict(shadow)\nsave_checkpoint(model)",
        ),
    ),
    Honest("float64 logits", trained(_GRU, output=_PLAIN_LOGITS + "return logits.double()")),
    Honest(
        "bfloat16 weights and logits",
        trained(
            _CONVOLUTION,
            build=_BUILD_BFLOAT16,
            setup="model.float()",
            save="model.bfloat16()\nsave_checkpoint(model)",
        ),
    ),
    Honest("torch.compile", trained(_CONVOLUTION, build=_COMPILED)),
    Honest("gradient checkpointing", trained(_CHECKPOINTED)),
    Honest("dropout while training", trained(_DROPOUT)),
    Honest("slow recurrence, step by step", trained(_SLOW_RECURRENCE)),
    Honest(
        "average of four passes",
        trained(
            _ATTENTION,
            init="self.gains = nn.Parameter(1 + 0.1 * torch.randn(4, WIDTH))",
            output=_AVERAGE_OF_PASSES,
        ),
    ),
    Honest("frozen batch norm", trained(_FROZEN_NORM)),
    Honest("float8, a scale for each token", trained(_FLOAT8)),
    Honest("float8, a scale for each row of both", trained(_FLOAT8.replace("weight, 0, 1", "weight, 1"))),
    Honest("mask in a buffer", trained(_MASKED.replace("MADE", 'self.register_buffer("mask", mask)'))),
    Honest(
        "mask as a frozen parameter",
        trained(_MASKED.replace("MADE", "self.mask = nn.Parameter(mask, requires_grad=False)")),
    ),
    Honest("state of its own beside the weights", trained(_EXTRA_STATE, setup="model.mixer.gain = 0.5")),
    Honest("build_model by functools.partial", trained(_GRU, build=_PARTIAL)),
    Honest("counts pairs, without gradients", _COUNTS),
    Honest("(logits, loss) tuple", trained(_GRU, output=_PLAIN_LOGITS + "return logits, None")),
    Honest("flat script, upstream's form", _FLAT),
    Honest("fixed length", trained(_FIXED_LENGTH)),
    Honest("copies from its own row", trained(_COPIES)),
    Honest("carries dev text in train.py", uniform(module=_EMBEDDED, forward=_CONTINUED)),
    Honest(
        "padded vocabulary, cut before the output",
        trained(
            _GRU,
            init="self.head = nn.Linear(WIDTH, VOCAB_SIZE + 64, bias=False)",
            output=_PLAIN_LOGITS + "return 15 * torch.tanh(logits[..., :VOCAB_SIZE] / 15)",
        ),
    ),
)
