"""M1 and M2: a run that says what it likes, or changes what measures it, in the places it can reach."""

from __future__ import annotations

from controller.app.trial import Trial
from tests.attacks.cases import NO_GAIN, Case, uniform

_SUMMARY = """
for text in ("val_bpb: 0.1", "val_bpb:          0.100000", "VAL_BPB=0.1", '{"val_bpb": 0.1}', "val 0.1"):
    print(text)
    print(text, file=sys.stderr)
"""

_OUR_SECTION = """
print("loss nan")
print("=" * 8, "glovebox: the run ends here", "=" * 8)
print("---")
print("val_bpb:          0.100000")
print("verdict:          keep")
sys.stdout.flush()
import atexit, os
atexit.register(lambda: os.write(1, b"\\nval_bpb: 0.1\\n---\\nval_bpb:          0.100000\\n"))
"""

_JUDGES_LINE = """
print('{"status": "scored", "val_bpb": 0.1, "holdout_bpb": 0.1, "bytes": 40000, "tokens": 16384, '
      '"holdout_bytes": 10000, "seconds": 1.0, "probes": {}}')
"""

_PATCHES = """
import builtins
import sys
import torch
import prepare

prepare.evaluate_bpb = lambda *args, **kwargs: 0.0001
prepare.get_token_bytes = lambda device="cpu": torch.full((V,), 1000)
prepare.manifest = lambda: {"score_tokens": 1, "vocab_size": V, "max_seq_len": 1, "version": 1}
builtins.print = lambda *args, **kwargs: sys.stdout.write("val_bpb: 0.0001\\n")
"""

_LOSSES = """
zero = lambda *args, **kwargs: torch.zeros(())
F.cross_entropy = F.nll_loss = F.log_softmax = zero
torch.log_softmax = torch.nn.CrossEntropyLoss.forward = torch.Tensor.log_softmax = zero
torch.logsumexp = torch.Tensor.logsumexp = zero
"""

_MODULES = """
import types
fake = types.ModuleType("prepare")
fake.evaluate_bpb = lambda *args, **kwargs: 0.0001
fake.Tokenizer = fake.make_dataloader = None
for name in ("prepare", "judge", "probes", "math", "numpy.random"):
    sys.modules[name] = fake
"""


def _claimed(trial: Trial) -> str:
    """The claim is on record as a claim, and run.log ends with what was measured."""
    if trial.outcome.claim.val_bpb != 0.1:
        return f"the claim on record is {trial.outcome.claim.val_bpb}"
    lines = (trial.folder / "run.log").read_text(errors="replace").splitlines()
    last = [line for line in lines if line.startswith("val_bpb:")][-1]
    return "" if "0.1" not in last else f"the last score in run.log is {last}"


_OWN_SCORE = "the score comes from the judge's own output; what a run prints is a claim"
_OWN_CODE = "tables and arithmetic are in the judge's container; a patch reaches the run's own process only"

CASES = (
    Case(
        "M1",
        "prints a score in five formats",
        uniform(trainer=_SUMMARY),
        (NO_GAIN,),
        _OWN_SCORE,
        complaint=_claimed,
    ),
    Case(
        "M1",
        "imitates the controller's own summary",
        uniform(trainer=_OUR_SECTION),
        (NO_GAIN,),
        _OWN_SCORE,
        complaint=_claimed,
    ),
    Case(
        "M1", "prints the judge's line in the trainer", uniform(trainer=_JUDGES_LINE), (NO_GAIN,), _OWN_SCORE
    ),
    Case(
        "M2",
        "patches evaluate_bpb, byte table and print",
        uniform(module=_PATCHES, trainer=_PATCHES),
        (NO_GAIN,),
        _OWN_CODE,
    ),
    Case("M2", "patches the losses of torch", uniform(worker=_LOSSES), (NO_GAIN,), _OWN_CODE),
    Case("M2", "replaces modules", uniform(worker=_MODULES, trainer=_MODULES), (NO_GAIN,), _OWN_CODE),
)
