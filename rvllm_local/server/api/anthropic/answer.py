"""The answer to a messages request: blocks as they grow, and the events that tell of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rvllm_local.conversation.calls import Delta, Ended, Outcome, Usage
from rvllm_local.server.api.common import new_id
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import event as sse
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallFailed,
    ToolCallStart,
)
from rvllm_local.types import FinishReason

Event = dict[str, Any]


class Blocks:
    """The blocks of one message. At most one is open: the last.

    Every change comes back as the events that tell of it. With `omits_thinking`,
    thoughts are blocks without text.
    """

    def __init__(self, omits_thinking: bool = False) -> None:
        self._omits_thinking = omits_thinking
        self.blocks: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._is_open = False
        self._failed: list[int] = []  # calls that were cut off

    def take(self, piece: Piece) -> list[Event]:
        """The events of a piece."""
        match piece:
            case ContentDelta(text):
                opening = self._ensure({"type": "text", "text": ""})
                delta = {"type": "text_delta", "text": text}
                return [*opening, self._grow(text, delta)]
            case ReasoningDelta(text):
                return self._think(text)
            case ToolCallStart(_, call_id, name):
                call = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
                return [*self.close(), self._open(call)]
            case ToolCallDelta(_, arguments):
                delta = {"type": "input_json_delta", "partial_json": arguments}
                return [self._grow(arguments, delta)]
            case ToolCallFailed() if self._is_calling:
                self._failed.append(len(self.blocks) - 1)
                return []
            case _:
                return []

    def whole(self) -> list[dict[str, Any]]:
        """The blocks of a whole answer, without half a call."""
        blocks = []
        for index, block in enumerate(self.blocks):
            if index not in self._failed:
                blocks.append(block)
        return blocks or [{"type": "text", "text": ""}]

    @property
    def _is_calling(self) -> bool:
        return self._is_open and self.blocks[-1]["type"] == "tool_use"

    def close(self) -> list[Event]:
        """End the block that is open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        block, text = self.blocks[-1], "".join(self._parts)
        stop = {"type": "content_block_stop", "index": len(self.blocks) - 1}
        if block["type"] == "tool_use":
            block["input"] = _object(text)
            return [stop]
        block[block["type"]] = text
        if block["type"] == "text":
            return [stop]
        return [self._delta({"type": "signature_delta", "signature": ""}), stop]

    def _think(self, text: str) -> list[Event]:
        opening = self._ensure({"type": "thinking", "thinking": "", "signature": ""})
        if self._omits_thinking:
            return opening
        delta = {"type": "thinking_delta", "thinking": text}
        return [*opening, self._grow(text, delta)]

    def _ensure(self, block: dict[str, Any]) -> list[Event]:
        """Have a block of this kind open."""
        if self._is_open and self.blocks[-1]["type"] == block["type"]:
            return []
        return [*self.close(), self._open(block)]

    def _open(self, block: dict[str, Any]) -> Event:
        self.blocks.append(dict(block))
        self._parts, self._is_open = [], True
        index = len(self.blocks) - 1
        return {"type": "content_block_start", "index": index, "content_block": block}

    def _grow(self, text: str, delta: dict[str, Any]) -> Event:
        self._parts.append(text)
        return self._delta(delta)

    def _delta(self, delta: dict[str, Any]) -> Event:
        index = len(self.blocks) - 1
        return {"type": "content_block_delta", "index": index, "delta": delta}


class MessageAnswer:
    """The `Answer` of this dialect."""

    def __init__(self, omits_thinking: bool = False) -> None:
        self.request_id = new_id("msg_")
        self._blocks = Blocks(omits_thinking)
        self._model = ""
        self._ended: Ended | None = None

    def opening(self, generation: Generation) -> list[Event]:
        self._model = generation.model
        message = self._message(generation.usage)
        return [{"type": "message_start", "message": message}]

    def take(self, outcome: Outcome) -> list[Event]:
        events: list[Event] = []
        if isinstance(outcome, Delta):
            for piece in outcome.pieces:
                events.extend(self._blocks.take(piece))
            return events
        self._ended = outcome
        usage = _usage(outcome.usage)
        return [
            *self._blocks.close(),
            {"type": "message_delta", "delta": _stop(outcome), "usage": usage},
            {"type": "message_stop"},
        ]

    async def keep(self) -> None:
        """Nothing outlives a request of this dialect."""

    def closing(self) -> bytes:
        return b""

    def whole(self) -> dict[str, Any]:
        assert self._ended is not None
        message = self._message(self._ended.usage)
        return {
            **message,
            **_stop(self._ended),
            "content": self._blocks.whole(),
        }

    def encode(self, event: Mapping[str, Any]) -> bytes:
        return sse(event, event["type"])

    def problem(self, problem: Problem) -> bytes:
        return sse(problem.anthropic(), "error")

    def _message(self, usage: Usage) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts cached tokens apart from the other input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def _stop(ended: Ended) -> dict[str, Any]:
    if ended.reason is FinishReason.LENGTH:
        reason = "max_tokens"
    elif ended.made_calls:
        reason = "tool_use"
    elif ended.stop_sequence is not None:
        reason = "stop_sequence"
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": ended.stop_sequence}


def _object(text: str) -> dict[str, Any]:
    """The input of a call; one that was cut off by the token limit is empty."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
