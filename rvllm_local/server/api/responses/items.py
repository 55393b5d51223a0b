"""The output items of a response as they grow, and the events that tell of every change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rvllm_local.conversation.calls import Delta
from rvllm_local.server.api.common import new_id
from rvllm_local.server.api.logprobs import chat_logprobs
from rvllm_local.server.models.served_model import Served
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from rvllm_local.types import TokenLogprob

Event = dict[str, Any]


class OutputItems:
    """Takes deltas, keeps `items`, and returns events without their sequence numbers.

    At most one item is open: the last. A piece of another kind closes it.
    """

    def __init__(self, served: Served) -> None:
        self.items: list[dict[str, Any]] = []
        self._served = served
        self._parts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._is_open = False

    def take(self, delta: Delta) -> list[Event]:
        """The events of a delta; its log-probabilities go with its first content."""
        logprobs, pieces = delta.logprobs, delta.pieces
        if logprobs and not pieces:
            pieces = (ContentDelta(""),)
        events: list[Event] = []
        for piece in pieces:
            if isinstance(piece, ContentDelta):
                events.extend(self._content(piece.text, logprobs))
                logprobs = ()
            else:
                events.extend(self._other(piece))
        return events

    def close(self, status: str = "completed") -> list[Event]:
        """End the item that is open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        text = "".join(self._parts)
        if item["type"] == "function_call":
            events = self._close_call(item, text)
        else:
            events = self._close_part(item, text)
        return [*events, self._item_event("response.output_item.done")]

    def _content(self, text: str, drawn: Sequence[TokenLogprob]) -> list[Event]:
        opening = self._ensure("message")
        rows = chat_logprobs(drawn, self._served)
        self._parts.append(text)
        self._logprobs.extend(rows)
        kind = "response.output_text.delta"
        return [
            *opening,
            self._event(kind, content_index=0, delta=text, logprobs=rows),
        ]

    def _other(self, piece: Piece) -> list[Event]:
        match piece:
            case ReasoningDelta(text):
                opening = self._ensure("reasoning")
                self._parts.append(text)
                kind = "response.reasoning_text.delta"
                return [*opening, self._event(kind, content_index=0, delta=text)]
            case ToolCallStart(_, call_id, name):
                return [*self.close(), *self._open(_call(call_id, name))]
            case ToolCallDelta(_, arguments):
                self._parts.append(arguments)
                kind = "response.function_call_arguments.delta"
                return [self._event(kind, delta=arguments)]
            case ToolCallEnd():
                return self.close()
            case _:
                return []

    def _close_call(self, item: dict[str, Any], arguments: str) -> list[Event]:
        item["arguments"] = arguments
        kind = "response.function_call_arguments.done"
        return [self._event(kind, arguments=arguments, name=item["name"])]

    def _close_part(self, item: dict[str, Any], text: str) -> list[Event]:
        part = item["content"][0]
        part["text"] = text
        fields: dict[str, Any] = {"text": text}
        if part["type"] == "output_text":
            part["logprobs"] = fields["logprobs"] = self._logprobs
        kind = f"response.{part['type']}.done"
        shown = dict(part)
        return [
            self._event(kind, content_index=0, **fields),
            self._event("response.content_part.done", content_index=0, part=shown),
        ]

    def _ensure(self, kind: str) -> list[Event]:
        """Have an item of this kind open."""
        if self._is_open and self.items[-1]["type"] == kind:
            return []
        closing = self.close()
        item, part = _message() if kind == "message" else _reasoning()
        opening = self._open(item)
        item["content"].append(part)
        shown = dict(part)
        added = "response.content_part.added"
        return [
            *closing,
            *opening,
            self._event(added, content_index=0, part=shown),
        ]

    def _open(self, item: dict[str, Any]) -> list[Event]:
        self.items.append(item)
        self._parts, self._logprobs, self._is_open = [], [], True
        return [self._item_event("response.output_item.added")]

    def _event(self, kind: str, **fields: Any) -> Event:
        item_id, index = self.items[-1]["id"], len(self.items) - 1
        return {"type": kind, "item_id": item_id, "output_index": index, **fields}

    def _item_event(self, kind: str) -> Event:
        """An event that shows the last item as it is now."""
        shown = dict(self.items[-1])
        if "content" in shown:
            shown["content"] = list(shown["content"])
        return {"type": kind, "output_index": len(self.items) - 1, "item": shown}


def _message() -> tuple[dict[str, Any], dict[str, Any]]:
    """A message without content, and its part of text."""
    item = {
        "type": "message",
        "id": new_id("msg_"),
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return item, part


def _reasoning() -> tuple[dict[str, Any], dict[str, Any]]:
    """An item of thinking without content, and its part of text."""
    item = {
        "type": "reasoning",
        "id": new_id("rs_"),
        "summary": [],
        "content": [],
        "status": "in_progress",
    }
    return item, {"type": "reasoning_text", "text": ""}


def _call(call_id: str, name: str) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": new_id("fc_"),
        "call_id": call_id,
        "name": name,
        "arguments": "",
        "status": "in_progress",
    }
