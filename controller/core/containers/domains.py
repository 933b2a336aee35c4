"""The trust domains: who runs as whom, and who may read and write what.

    domain    user   reads                                    writes
    holder    10001  -                                        workspace (only keeps it mounted)
    trainer   10001  train.py, public data                    workspace
    worker    10002  train.py, tokenizer, workspace,          replies
                     requests
    judge     10003  judge's data, replies of both workers    requests to both
    rehearsal 10004  train.py, tokenizer                      -
    telemetry 10005  the GPU's driver                         -
    caches    root   the image's libraries                    the kernel's caches, to empty them
    prepare   owner  a corpus                                 the home, to put data/ there

Each also reads the files of the harness that `HARNESS` names for it. `domain_specs` makes the mounts out of
this, and `spec` holds what is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Domain(StrEnum):
    """The trust domains. They share nothing but what the table above says."""

    HOLDER = "holder"
    TRAINER = "trainer"
    WORKER = "worker"
    JUDGE = "judge"
    REHEARSAL = "rehearsal"
    TELEMETRY = "telemetry"
    CACHES = "caches"
    PREPARE = "prepare"


USERS: Mapping[Domain, int] = {
    Domain.HOLDER: 10001,
    Domain.TRAINER: 10001,
    Domain.WORKER: 10002,
    Domain.JUDGE: 10003,
    Domain.REHEARSAL: 10004,
    Domain.TELEMETRY: 10005,
    Domain.CACHES: 0,
}
"""uid = gid of each domain. `prepare` runs as the owner of the home instead."""


_OF_A_MODEL = ("answers.py", "batches.py", "exchange.py", "kernels.py", "prepare.py", "worker.py")

HARNESS: Mapping[Domain, tuple[str, ...]] = {
    Domain.TRAINER: ("kernels.py", "prepare.py"),
    Domain.WORKER: _OF_A_MODEL,
    Domain.JUDGE: ("exchange.py", "fresh.py", "judge.py", "nats.py", "plan.py", "prepare.py", "probes.py"),
    Domain.REHEARSAL: (*_OF_A_MODEL, "rehearse.py"),
    Domain.PREPARE: (
        "corpus.py",
        "dataset.py",
        "documents.py",
        "download.py",
        "folder.py",
        "prepare.py",
        "processes.py",
        "shards.py",
    ),
}
"""The files of the harness that each domain is given, read-only."""


FORGOTTEN_BEFORE: Mapping[Domain, frozenset[Domain]] = {
    Domain.TRAINER: frozenset({Domain.TRAINER, Domain.WORKER, Domain.REHEARSAL}),
    Domain.WORKER: frozenset({Domain.WORKER}),
    Domain.REHEARSAL: frozenset({Domain.WORKER}),
}
"""Those who run an experiment's code, and whose traces in the kernel's caches must be gone before they start.

A worker may know what its trainer knew. A rehearsal runs beside a trainer, which is not to be disturbed: no
worker has run since that one's start.
"""
