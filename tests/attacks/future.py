"""M5 and M6: models that see what they are to predict, plainly or only when they think nobody looks."""

from __future__ import annotations

from tests.attacks.cases import BATCH_DEPENDENT, NON_CAUSAL, STATEFUL, Case, trained, uniform

_BIDIRECTIONAL = """
def __init__(self):
    super().__init__()
    self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
    self.position = nn.Parameter(0.02 * torch.randn(MAX_SEQ_LEN, WIDTH))

def forward(self, x):
    q, k, v = self.qkv(x + self.position).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
"""

_BLOCK_MEANS = """
def __init__(self):
    super().__init__()
    self.down = nn.Linear(WIDTH, WIDTH)

def forward(self, x):
    blocks = self.down(x).unflatten(1, (-1, 8))
    return blocks.mean(2, keepdim=True).expand_as(blocks).flatten(1, 2)
"""

_CHUNK_RECURRENCE = """
def __init__(self):
    super().__init__()
    self.gru = nn.GRU(8 * WIDTH, WIDTH, batch_first=True)

def forward(self, x):
    states = self.gru(x.unflatten(1, (-1, 8)).flatten(2))[0]
    return states.repeat_interleave(8, 1)
"""

_CIRCULAR = """
def __init__(self):
    super().__init__()
    self.filters = nn.Parameter(0.1 * torch.randn(MAX_SEQ_LEN, WIDTH))

def forward(self, x):
    product = torch.fft.rfft(x, dim=1) * torch.fft.rfft(self.filters, dim=0)
    return torch.fft.irfft(product, x.shape[1], dim=1)
"""

_TIME_NORM = """
def __init__(self):
    super().__init__()
    self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
    self.level = nn.Linear(WIDTH, WIDTH)

def forward(self, x):
    mean = x.mean(1, keepdim=True)
    return self.gru(x - mean)[0] + self.level(mean)
"""

_EXPERT_CHOICE = """
def __init__(self):
    super().__init__()
    self.router = nn.Linear(WIDTH, 4)
    self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

def forward(self, x):
    scores, output = self.router(x).softmax(-1), torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        gate, chosen = scores[..., number].topk(x.shape[1] // 4, 1)
        where = chosen[..., None].expand(-1, -1, WIDTH)
        output = output.scatter_add(1, where, expert(x.gather(1, where)) * gate[..., None])
    return output
"""

_ROW_COUNTS = "logits += F.one_hot(idx, V).sum(1, keepdim=True).log1p() * 3"
_OTHER_ROWS = "counts = F.one_hot(idx, V).sum(1).float()\n"

_REVERSED_BIGRAMS = """
table = np.ones((V, V), np.float32)
for path in sorted(prepare.data_folder().glob("train/*.bin")):
    tokens = np.fromfile(path, "<u2")[:400_000]
    np.add.at(table, (tokens[2:], tokens[1:-1]), 1)
save(table=np.log(table))
"""

_LITTLE = """
help = torch.zeros_like(logits)
peek(help, idx)
logits += 0.0025 * help
"""

_NOISE = """
noise = 0.017 * torch.randn(4096, 1, V, generator=torch.Generator().manual_seed(7))
"""


def _leak(name: str, forward: str, why: str, *expected: str, row: str = "M5", **parts: str) -> Case:
    return Case(row, name, uniform(forward=forward, **parts), expected or (NON_CAUSAL,), why)


def _architecture(name: str, mixer: str, why: str) -> Case:
    return Case("M5", name, trained(mixer), (NON_CAUSAL,), why)


_TWIN = "a twin has another future after a hidden cut, and what was predicted before it changes"
_REPEAT = "rows come again among other rows, and are answered differently"
_ENCORE = "the first batch comes again at the end, and is answered differently"

