"""All attacks, in the order of the table of threats."""

from __future__ import annotations

from tests.attacks import checkpoints, claims, future, memory, outputs, protocol, second, snooping
from tests.attacks.cases import Case


def _place(case: Case) -> int:
    return int(case.row.removeprefix("M"))


ATTACKS: tuple[Case, ...] = tuple(
    sorted(
        (
            *claims.CASES,
            *outputs.CASES,
            *future.CASES,
            *memory.CASES,
            *second.CASES,
            *snooping.CASES,
            *checkpoints.CASES,
            *protocol.CASES,
        ),
        key=_place,
    )
)
