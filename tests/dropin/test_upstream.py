"""Real versions of upstream's train.py train and are scored, replaced at their edges only.

None of their text is kept here. GLOVEBOX_UPSTREAM names where to find it: a folder of .py files, or a git
directory, of which every version of train.py on every branch is tried.

    GLOVEBOX_UPSTREAM=/path/to/autoresearch/.git python -m pytest tests/dropin/test_upstream.py -rP
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.core.values import Score
from tests.dropin.conftest import Try
from tests.dropin.edges import on_a_cpu

BUDGET_SECONDS = 75.0
AGREE_BPB = 0.002
"""Between the claim and the score of the same rows: bfloat16 sums depend on how rows are batched."""


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def versions() -> Iterator[tuple[str, str]]:
    """(name, text) of every distinct train.py at GLOVEBOX_UPSTREAM, oldest first in a git directory."""
    where = Path(os.environ.get("GLOVEBOX_UPSTREAM", "/nowhere"))
    if files := sorted(where.glob("*.py")):
        yield from ((path.stem, path.read_text(encoding="utf-8")) for path in files)
        return
    if not where.is_dir():
        return
    seen = set()
    commits = git(where, "log", "--branches", "--reverse", "--format=%h %s", "--", "train.py")
    for commit, _, subject in (line.partition(" ") for line in commits.splitlines()):
        text = git(where, "show", f"{commit}:train.py")
        if text not in seen:
            seen.add(text)
            yield f"{commit} {subject}", text


VERSIONS = dict(versions())


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(not VERSIONS, reason="GLOVEBOX_UPSTREAM names no versions of upstream's train.py")
@pytest.mark.parametrize("name", VERSIONS or ["none"])
def test_a_real_version_is_scored_as_it_claims(name: str, try_it: Try) -> None:
    trial = try_it(on_a_cpu(VERSIONS[name]), BUDGET_SECONDS)
    score, claim = trial.judgement, trial.outcome.claim.val_bpb
    assert isinstance(score, Score), trial.as_text()
    log = (trial.folder / "run.log").read_text()
    assert claim is not None and "no time for more" not in log, f"too slow a machine; see {trial.folder}"
    print(
        f"{name} | claim {claim:.6f} | same rows {score.val_bpb:.6f} | off by {claim - score.val_bpb:+.6f}"
        f" | fresh rows {score.holdout_bpb:.6f} | steps {trial.outcome.claim.num_steps:.0f}"
        f" | {trial.outcome.seconds:.1f} s, scored in {score.seconds:.1f} s"
    )
    assert claim == pytest.approx(score.val_bpb, abs=AGREE_BPB)
    assert score.fresh is not None and score.fresh.p_value > 1e-4, "fresh rows are text of the same kind"
