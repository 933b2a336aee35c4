"""The tree of exceptions.

Three kinds of error are never mixed:

* the experiment's own fault is a value: a `RunOutcome` or `Refusal` with a `Cause`;
* the infrastructure's fault is an `InfrastructureError`: the experiment is repeated, never blamed;
* a mistake of the person is a `UserError`: one sentence and an exit status, no traceback.

Anything else is our bug and stops the process with the journal intact.

    GloveboxError
    ├── UserError            exit 2: usage or configuration
    │   └── NotReady         exit 3: the machine lacks something
    │       └── Unfit        and will, until a person does something about it
    ├── VerificationFailed   exit 4: the record contradicts itself
    │   └── ImpossibleHistory
    ├── InfrastructureError  exit 3: engine, disk or GPU failed under an experiment
    ├── AgentError           the agent could not produce a proposal this time
    │   ├── AgentAway        it cannot be reached for now: an outage, a quota, a day's money spent
    │   └── AgentExhausted   the agent has nothing further to propose, or no money left to do so
    └── Interrupted          a person asked us to stop
"""

from __future__ import annotations


class GloveboxError(Exception):
    """Root of every exception raised on purpose."""

    exit_status = 1


class UserError(GloveboxError):
    """Bad usage or configuration; the message is one sentence saying what to do."""

    exit_status = 2


class NotReady(UserError):
    """The machine lacks something an experiment needs; the message says how to get it."""

    exit_status = 3


class Unfit(NotReady):
    """The machine lacks something that every experiment needs, and waiting brings none."""


class VerificationFailed(GloveboxError):
    """Journal, git, ledger and blobs contradict each other."""

    exit_status = 4


class ImpossibleHistory(VerificationFailed):
    """The records tell a story that no Glovebox can have lived; the journal is not ours or is damaged."""


class InfrastructureError(GloveboxError):
    """Engine, disk or GPU failed under an experiment; the experiment is not to blame."""

    exit_status = 3


class AgentError(GloveboxError):
    """The agent produced no usable proposal this time; asking again may help."""


class AgentAway(AgentError):
    """The agent cannot be reached for now; the message says why in one sentence."""

    def __init__(self, reason: str, retry_seconds: float | None = None) -> None:
        """`retry_seconds`: when asking again makes sense; 0: nobody knows, before long; None: never, unless a
        person changes something.
        """
        super().__init__(reason)
        self.retry_seconds = retry_seconds


class AgentExhausted(AgentError):
    """The agent has nothing further to propose, ever."""


class Interrupted(GloveboxError):
    """A person asked the process to stop; the state on disk is good to continue from."""

    exit_status = 0
