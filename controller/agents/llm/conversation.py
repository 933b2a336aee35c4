"""`claude`: a language model behind the Messages API proposes changes to train.py.

A proposal is one conversation: the model is told where the effort stands, works on a draft through the tools
of agents/llm/tools.py, and submits it within a limited number of replies. Nothing but the proposal and the
journal outlives a conversation.
"""

from __future__ import annotations

from typing import Any

import structlog
from pydantic import SecretStr

from controller.agents.llm.client import Api, Topic
from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.prompt import Parts, combine_parts, fix_parts, proposal_parts
from controller.agents.llm.reply import Reply, ToolUse
from controller.agents.llm.tools import TOOLS, Draft, Result
from controller.core.errors import AgentAway, AgentError, AgentExhausted
from controller.core.experiment import Experiment
from controller.core.untrusted import clean_line
from controller.core.values import Change
from controller.ports import Clock, Context

log = structlog.stdlib.get_logger(__name__)

#: Shares of the context: for the digest of history, and the most that the opening may take.
_DIGEST_SHARE, _OPENING_SHARE = 0.15, 0.75
#: Limits the train.py that may be submitted, for the next conversation must have room for it.
_TRAIN_PY_SHARE = 0.4
_MAX_DECLINED = 2

_DECLINED = (
    "Your last reply was declined by the API's filter and is not shown. The work is on the training "
    "script of a small language model; try another way."
)
_NOTHING_CALLED = "You called no tool. Only `submit` ends the conversation; nobody reads anything else."
_CUT = "Your last reply was cut off at the maximum length. Use shorter edits."

#: How long the API caches what precedes the mark. The stable parts must outlast an experiment.
_HOUR = {"type": "ephemeral", "ttl": "1h"}
_MINUTES = {"type": "ephemeral"}

Block = dict[str, Any]