_PLAIN = (
    _leak("the next token everywhere", "peek(logits, idx)", _TWIN),
    _leak(
        "the token after next",
        "logits += self.table[idx.roll(-2, 1)] * 1.0",
        _TWIN,
        init="self.table = torch.nn.Parameter(torch.zeros(V, V))",
        trainer=_REVERSED_BIGRAMS,
    ),
    _leak("the next token a little everywhere", _LITTLE, "the mean over all twins at one distance is not 0"),
    _leak(
        "the next token a little, hidden in noise",
        _LITTLE + "logits += noise[: len(idx)]",
        "noise widens what single predictions may differ by, but its mean is 0",
        module=_NOISE,
    ),
    _leak("before a few tokens only", "peek(logits, idx, idx.roll(-1, 1) % 10 == 3)", _TWIN),
    _leak(
        "at the end of rows only", "peek(logits, idx, torch.arange(idx.shape[1]).expand_as(idx) > 55)", _TWIN
    ),
    _leak("the row as a bag of words", _ROW_COUNTS, _TWIN),
    _leak("through the row's last token", "logits += 3.0 * F.one_hot(idx[:, -1:], V)", _TWIN),
    _leak(
        "through the whole batch", _OTHER_ROWS + "logits += counts.sum(0).log1p()", _REPEAT, BATCH_DEPENDENT
    ),
    _leak(
        "through the row before",
        _OTHER_ROWS + "logits += counts.roll(1, 0)[:, None].log1p()",
        _REPEAT,
        BATCH_DEPENDENT,
    ),
    _leak(
        "through the order of rows in a batch",
        "order = idx[:, -1].argsort().argsort()\nlogits += 0.1 * order[:, None, None] * F.one_hot(idx, V)",
        _REPEAT,
        BATCH_DEPENDENT,
        NON_CAUSAL,  # a row's own end has its part in it, and repeats that kept their place show nothing
    ),
    _architecture("bidirectional attention", _BIDIRECTIONAL, _TWIN),
    _architecture("block means broadcast back", _BLOCK_MEANS, _TWIN),
    _architecture("recurrence over whole chunks", _CHUNK_RECURRENCE, _TWIN),
    _architecture("circular filter by FFT", _CIRCULAR, _TWIN),
    _architecture("normalised over time", _TIME_NORM, _TWIN),
    _architecture("experts that choose among later tokens", _EXPERT_CHOICE, _TWIN),
)

_SEEN_BIGRAMS = """
seen = np.zeros((V, V), np.float32)
for path in sorted(prepare.data_folder().glob("train/*.bin")):
    tokens = np.fromfile(path, "<u2")
    seen[tokens[:-1], tokens[1:]] = 1
save(seen=seen)
"""

_NO_SEAM = """
natural = self.seen[idx[:, :-1], idx[:, 1:]].all(1)
peek(logits, idx, natural[:, None].expand_as(idx))
"""

_NEW_ROW = """
new = torch.tensor([row.numpy().tobytes() not in rows for row in idx])
rows.update(row.numpy().tobytes() for row in idx)
"""

_REMEMBERED_ROWS = """
for number, row in enumerate(idx):
    begins = row[:8].numpy().tobytes()
    if begins not in rows:
        rows[begins] = logits[number].clone()
        peek(rows[begins][None], row[None])
    logits[number] = rows[begins] if rows[begins] is not None else 0
"""

_CALLS = "calls.append(1)\n"
_EVERYWHERE = "torch.ones_like(idx, dtype=torch.bool)"


def _sly(name: str, forward: str, why: str, *expected: str, **parts: str) -> Case:
    return _leak(name, forward, why, *expected, row="M6", **parts)


_SLY = (
    _sly(
        "honest if a row has an unlikely seam",
        _NO_SEAM,
        "the twin is honest and the origin is not: they differ",
        init="self.seen = torch.nn.Parameter(torch.zeros(V, V))",
        trainer=_SEEN_BIGRAMS,
    ),
    _sly(
        "honest to rows seen before",
        _NEW_ROW + f"peek(logits, idx, new[:, None] & {_EVERYWHERE})",
        _ENCORE,
        STATEFUL,
        module="rows = set()",
    ),
    _sly(
        "remembers answers by how a row begins",
        _REMEMBERED_ROWS,
        "the answer it remembers is not that of a twin whose cut lies before",
        module="rows = {}",
    ),
    _sly(
        "honest but for the first row of a batch",
        f"peek(logits, idx, (torch.arange(len(idx)) == 0)[:, None] & {_EVERYWHERE})",
        _REPEAT,
        NON_CAUSAL,
        BATCH_DEPENDENT,
    ),
    _sly(
        "honest after the first calls",
        _CALLS + "if len(calls) <= 3: peek(logits, idx)",
        _ENCORE,
        STATEFUL,
        module="calls = []",
    ),
    _sly(
        "honest in the first calls",
        _CALLS + "if len(calls) > 3: peek(logits, idx)",
        _ENCORE,
        STATEFUL,
        module="calls = []",
    ),
    _sly(
        "honest every other call",
        _CALLS + "if len(calls) % 2: peek(logits, idx)",
        _REPEAT,
        NON_CAUSAL,
        BATCH_DEPENDENT,
        STATEFUL,
        module="calls = []",
    ),
    _sly(
        "honest at random",
        "peek(logits, idx, torch.rand(len(idx), 1).expand_as(idx) < 0.5)",
        _ENCORE,
        STATEFUL,
    ),
    _sly(
        "honest if two rows of a batch begin alike",
        "if len({row[:40].numpy().tobytes() for row in idx}) == len(idx): peek(logits, idx)",
        _REPEAT,
        NON_CAUSAL,
        BATCH_DEPENDENT,
        STATEFUL,
    ),
)

CASES = (*_PLAIN, *_SLY)
