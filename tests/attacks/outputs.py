"""M3 and M4: outputs that are no logits, or logits that are no probabilities."""

from __future__ import annotations

from tests.attacks.cases import FORWARD, NO_GAIN, NOT_FINITE, WRONG_DTYPE, WRONG_SHAPE, Case, uniform

_LYING_SHAPE = """
class Lying(torch.Tensor):
    @property
    def shape(self):
        return torch.Size(self.asked)
    def is_floating_point(self):
        return True
"""

_LYING_OUTPUT = """
Lying.asked = (*idx.shape, V)
return torch.zeros(1, 1, V).as_subclass(Lying)
"""

_INTERCEPTING = """
class Intercepting(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        return result * float("nan") if function is torch.Tensor.contiguous else result
"""

_WITH_GRADIENT = """
with torch.inference_mode(False), torch.enable_grad():
    return logits.clone() + torch.zeros(V, requires_grad=True)
"""

_REFUSED = "checked against what was asked before anything is computed"
_NORMALISED = "the judge normalises over the whole vocabulary itself"


def _returns(name: str, expression: str, *expected: str, why: str = _REFUSED, module: str = "") -> Case:
    return Case("M3", name, uniform(forward=f"return {expression}", module=module), expected, why)


CASES = (
    _returns("a small scalar loss", "torch.tensor(0.001)", WRONG_SHAPE),
    _returns("NaN everywhere", "logits * float('nan')", NOT_FINITE),
    Case(
        "M3", "one NaN in one row", uniform(forward="logits[0, 5, 7] = float('nan')"), (NOT_FINITE,), _REFUSED
    ),
    Case(
        "M3",
        "+inf at the next token",
        uniform(forward="peek(logits, idx)\nlogits[logits > 0] = float('inf')"),
        (NOT_FINITE,),
        _REFUSED,
    ),
    Case(
        "M3",
        "-inf at all other tokens",
        uniform(forward="peek(logits, idx)\nlogits[logits == 0] = -float('inf')"),
        (NOT_FINITE,),
        _REFUSED,
    ),
    _returns("the last position only", "logits[:, -1:]", WRONG_SHAPE),
    _returns("a padded vocabulary", "F.pad(logits, (0, 64))", WRONG_SHAPE),
    _returns("transposed", "logits.transpose(1, 2)", WRONG_SHAPE),
    _returns("integers", "logits.long()", WRONG_DTYPE),
    _returns("complex numbers", "logits.to(torch.complex64)", WRONG_DTYPE),
    _returns("a dictionary", "{'logits': logits}", WRONG_DTYPE),
    _returns("a tensor without memory", "logits.to('meta')", FORWARD),
    _returns("a sparse tensor", "logits.to_sparse()", FORWARD, why="it has no bytes to send"),
    _returns("float64 beyond float32", "logits.double() - 1e300", NOT_FINITE),
    _returns("huge finite logits", "3e38 * F.one_hot(idx, V)", NO_GAIN, why="scored as what it is: enormous"),
    _returns("constant logits", "logits + 7.25", NO_GAIN, why="scored as what it is: uniform"),
    _returns(
        "a tensor lying about its shape",
        "lie(idx)",
        NO_GAIN,
        why="its one row is copied to every place of the answer, and scored as that",
        module=_LYING_SHAPE + "def lie(idx):\n" + _LYING_OUTPUT.replace("\n", "\n    "),
    ),
    _returns(
        "a tensor intercepting torch",
        "logits.as_subclass(Intercepting)",
        NOT_FINITE,
        NO_GAIN,
        why="whatever it makes of itself is what is scored",
        module=_INTERCEPTING,
    ),
    Case(
        "M3",
        "a tensor that wants a gradient",
        uniform(forward=_WITH_GRADIENT),
        (NO_GAIN,),
        "only its numbers are sent",
    ),
    Case(
        "M4",
        "probability 1 for every token",
        uniform(forward="return torch.ones_like(logits)"),
        (NO_GAIN,),
        _NORMALISED,
    ),
    Case("M4", "a very large offset", uniform(forward="return logits + 1e30"), (NO_GAIN,), _NORMALISED),
    Case(
        "M4",
        "offsets that differ by position",
        uniform(forward="return logits + 1e4 * idx[..., None]"),
        (NO_GAIN,),
        _NORMALISED,
    ),
    Case(
        "M4",
        "log-probabilities above zero",
        uniform(forward="return logits.log_softmax(-1) + 9.0"),
        (NO_GAIN,),
        _NORMALISED,
    ),
)
