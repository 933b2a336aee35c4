"""What a start does with what the last process left behind. Idempotent.

The journal says where the effort stands. Everything else is brought in line with it: containers and volumes
of no open experiment are removed, the work tree is put back on the frontier, projections that are missing are
written again. An experiment that was open goes on in the loop, from its phase; a trainer that is still inside
its time is adopted there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

import structlog

from controller.components import Components
from controller.core.errors import InfrastructureError, UserError
from controller.core.experiment import Experiment, Phase
from controller.core.state import ResearchState
from controller.core.values import Provenance
from controller.failpoints import reach
from controller.files import remove_partial
from controller.ports import Leftovers

log = structlog.stdlib.get_logger(__name__)

_LATEST = 1000
"""More experiments than the other slots finish while one slot is closing its own."""


def recover(components: Components, sandbox: Leftovers, state: ResearchState) -> None:
    """Bring the world in line with the journal. Raises InfrastructureError if the engine cannot."""
    _check_head(components, state)
    reap(sandbox, keep=live(state))
    reach("reaped")
    components.repository.reset()
    for experiment in _last_on_slots(state):
        if not components.runs.is_finished(experiment):
            components.runs.finish(experiment)
    components.publish(state)
    reach("recovered")


def _last_on_slots(state: ResearchState) -> Iterator[Experiment]:
    """The latest finished experiment of each slot, the only ones that may not be closed: each was before the
    next began on its slot."""
    seen: set[int] = set()
    for experiment in islice(reversed(state.finished), _LATEST):
        if experiment.slot not in seen:
            yield experiment
        seen.add(experiment.slot)
        if seen >= state.slots.keys():
            return


def sweep(home: Path, components: Components, state: ResearchState) -> None:
    """Remove the files that the last process was writing when it was killed. Raises InfrastructureError."""
    if state.stopped is not None:
        return  # looking at the blobs of a hundred thousand experiments takes a moment
    oldest = min(state.next_number - 1, *(experiment.number for experiment in state.open), state.next_number)
    numbers = {*range(max(oldest - 1, 0), state.next_number), *(run.number for run in _last_on_slots(state))}
    last = [components.runs.folder(number) for number in sorted(numbers)]
    try:
        remove_partial([home, home / "harness", home / "rehearsal", *last, *(home / "blobs").glob("*")])
    except OSError as error:
        raise InfrastructureError(f"{home} cannot be tidied up: {error.strerror}.") from error


def _check_head(components: Components, state: ResearchState) -> None:
    """The branch ends at the frontier, or at a kept commit that the journal has not heard of yet."""
    head, frontier = components.repository.head(), state.frontier
    committing = any(experiment.phase is Phase.DECIDED for experiment in state.open)
    committing = committing or state.unsettled is not None or state.steering.rollback is not None
    if frontier is not None and head != frontier.commit and not committing:
        raise UserError(
            f"The branch in the home's repo/ ends at {head[:7]}, no experiment of ours; the frontier is "
            f"{frontier.commit[:7]}: move foreign commits to another branch and set this one back."
        )


def live(state: ResearchState) -> set[str]:
    """Labels of the experiments whose containers may still be of use."""
    return {str(experiment.number) for experiment in state.open}


def reap(sandbox: Leftovers, keep: Collection[str]) -> list[str]:
    """Remove this home's containers and volumes that belong to no live experiment; return their names."""
    containers, volumes = sandbox.leftovers(keep)
    sandbox.remove(containers=containers, volumes=volumes)
    for name in [*containers, *volumes]:
        log.info("reaped", name=name)
    return [*containers, *volumes]


def check_comparable(state: ResearchState, provenance: Provenance, budget_seconds: float) -> None:
    """Scores of one effort must mean the same thing. Raises UserError naming what changed."""
    if state.session is None:
        return
    before, after = state.session.provenance, provenance
    changed = [
        name
        for name in ("scale", "data", "prepare", "harness")
        if getattr(before, name) != getattr(after, name)
    ]
    if state.session.budget_seconds != budget_seconds:
        changed.append(f"budget ({state.session.budget_seconds:g} s before, {budget_seconds:g} s now)")
    if changed:
        raise UserError(
            f"This home's experiments were measured with another {', '.join(changed)}, so new scores could "
            "not be compared with them; go back to the former setting or start in a new --home."
        )
