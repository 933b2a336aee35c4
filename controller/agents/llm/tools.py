"""The tools a language model works with, and the draft of train.py they work on.

No tool takes a path: train.py is the only file that can be changed (R1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.agents.llm.prompt import look
from controller.agents.llm.reply import ToolUse
from controller.core.notebook import IDEA_CHARACTERS
from controller.core.program.edits import BadEdit, apply
from controller.core.program.source import plain_text
from controller.core.untrusted import clean_line, clean_text, fence
from controller.core.values import Change, Edit
from controller.ports import Context

_COMPLAINT_CHARACTERS = 4000
_HYPOTHESIS_CHARACTERS = 2000


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EditTrainPy(_Input):
    """Replace one passage of the draft of train.py. The old text must occur in it exactly once, including
    white space; quote as many lines around the change as that takes."""

    old: str
    new: str


class ReplaceTrainPy(_Input):
    """Replace the whole draft of train.py. Prefer edits where possible: they can be carried over to another
    frontier."""

    text: str


class LookAtExperiment(_Input):
    """Show an earlier experiment: verdict, cause, score, numbers, its change and the end of its log."""

    number: int


class Submit(_Input):
    """Submit the draft as the next experiment. It is checked and rehearsed; mistakes are reported."""

    description: str = Field(description="One line for the ledger: what changed, from what to what.")
    hypothesis: str = Field(description="Why it should lower val_bpb.")
    expected_effect: Annotated[float, Field(allow_inf_nan=False)] = Field(
        description="The change of val_bpb you expect; negative is better."
    )
    idea: str = Field(
        description=f"Its name, at most {IDEA_CHARACTERS} characters; the same name for the same idea."
    )


_INPUTS: Mapping[str, type[_Input]] = {
    "edit_train_py": EditTrainPy,
    "replace_train_py": ReplaceTrainPy,
    "look_at_experiment": LookAtExperiment,
    "submit": Submit,
}


def _schema(model: type[_Input]) -> dict[str, Any]:
    schema = model.model_json_schema()
    properties = {
        name: {key: value for key, value in known.items() if key != "title"}
        for name, known in schema["properties"].items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": schema["required"],
        "additionalProperties": False,
    }


#: As the API expects them. Always the same bytes, or its cache would miss.
TOOLS: list[dict[str, Any]] = [
    {"name": name, "description": " ".join((model.__doc__ or "").split()), "input_schema": _schema(model)}
    for name, model in _INPUTS.items()
]


class ToolError(Exception):
    """The call did nothing; the message tells the model why."""


@dataclass(frozen=True)
class Result:
    """The answer of a tool."""

    text: str
    is_error: bool = False


class Draft:
    """The current text of train.py, and the proposal once it has been submitted and accepted."""

    def __init__(self, context: Context, text: str, longest: int) -> None:
        """The draft starts as `text`; when submitted it may have `longest` bytes."""
        self.proposal: Change | None = None
        self._context = context
        self._start = text
        self._longest = longest
        self._text = text
        self._edits: list[Edit] | None = [] if text == context.train_py else None
        """The edits that turn the text of the frontier into this one; None if edits alone do not."""
        self._tools: Mapping[type[_Input], Callable[[Any], str]] = {
            EditTrainPy: self._edit,
            ReplaceTrainPy: self._replace,
            LookAtExperiment: self._look,
            Submit: self._submit,
        }

    def answer(self, calls: list[ToolUse]) -> list[Result]:
        """Carry out the calls of one reply in order. After a failed call, `submit` is refused."""
        results: list[Result] = []
        for call in calls:
            if self.proposal is not None:
                results.append(Result("The proposal was submitted before this.", is_error=True))
                continue
            failed = any(result.is_error for result in results)
            results.append(self._answer(call, failed))
        return results

    def _answer(self, call: ToolUse, failed_before: bool) -> Result:
        try:
            if call.problem:
                raise ToolError(
                    f"Nothing was done: {call.problem}. Call it again, with less text if it was cut off."
                )
            given = _checked(call)
            if failed_before and isinstance(given, Submit):
                raise ToolError("Nothing was submitted, because an earlier call of this reply failed.")
            return Result(self._tools[type(given)](given))
        except (ToolError, BadEdit) as error:
            return Result(clean_text(str(error), _COMPLAINT_CHARACTERS), is_error=True)

    def _edit(self, given: EditTrainPy) -> str:
        edit = Edit(old=given.old, new=given.new)
        self._text = plain_text(apply(self._text, edit))
        if self._edits is not None:
            self._edits.append(edit)
        return "Done."

    def _replace(self, given: ReplaceTrainPy) -> str:
        self._text = plain_text(given.text)
        self._edits = None
        return f"Done. The draft has {given.text.count(chr(10)) + 1} lines now."

    def _look(self, given: LookAtExperiment) -> str:
        if any(known.number == given.number for known in self._context.running):
            raise ToolError(f"Experiment {given.number} is still on its way.")
        try:
            return look(self._context, self._context.finished(given.number))
        except LookupError:
            latest = max((known.number for known in self._context.history[-1:]), default=None)
            known = "there are none yet" if latest is None else f"they are numbered 0 to {latest}"
            raise ToolError(f"There is no finished experiment {given.number}; {known}.") from None

    def _submit(self, given: Submit) -> str:
        if not clean_line(given.description):
            raise ToolError("Nothing was submitted: the description is empty.")
        if self._text == self._start:
            raise ToolError("Nothing was submitted: the draft is unchanged.")
        size = len(self._text.encode("utf-8"))
        if size > self._longest:
            raise ToolError(
                f"Nothing was submitted: the draft has {size} bytes, but at most {self._longest} leave room "
                "for a conversation about it. Make it shorter."
            )
        services = self._context.services
        objection = services.objection(self._text)
        if objection is not None:
            raise ToolError(f"Nothing was submitted: {objection}.")
        complaint = services.rehearse(self._text)
        if complaint is not None:
            raise ToolError(f"Nothing was submitted: the rehearsal failed.\n{_quoted(complaint)}")
        self.proposal = Change(
            train_py=self._text,
            description=clean_line(given.description),
            hypothesis=clean_text(given.hypothesis, _HYPOTHESIS_CHARACTERS),
            expected_effect=given.expected_effect,
            idea=clean_line(given.idea, IDEA_CHARACTERS),
            edits=None if self._edits is None else tuple(self._edits),
        )
        return "Submitted."


def _checked(call: ToolUse) -> _Input:
    model = _INPUTS.get(call.name)
    if model is None:
        raise ToolError(f"There is no tool {clean_line(call.name, 60)!r}; there are {', '.join(_INPUTS)}.")
    try:
        return model.model_validate(call.input)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = clean_line(".".join(str(part) for part in first["loc"]), 60)
        takes = ", ".join(model.model_fields)
        raise ToolError(
            f"Nothing was done: {where}: {first['msg']}. {call.name} takes {takes} and nothing else; "
            "train.py is the only file there is."
        ) from None


def _quoted(complaint: str) -> str:
    return fence(clean_text(complaint, _COMPLAINT_CHARACTERS // 2))
