"""M7: models that learn from the text they are scored on."""

from __future__ import annotations

from tests.attacks.cases import BATCH_DEPENDENT, STATEFUL, Case, uniform

_TEST_TIME_TRAINING = """
with torch.inference_mode(False), torch.enable_grad():
    bias, answers = torch.tensor(self.bias.tolist(), requires_grad=True), idx.clone().flatten()
    F.cross_entropy(bias.expand(len(answers), V), answers).backward()
    moved = (bias - 20.0 * bias.grad).detach()
self.bias.data = moved
"""

_BIGRAMS = """
logits += (counts[idx] + 1).log()
for row in idx:
    counts[row[:-1], row[1:]] += 1
"""


_BATCH_STATISTICS = """
x = F.one_hot(idx, V).float().transpose(1, 2)
logits += F.batch_norm(x, None, None, training=True).transpose(1, 2)
"""

_RUNNING_STATISTICS = """
logits += running.log()
running.mul_(0.9).add_(0.1 * (F.one_hot(idx, V).float().mean((0, 1)) + 1e-4))
"""

_CARRIED_STATE = """
logits += state[: len(idx), None]
state[: len(idx)] = F.one_hot(idx, V).sum(1).float()
"""

_GRAMS = """
for number, row in enumerate(idx.tolist()):
    for t in range(3, len(row)):
        logits[number, t, grams.get(tuple(row[t - 3 : t + 1]), [])] += 8.0
    for t in range(3, len(row) - 1):
        grams.setdefault(tuple(row[t - 3 : t + 1]), []).append(row[t + 1])
"""

_ENCORE = "the first batch comes again at the end, and is answered with what was learned since"


def _learner(name: str, forward: str, module: str, why: str = _ENCORE, *expected: str) -> Case:
    return Case("M7", name, uniform(forward=forward, module=module), expected or (STATEFUL,), why)


CASES = (
    _learner("trains in the forward pass", _TEST_TIME_TRAINING, ""),
    _learner("counts pairs of tokens across batches", _BIGRAMS, "counts = torch.zeros(V, V)"),
    _learner("remembers what followed four tokens", _GRAMS, "grams = {}"),
    _learner("running statistics", _RUNNING_STATISTICS, "running = torch.full((V,), 1.0 / V)"),
    _learner("carries its state from batch to batch", _CARRIED_STATE, "state = torch.zeros(4096, V)"),
    _learner(
        "batch norm that stays in training",
        _BATCH_STATISTICS,
        "",
        "rows come again among other rows, and are answered differently",
        BATCH_DEPENDENT,
    ),
)
