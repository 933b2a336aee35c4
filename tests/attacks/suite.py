"""All attacks, in the order of the table of threats."""

from __future__ import annotations

from tests.attacks import (
    caches,
    checkpoints,
    claims,
    clock,
    disturbing,
    escaping,
    exhaustion,
    flood,
    future,
    heavy,
    knowing,
    leftovers,
    memory,
    noisy,
    outputs,
    people,
    protocol,
    second,
    secrets_and_git,
    snooping,
    speaking,
    two_steps,
)
from tests.attacks.cases import Case
from tests.attacks.ground import Assault


def _place(case: Case | Assault) -> tuple[str, int]:
    return case.row[0], int(case.row[1:])


ATTACKS: tuple[Case, ...] = tuple(
    sorted(
        (
            *claims.CASES,
            *outputs.CASES,
            *future.CASES,
            *memory.CASES,
            *noisy.CASES,
            *second.CASES,
            *snooping.CASES,
            *knowing.CASES,
            *checkpoints.CASES,
            *protocol.CASES,
            *heavy.CASES,
            *speaking.CASES,
        ),
        key=_place,
    )
)
"""Attacks on the metric: each is a train.py."""

ASSAULTS: tuple[Assault, ...] = tuple(
    sorted(
        (
            *clock.CASES,
            *exhaustion.CASES,
            *flood.CASES,
            *escaping.CASES,
            *leftovers.CASES,
            *caches.CASES,
            *people.CASES,
            *disturbing.CASES,
            *secrets_and_git.CASES,
            *two_steps.CASES,
        ),
        key=_place,
    )
)
"""Attacks on the clock, the machine and the people, and from one container to the next."""
