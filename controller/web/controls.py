"""What a person can do from a page, in words. The verbs are those of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.events import Verb
from controller.core.steering_request import INSTRUCTION_CHARACTERS


@dataclass(frozen=True)
class Control:
    """What a person can do, in words."""

    title: str
    does: str
    """What happens next."""
    button: str
    most: int = 16 * 1024
    """Bytes of its form."""
    is_final: bool = False
    """It cannot be taken back, so a person has to say twice that it is meant."""


CONTROLS: Mapping[str, Control] = {
    "pause": Control("Pause", "What runs there is finished; nothing new begins.", "Pause"),
    "continue": Control("Continue", "Ends a pause; so does a stop for a fault of the machine.", "Continue"),
    "instruct": Control(
        "Instruct the agent",
        f"It goes to the agent with its next question. At most {INSTRUCTION_CHARACTERS:,} characters.",
        "Instruct",
        most=64 * 1024,  # a character can take twelve bytes
    ),
    "queue": Control(
        "Queue a train.py",
        "It takes the next free slot, and is trained, scored and kept like any other.",
        "Queue",
        most=512 * 1024,
    ),
    "limit": Control(
        "Change limits",
        "A number, or none for no limit; what is left empty stays as it is.",
        "Change",
    ),
    "agent": Control("Change the agent", "Who is asked from now on: claude, tuner or replay:DIR.", "Change"),
    "kill": Control(
        "Kill an experiment",
        "Its container is stopped, and it ends as a discard, without a score. It is not run again.",
        "Kill",
        is_final=True,
    ),
    "requeue": Control(
        "Run an experiment again",
        "Its program takes the next free slot, as a new experiment.",
        "Queue it again",
    ),
    "rollback": Control(
        "Roll back",
        "The program of this experiment is the frontier from then on; what was kept since is taken back.",
        "Roll back",
        is_final=True,
    ),
}
ANYTIME = ("pause", "continue", "instruct", "queue", "limit", "agent")
"""What needs no experiment."""
OF_ONE: Mapping[Verb, str] = {"kill": "Kill #{}", "requeue": "Run #{} again", "rollback": "Roll back to #{}"}
"""What is done with an experiment, and the words of the link to it."""
