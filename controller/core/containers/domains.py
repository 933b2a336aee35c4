"""The trust domains: as which user each runs, and what it may read and write.

    domain    user   reads                                    writes
    holder    10001  -                                        workspace (only keeps it mounted)
    trainer   10001  train.py, public data                    workspace
    worker    10002  train.py, tokenizer, workspace,          replies
                     requests
    judge     10003  judge's data, replies of both workers    requests to both
    rehearsal 10004  train.py, tokenizer                      -
    telemetry 10005  the GPU's driver                         -
    caches    root   the image's libraries                    the kernel's caches, to empty them
    prepare   owner  a corpus                                 the home, to create data/

Each also reads the files of the harness that `HARNESS` lists for it. `builders` and `service_builders` turn
this into mounts, `limits` says how much each may use, and `spec` has what is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Domain(StrEnum):
    """The trust domains. They share only what the table above says."""

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
"""uid and gid of each domain. `prepare` runs as the owner of the home instead."""

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
"""For each domain that runs an experiment's code: which domains' traces in the kernel's caches must be gone
before it starts.

A worker may know what its trainer knew. A rehearsal runs beside a trainer, which emptied caches would slow
down, so they are emptied for it only if a worker has run since they last were.
"""