class Claude:
    """An `Agent` that asks a language model. Safe to ask from several threads."""

    name = "claude"
    asks_ahead = True

    def __init__(self, config: ClaudeConfig, key: SecretStr, clock: Clock) -> None:
        """Raises UserError if the price of the model is unknown or the key is malformed."""
        self._config = config
        self._api = Api(config, key, clock)

    def propose(self, context: Context) -> Change:
        mode = context.notebook.mode(self._config.plateau_after)
        room = int(_DIGEST_SHARE * self._config.max_context_tokens / self._api.estimator.tokens_per_byte)
        parts = proposal_parts(context, mode, self._config.max_turns, room)
        topic = Topic("propose", mode.value)
        return self._converse(context, topic, parts, self._draft(context, context.train_py))

    def fix(self, context: Context, crashed: Experiment) -> Change | None:
        """Also None if the model sees nothing to repair, or does not manage to within its replies."""
        train_py = context.source(crashed.number)
        parts = fix_parts(context, crashed, train_py, self._config.max_turns)
        try:
            return self._converse(context, Topic("fix", ""), parts, self._draft(context, train_py))
        except (AgentAway, AgentExhausted):
            raise
        except AgentError as error:
            log.info("no_repair", experiment=crashed.number, reason=clean_line(str(error)))
            return None

    def combine(self, context: Context, behind: Experiment) -> Change | None:
        """None too if the model sees no way to combine the two, or none within its replies."""
        parts = combine_parts(context, behind, self._config.max_turns)
        try:
            return self._converse(context, Topic("merge", ""), parts, self._draft(context, context.train_py))
        except (AgentAway, AgentExhausted):
            raise
        except AgentError as error:
            log.info("no_merge", experiment=behind.number, reason=clean_line(str(error)))
            return None

    def _draft(self, context: Context, train_py: str) -> Draft:
        longest = _TRAIN_PY_SHARE * self._config.max_context_tokens / self._api.estimator.tokens_per_byte
        return Draft(context, train_py, int(longest))

    def _converse(self, context: Context, topic: Topic, parts: Parts, draft: Draft) -> Change:
        messages: list[Block] = [{"role": "user", "content": _opening(parts)}]
        self._require_room(context, topic, messages)
        declined = 0
        for left in reversed(range(self._config.max_turns)):
            reply = self._api.ask(context.services, topic, self._body(context, messages))
            if reply.stop_reason == "model_context_window_exceeded":
                raise AgentError("The conversation outgrew the model's context window.")
            if reply.stop_reason == "refusal":
                declined += 1
                if declined > _MAX_DECLINED:
                    raise AgentError(f"The model declined {declined} times in one conversation.")
                messages[-1]["content"].append(_text(_DECLINED))  # quoting the reply would be declined again
                continue
            results = [_result(use, result) for use, result in _carry_out(reply, draft)]
            if draft.proposal is not None:
                return draft.proposal
            if not results and topic.purpose != "propose" and reply.stop_reason == "end_turn":
                raise AgentError("The model found no small mistake to fix.")
            _append(messages, reply, [*results, *_remarks(reply, bool(results), left)])
        raise AgentError(f"The model submitted nothing usable within {self._config.max_turns} replies.")

    def _body(self, context: Context, messages: list[Block]) -> Block:
        """The body of a request. Raises AgentError if it exceeds the limit of tokens."""
        body = {
            "model": self._config.model,
            "max_tokens": self._config.max_tokens,
            "tools": TOOLS,
            "system": [_text(context.program)] if context.program.strip() else [],
            "messages": _marked(messages),
            "stream": True,
        }
        if self._config.effort is not None:
            body["output_config"] = {"effort": self._config.effort}
        if self._config.temperature is not None:
            body["temperature"] = self._config.temperature
        if self._tokens(body) > self._config.max_context_tokens:
            raise AgentError("The conversation outgrew claude.max_context_tokens.")
        return body

    def _require_room(self, context: Context, topic: Topic, messages: list[Block]) -> None:
        """Raises AgentExhausted if a proposal has no room, AgentError if a repair has none."""
        needed = self._tokens({"system": context.program, "tools": TOOLS, "messages": messages})
        if needed > _OPENING_SHARE * self._config.max_context_tokens:
            kind = AgentExhausted if topic.purpose == "propose" else AgentError
            raise kind(
                f"program.md, prepare.py and train.py take about {needed} tokens and leave no room "
                f"for a conversation in the {self._config.max_context_tokens} of "
                "claude.max_context_tokens; raise it."
            )

    def _tokens(self, body: Block) -> int:
        return self._api.estimator.tokens(self._api.encode(body))


def _opening(parts: Parts) -> list[Block]:
    return [
        _text(parts.effort) | {"cache_control": _HOUR},
        _text(parts.frontier) | {"cache_control": _HOUR},
        _text(parts.moment) | {"cache_control": _MINUTES},
    ]


def _marked(messages: list[Block]) -> list[Block]:
    """The messages with a cache mark on the last block. The API allows four marks; the opening has three."""
    *earlier, last = messages
    *blocks, end = last["content"]
    return [*earlier, {**last, "content": [*blocks, {"cache_control": _MINUTES, **end}]}]


def _append(messages: list[Block], reply: Reply, answer: list[Block]) -> None:
    """Quote the reply and answer it. The API rejects empty messages, so an empty reply is not quoted."""
    if reply.content:
        messages.append({"role": "assistant", "content": reply.content})
        messages.append({"role": "user", "content": answer})
    else:
        messages[-1]["content"].extend(answer)


def _remarks(reply: Reply, called: bool, left: int) -> list[Block]:
    remarks = [_CUT] if reply.stop_reason == "max_tokens" else []
    if not called:
        remarks.append(_NOTHING_CALLED)
    remarks.append(f"Replies left: {left}.")
    return [_text(" ".join(remarks))]


def _carry_out(reply: Reply, draft: Draft) -> list[tuple[ToolUse, Result]]:
    uses = reply.tool_uses
    return list(zip(uses, draft.answer(uses), strict=True))


def _result(use: ToolUse, result: Result) -> Block:
    return {
        "type": "tool_result",
        "tool_use_id": use.id,
        "content": [_text(result.text)],
        "is_error": result.is_error,
    }


def _text(text: str) -> Block:
    return {"type": "text", "text": text}
