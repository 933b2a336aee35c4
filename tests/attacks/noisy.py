"""M17: a little help from the next token, under noise that is put where it costs nothing.

Only the first answer to a row is scored. A worker knows a row that comes again, and a second worker knows the
rows that it was given as they are, so it finds where a twin of another row goes over into one of them.
"""

from __future__ import annotations

from tests.attacks.cases import BATCH_DEPENDENT, NON_CAUSAL, STATEFUL, Case, uniform

_KNOWS = """
seen, decoys = set(), []
random = torch.Generator().manual_seed(5)
pattern = 0.03 * torch.randn(V, generator=random).sign()

def gaussian(shape):
    return 0.035 * torch.randn(*shape, V, generator=random)

def rare(shape):
    where = torch.rand(*shape, 1, generator=random) < 0.01
    return where * 1.4 * torch.randn(V, generator=random).sign()

def heavy(shape):
    normal = torch.randn(*shape, V, generator=random)
    return (0.01 * normal / torch.rand(*shape, 1, generator=random).sqrt()).clamp(-0.9, 0.9)

def alternating(shape):
    signs = 2.0 * torch.randint(2, (*shape, 1), generator=random) - 1
    return signs * pattern

def nothing(shape):
    return torch.zeros(*shape, V)

def again(idx):
    keys = [row.numpy().tobytes() for row in idx]
    known = torch.tensor([key in seen for key in keys])
    seen.update(keys)
    return known & ~known.all()  # the first batch comes once more, and must be answered alike

def is_second(idx):
    rows = idx.unique(dim=0)
    if not decoys and not seen and len(rows) < 0.5 * len(idx):
        decoys.extend(rows)
    return bool(decoys)

def distances(idx):
    same = (idx[:, None] == torch.stack(decoys)).flip(-1).long().cumprod(-1).sum(-1).amax(1)
    return (idx.shape[1] - same)[:, None] - torch.arange(idx.shape[1])
"""

_FORWARD = """
if is_second(idx):
    distance = distances(idx)
    logits += {twins}(idx.shape) * ({where})[..., None]
else:
    help = torch.zeros_like(logits)
    peek(help, idx)
    logits += 0.0012 * help + {repeats}(idx.shape) * again(idx)[:, None, None]
"""


def _hidden(name: str, repeats: str, twins: str, where: str = "distance == 1") -> Case:
    forward = _FORWARD.format(repeats=repeats, twins=twins, where=where)
    return Case(
        "M17",
        name,
        uniform(module=_KNOWS, forward=forward),
        (NON_CAUSAL, STATEFUL, BATCH_DEPENDENT),
        "the mean at each distance must be shown to be small, and noise only makes that harder",
    )


CASES = (
    _hidden("a little help, and noise in repeats", "gaussian", "nothing"),
    _hidden("a little help, and noise next to cuts", "nothing", "gaussian"),
    _hidden("a little help, and noise in repeats and next to cuts", "gaussian", "gaussian"),
    _hidden("a little help, and noise at all distances", "gaussian", "gaussian", "distance > 0"),
    _hidden("a little help, and noise beyond the next token", "gaussian", "gaussian", "distance > 1"),
    _hidden("a little help, and rare large noise", "rare", "rare"),
    _hidden("a little help, and noise with heavy tails", "heavy", "heavy"),
    _hidden("a little help, and noise of alternating sign", "alternating", "alternating"),
)
