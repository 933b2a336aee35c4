"""What is done with a person's requests: they are granted or refused, and a rollback is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from controller.components import Components
from controller.core import plan
from controller.core.errors import InfrastructureError, UserError
from controller.core.events import RolledBack, Steered, SteeringRefused
from controller.core.plan import OnRequest
from controller.core.rules import Rules
from controller.core.steering_request import SteeringRequest, objection
from controller.core.untrusted import clean_line
from controller.ports import Agent
from controller.store.effort import Effort

log = structlog.stdlib.get_logger(__name__)


def perform(effort: Effort, components: Components, action: OnRequest) -> None:
    """The caller holds the effort's lock. Raises InfrastructureError."""
    match action:
        case plan.Steer(request=request):
            _answer(effort, components, request)
        case plan.RollBack():
            _roll_back(effort, components, action)


def _answer(effort: Effort, components: Components, request: SteeringRequest) -> None:
    effort.record(_granted_or_refused(effort, components, request))
    forget(components, request)


def forget(components: Components, request: SteeringRequest) -> None:
    """Remove a request whose answer is on record. One that stays is not answered again."""
    try:
        components.surroundings.answered(request.id)
    except InfrastructureError as error:
        log.warning("request_not_removed", request=request.id, error=clean_line(str(error)))


def _granted_or_refused(
    effort: Effort, components: Components, request: SteeringRequest
) -> Steered | SteeringRefused:
    because = objection(effort.state, request, len(components.slots))
    if because is not None:
        return request.refused(because)
    match request.verb:
        case "agent":
            return _hire(components, request)
        case "queue":
            return request.granted(clean_line(request.text), effort.put_text(request.train_py))
        case "requeue":
            again = effort.state.experiments[request.target or 0]
            text = f"experiment {again.number} again: {again.proposal.description}"
            return request.granted(clean_line(text), again.train_sha256)
        case _:
            return request.granted(request.text)


def _hire(components: Components, request: SteeringRequest) -> Steered | SteeringRefused:
    """From here on another agent is asked. Raises nothing: one that cannot be had is refused."""
    try:
        if components.hire is None:
            raise UserError("There is no other agent here.")
        agents = components.hire(request.agent)
    except UserError as error:
        return request.refused(str(error))
    components.agents, components.rules = agents, employed(components.rules, agents)
    return request.granted().model_copy(update={"agent": request.agent})


def employed(rules: Rules, agents: Sequence[Agent]) -> Rules:
    """The rules of an effort with these agents."""
    agent, *understudies = agents
    return replace(
        rules,
        agent=agent.name,
        asks_ahead=agent.asks_ahead,
        understudy=understudies[0].name if understudies else None,
    )


def _roll_back(effort: Effort, components: Components, action: plan.RollBack) -> None:
    state = effort.state
    target = state.experiments[action.target]
    trailers = {"Rollback": action.request, "Back-To": str(target.number), "Journal": state.head}
    commit = components.repository.take_back(target.commit or "", subject(target.number), trailers)
    effort.record(RolledBack(request=action.request, target=target.number, commit=commit))


def subject(target: int) -> str:
    """Of the commit that takes back what came after an experiment."""
    return f"Back to experiment {target}: a person asked for it"
