"""The answer to a chat completion: messages with thoughts, calls and log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.conversation.calls import Delta, Ended, Outcome
from rvllm_local.server.api.logprobs import chat_logprobs
from rvllm_local.server.api.openai.answer import (
    Chunk,
    CompletionAnswer,
    finish_reason,
)
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
)


@dataclass(slots=True)
class _Choice:
    """One choice as it is put together for a whole reply."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    is_calling: bool = False  # the last call is not complete

    def add(self, piece: Piece) -> None:
        match piece:
            case ContentDelta(text):
                self.text.append(text)
            case ReasoningDelta(text):
                self.reasoning.append(text)
            case ToolCallStart(_, call_id, name):
                self.calls.append(_call(call_id, name))
                self.is_calling = True
            case ToolCallDelta(_, arguments):
                self.calls[-1]["function"]["arguments"] += arguments
            case ToolCallEnd():
                self.is_calling = False
            case ToolCallFailed() if self.is_calling:
                self.calls.pop()  # half a call is of no use
                self.is_calling = False

    def message(self) -> dict[str, Any]:
        text, reasoning = "".join(self.text), "".join(self.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.calls and not text:
            message["content"] = None
        message["refusal"] = None
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        return message


class ChatAnswer(CompletionAnswer):
    """Choices of a chat completion."""

    id_prefix, kind = "chatcmpl-", "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self,
        wants_usage: bool,
        hides_thinking: bool = False,
        wants_timings: bool = False,
    ) -> None:
        super().__init__(wants_usage, wants_timings)
        self._hides_thinking = hides_thinking
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)

    def first_chunk(self, index: int) -> Chunk:
        return _chunk(index, {"role": "assistant", "content": ""})

    def take(self, outcome: Outcome) -> list[Chunk]:
        if isinstance(outcome, Ended):
            reason = finish_reason(outcome)
            self._choices[outcome.index].finish_reason = reason
            return [{**_chunk(outcome.index, {}), "finish_reason": reason}]
        return self._grown(outcome)

    def _grown(self, delta: Delta) -> list[Chunk]:
        choice = self._choices[delta.index]
        chunks = []
        for piece in delta.pieces:
            choice.add(piece)
            if self._hides_thinking and isinstance(piece, ReasoningDelta):
                continue
            if (fields := _fields(piece)) is not None:
                chunks.append(_chunk(delta.index, fields))
        if delta.logprobs:
            rows = chat_logprobs(delta.logprobs, self.generation.served)
            choice.logprobs.extend(rows)
            if rows:
                chunks = chunks or [_chunk(delta.index, {})]
                chunks[0]["logprobs"] = _content(rows)
        return chunks

    def choices(self) -> list[dict[str, Any]]:
        choices = []
        for index in range(self.generation.num_choices):
            choice = self._choices[index]
            message = choice.message()
            if self._hides_thinking:
                message.pop("reasoning_content", None)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": _content(choice.logprobs),
                    "finish_reason": choice.finish_reason,
                }
            )
        return choices


def _chunk(index: int, delta: dict[str, Any]) -> Chunk:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _content(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": rows, "refusal": None} if rows else None


def _call(call_id: str, name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return {"id": call_id, "type": "function", "function": function}


def _fields(piece: Piece) -> dict[str, Any] | None:
    """What a piece adds to the message, as a chunk tells it; None for nothing."""
    match piece:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case ToolCallStart(index, call_id, name):
            return {"tool_calls": [{"index": index, **_call(call_id, name)}]}
        case ToolCallDelta(index, arguments):
            function = {"arguments": arguments}
            return {"tool_calls": [{"index": index, "function": function}]}
        case _:
            return None
