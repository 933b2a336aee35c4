"""One question to a slow agent, asked in a thread while the loop goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from controller.core.values import Proposal
from controller.ports import Agent, Context
from controller.proposals.services import JournalDesk

#: How long a thread gets to notice that it is to end. It can do no harm afterwards: then its desk is closed.
_GRACE_SECONDS = 5.0


class Conversation:
    """Runs `agent.propose` and hands what came of it to `settle`, in its own thread."""

    def __init__(
        self,
        agent: Agent,
        context: Context,
        desk: JournalDesk,
        settle: Callable[[Proposal | Exception], None],
    ) -> None:
        """`desk.stop` must be nobody else's event: it is set to break the conversation off."""
        self.error: BaseException | None = None
        """What neither the agent nor `settle` was supposed to raise, for the loop's thread to raise again."""
        self._agent = agent
        self._context = context
        self._desk = desk
        self._settle = settle
        self._over = threading.Event()
        # A daemon, because a read from a dead peer may hang for longer than anybody waits for an exit.
        self._thread = threading.Thread(target=self._run, name="conversation", daemon=True)
        self._thread.start()

    def over(self, seconds: float = 0.0) -> bool:
        """True once it has come to an end, which is waited for that long."""
        return self._over.wait(seconds)

    def break_off(self) -> None:
        """End it. Nothing of it reaches the journal afterwards."""
        self._desk.stop.set()
        self._thread.join(_GRACE_SECONDS)
        self._desk.close()

    def _run(self) -> None:
        try:
            try:
                proposal = self._agent.propose(self._context)
            except Exception as error:
                self._settle(error)
            else:
                self._settle(proposal)
        except BaseException as error:
            self.error = error
        finally:
            self._over.set()
