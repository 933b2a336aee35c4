"""What each container may use. The settings have the limits of trainer and worker; all others are fixed."""

from __future__ import annotations

import math
from typing import Any

from controller.core.containers.config import GIB, MIB, Limits, SandboxConfig
from controller.core.containers.domains import Domain
from controller.core.hardware.slots import cpu_set

HOLDER = Limits(memory=64 * MIB, pids=16, tmp_bytes=MIB, shm_bytes=MIB, file_size_bytes=MIB, open_files=64)
"""Its only process is PID 1, which sleeps and writes nothing."""

JUDGE = Limits(pids=256, tmp_bytes=GIB, shm_bytes=64 * MIB)
"""Our code alone, in one process. It computes in threads and does not compile, so it needs fewer processes
and less of /tmp than a trainer. Its memory is a setting."""

REHEARSAL = Limits(memory=6 * GIB, cpus=1, pids=256, tmp_bytes=2 * GIB, shm_bytes=64 * MIB)
"""One training step beside a running experiment, which it must not slow down: one CPU, and less memory than a
run has by default. `limits` never gives it more than the trainer: what passes here should work in a run."""

TELEMETRY = Limits(
    memory=256 * MIB, pids=16, tmp_bytes=MIB, shm_bytes=MIB, file_size_bytes=MIB, open_files=256
)
"""PID 1 and nvidia-smi, which loads the driver's libraries and opens several files for each GPU."""

CACHES = Limits(memory=4 * GIB, pids=16, tmp_bytes=MIB, shm_bytes=MIB, file_size_bytes=MIB, open_files=256)
"""The memory is for the pages of the files that it reads into the cache: beyond the limit, the pages read
first would be dropped again."""

PREPARE = Limits(file_size_bytes=64 * GIB)
"""Our code alone. It writes larger files than an experiment: a downloaded corpus and its tokens. Its memory
is a setting."""


def limits(config: SandboxConfig, domain: Domain) -> Limits:
    """What a container of this domain may use."""
    match domain:
        case Domain.TRAINER:
            return config.trainer
        case Domain.WORKER:
            return config.worker
        case Domain.HOLDER:
            return HOLDER
        case Domain.JUDGE:
            return JUDGE.model_copy(update={"memory": config.judge_memory})
        case Domain.REHEARSAL:
            return _smaller(REHEARSAL, config.trainer)
        case Domain.TELEMETRY:
            return TELEMETRY
        case Domain.CACHES:
            return CACHES
        case Domain.PREPARE:
            return PREPARE.model_copy(update={"memory": config.prepare_memory})


def usable_cpus(limits: Limits, cpus: str, machine: float = math.inf) -> float:
    """How many CPUs a container may use with these limits, on the CPUs of its slot (`cpus`, empty: all of
    the `machine`)."""
    return min(limits.cpus or math.inf, len(cpu_set(cpus)) or machine)


def _smaller(one: Limits, other: Limits) -> Limits:
    """The smaller of the two in each respect; where one has no limit, that of the other."""
    values: dict[str, Any] = {}
    for name, value in one:
        given = [limit for limit in (value, getattr(other, name)) if limit is not None]
        values[name] = min(given, default=None)
    return Limits(**values)
