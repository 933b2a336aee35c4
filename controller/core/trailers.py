"""What stands at the end of a kept commit's message, for an auditor who has nothing but the repository."""

from __future__ import annotations

from controller.core.experiment import Experiment


def trailers(experiment: Experiment, head: str) -> dict[str, str]:
    """What was scored, on what, and the hash that the journal ended with before the commit (`head`).

    Raises ValueError for an experiment without a score or a session: none such is ever kept.
    """
    score, provenance = experiment.score, experiment.provenance
    if score is None or provenance is None:
        raise ValueError(f"experiment {experiment.number} cannot be committed")
    return {
        "Experiment": str(experiment.number),
        "Val-Bpb": f"{score.val_bpb:.6f}",
        "Image": provenance.image,
        "Data": provenance.data,
        "Prepare": provenance.prepare,
        "Journal": head,
    }
