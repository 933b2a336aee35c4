"""`python small_scale.py ARGUMENTS`: prepare.py, but at a scale for which a few pages of text are enough."""

import dataclasses
import sys
from pathlib import Path

HARNESS = Path(__file__).parents[2] / "harness"

MAX_CORPUS_BYTES = 400_000

if __name__ == "__main__":
    sys.path.insert(0, str(HARNESS))
    import dataset

    dataset.SCALES["cpu"] = dataclasses.replace(
        dataset.SCALES["cpu"],
        max_seq_len=32,
        vocab_size=300,
        eval_tokens=1 << 8,
        score_tokens=1 << 8,
        holdout_score_tokens=1 << 8,
        max_corpus_bytes=MAX_CORPUS_BYTES,
    )
    sys.exit(dataset.main())
