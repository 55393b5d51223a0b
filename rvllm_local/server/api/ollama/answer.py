"""Answers of Ollama's API: a line of JSON for each piece, and one with the figures."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from rvllm_local.conversation.calls import Delta, Ended, Outcome
from rvllm_local.server.api.common import new_id
from rvllm_local.server.api.logprobs import chat_logprobs
from rvllm_local.server.api.ollama.durations import timestamp
from rvllm_local.server.api.ollama.reply_parts import ReplyParts
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from rvllm_local.types import FinishReason

Line = dict[str, Any]


class OllamaAnswer(ABC):
    """The `Answer` of this dialect. `model` is the name that the client asked for."""

    def __init__(self, model: str) -> None:
        self.request_id = new_id("ollama-")
        self._model = model
        self._generation: Generation | None = None
        self._parts = ReplyParts()
        self._call: Line = {}  # that is being written
        self._whole: Line = {}
        self._began = time.monotonic_ns()
        self._opened = self._first = 0

    @property
    def generation(self) -> Generation:
        """The open request. Only after `opening`."""
        assert self._generation is not None
        return self._generation

    def opening(self, generation: Generation) -> list[Line]:
        self._generation = generation
        self._opened = time.monotonic_ns()
        return []

    def take(self, outcome: Outcome) -> list[Line]:
        """A line for each piece; the end's has the figures."""
        self._first = self._first or time.monotonic_ns()
        if isinstance(outcome, Ended):
            figures = self._figures(outcome)
            self._whole = self._line(self._parts.whole(), figures)
            return [self._line({}, figures)]
        return self._grown(outcome)

    async def keep(self) -> None:  # noqa: B027 (no answer of these keeps anything)
        """Nothing outlives a request of this dialect."""

    def closing(self) -> bytes:
        return b""

    def whole(self) -> dict[str, Any]:
        return self._whole

    def encode(self, event: Mapping[str, Any]) -> bytes:
        return json.dumps(event, allow_nan=False).encode() + b"\n"

    def problem(self, problem: Problem) -> bytes:
        return self.encode(problem.ollama())

    def loaded(self, reason: str) -> dict[str, Any]:
        """The whole answer to a request that only loads the model, or unloads it."""
        return self._line({}, {"done": True, "done_reason": reason})

    @abstractmethod
    def shown(self, fields: Mapping[str, Any]) -> Line:
        """Text, thoughts and calls as the route shows them."""

    def last_fields(self) -> Line:
        """What the route adds to the end."""
        return {}

    def _grown(self, delta: Delta) -> list[Line]:
        lines = []
        for piece in delta.pieces:
            fields = self._fields(piece)
            if fields:
                self._parts.add(fields)
                lines.append(self._line(fields, {"done": False}))
        rows = []
        if delta.logprobs:
            rows = chat_logprobs(delta.logprobs, self.generation.served)
        if rows:
            self._parts.logprobs.extend(rows)
            lines = lines or [self._line({}, {"done": False})]
            lines[0]["logprobs"] = rows
        return lines

    def _fields(self, piece: Piece) -> Line:
        """What a piece adds; a call is told when it is complete."""
        match piece:
            case ContentDelta(text):
                return {"content": text}
            case ReasoningDelta(text):
                return {"thinking": text}
            case ToolCallStart(index, call_id, name):
                function = {"index": index, "name": name, "arguments": ""}
                self._call = {"id": call_id, "function": function}
            case ToolCallDelta(_, arguments):
                self._call["function"]["arguments"] += arguments
            case ToolCallEnd():
                function = self._call["function"]
                function["arguments"] = _arguments(function["arguments"])
                return {"tool_calls": [self._call]}
        return {}

    def _line(self, fields: Mapping[str, Any], state: Mapping[str, Any]) -> Line:
        line = {"model": self._model, "created_at": timestamp(time.time())}
        logprobs = {}
        if fields.get("logprobs"):
            logprobs["logprobs"] = fields["logprobs"]
        return {**line, **self.shown(fields), **state, **logprobs}

    def _figures(self, ended: Ended) -> Line:
        now, usage = time.monotonic_ns(), ended.usage
        is_cut = ended.reason is FinishReason.LENGTH
        return {
            "done": True,
            "done_reason": "length" if is_cut else "stop",
            **self.last_fields(),
            "total_duration": now - self._began,
            "load_duration": self._opened - self._began,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": self._first - self._opened,
            "eval_count": usage.completion_tokens,
            "eval_duration": now - self._first,
        }


class OllamaChatAnswer(OllamaAnswer):
    """A message, or a part of one."""

    def shown(self, fields: Mapping[str, Any]) -> Line:
        message = {"role": "assistant", "content": fields.get("content", "")}
        for name in ("thinking", "tool_calls"):
            if fields.get(name):
                message[name] = fields[name]
        return {"message": message}


class OllamaGenerateAnswer(OllamaAnswer):
    """Text. With `gives_context`, the end holds the tokens of all that was said."""

    def __init__(self, model: str, gives_context: bool) -> None:
        super().__init__(model)
        self._gives_context = gives_context

    def shown(self, fields: Mapping[str, Any]) -> Line:
        line = {"response": fields.get("content", "")}
        if fields.get("thinking"):
            line["thinking"] = fields["thinking"]
        return line

    def last_fields(self) -> Line:
        if not self._gives_context:
            return {}
        return {"context": self.generation.token_ids(0)}


def _arguments(text: str) -> Any:
    """The arguments as an object; text that is none is shown under a name."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {"arguments": text}
    return value if isinstance(value, dict) else {"arguments": value}
