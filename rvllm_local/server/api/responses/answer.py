"""The answer to a responses request: the response object, its events, and its keeping."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rvllm_local.conversation.calls import ChatCall, Delta, Ended, Outcome
from rvllm_local.conversation.reading import Reading
from rvllm_local.server.api.common import new_id
from rvllm_local.server.api.responses.input import (
    Messages,
    input_messages,
    output_messages,
)
from rvllm_local.server.api.responses.items import Event, OutputItems
from rvllm_local.server.api.responses.kept import Kept
from rvllm_local.server.api.responses.schema import ResponsesRequest
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.api.responses.usage import usage_object
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import event as sse
from rvllm_local.types import FinishReason


@dataclass(slots=True, weakref_slot=True, eq=False)
class ResponsesAnswer:
    """The `Answer` of this dialect. A response that ended well is put into the store.

    `earlier` are the messages before this request; with them it has `size` bytes.
    """

    body: ResponsesRequest
    call: ChatCall
    earlier: Messages
    size: int
    store: ResponseStore
    request_id: str = field(default_factory=lambda: new_id("resp_"))
    _created: float = field(default_factory=time.time)
    _num_events: int = 0
    _model: str = ""
    _items: OutputItems | None = None
    _response: dict[str, Any] = field(default_factory=dict)

    def opening(self, generation: Generation) -> list[Event]:
        self._model = generation.model
        self._items = OutputItems(generation.served)
        begun = self._object("in_progress", self._model)
        return [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
        ]

    def take(self, outcome: Outcome) -> list[Event]:
        assert self._items is not None
        if isinstance(outcome, Delta):
            return self._items.take(outcome)
        is_cut = outcome.reason is FinishReason.LENGTH
        status = "incomplete" if is_cut else "completed"
        events = self._items.close(status)
        response = self._ended(status, outcome, self._items.items)
        self._response = response
        return [*events, {"type": f"response.{status}", "response": response}]

    async def keep(self) -> None:
        if self.body.store is not False:
            await self.store.keep(self._kept(self._response))

    def closing(self) -> bytes:
        return b""

    def whole(self) -> dict[str, Any]:
        return self._response

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """An event with its number."""
        numbered = {**event, "sequence_number": self._num_events}
        self._num_events += 1
        return sse(numbered, event["type"])

    def problem(self, problem: Problem) -> bytes:
        """The response failed; then an error in the form that clients raise on."""
        error = {"code": problem.code or problem.kind, "message": problem.message}
        response = self._object("failed", self.call.model, error=error)
        failed = self.encode({"type": "response.failed", "response": response})
        return failed + self.encode(
            {"type": "error", **error, "param": problem.parameter}
        )

    def cancelled(self) -> dict[str, Any]:
        """The response object of one that is ended before its end."""
        return self._object("cancelled", self._model or self.call.model)

    def _object(self, status: str, model: str, **fields: Any) -> dict[str, Any]:
        """The response object; `fields` are those that are known by now."""
        body, params = self.body, self.call.params
        text: Any = {"format": {"type": "text"}}
        if body.text is not None:
            text = _builtins(body.text)
        reasoning: Any = {"effort": None, "summary": None}
        if body.reasoning is not None:
            reasoning = _builtins(body.reasoning)
        tool_choice: Any = "auto"
        if body.tool_choice is not None:
            tool_choice = body.tool_choice
        return {
            "id": self.request_id,
            "object": "response",
            "created_at": int(self._created),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": model,
            "output": [],
            "parallel_tool_calls": self.call.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "reasoning": reasoning,
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": text,
            "tool_choice": tool_choice,
            "tools": body.tools or [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
            **fields,
        }

    def _ended(
        self, status: str, ended: Ended, items: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """The response object of an output that came to its end."""
        is_cut = status == "incomplete"
        return self._object(
            status,
            self._model,
            output=items,
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            completed_at=None if is_cut else int(time.time()),
            usage=usage_object(ended.usage),
        )

    def _kept(self, response: Mapping[str, Any]) -> Kept:
        """The response with all that the next turn needs."""
        output = response["output"]
        answered = output_messages(output) if output else ()
        sent = input_messages(self.body.input or "", Reading(is_lenient=True))
        messages = (*self.earlier, *sent, *answered)
        size = self.size
        for item in output:
            size += sum(len(part["text"]) for part in item.get("content", ()))
        return Kept(response, _input_items(self.body), messages, size)


def _input_items(body: ResponsesRequest) -> tuple[dict[str, Any], ...]:
    """The items of a request as they are listed later, each with an id."""
    if not isinstance(body.input, list):
        content = [{"type": "input_text", "text": body.input or ""}]
        row = {"type": "message", "role": "user", "content": content}
        return ({"id": new_id("item_"), **row},)
    rows = []
    for row in body.input:
        given = {name: value for name, value in row.items() if value is not None}
        if not isinstance(given.get("id"), str):
            given["id"] = new_id("item_")
        rows.append({"type": "message", **given})
    return tuple(rows)


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value)
