"""The output items of a response as they grow, and the events that tell of every change."""

from __future__ import annotations

from typing import Any

from rvllm_local.server.api.openai.routes import chat_logprobs
from rvllm_local.server.api.service import new_id
from rvllm_local.text.tokenizer import Tokenizer
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
    """Takes pieces, keeps `items`, and returns events without their sequence numbers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.items: list[dict[str, Any]] = []
        self._tokenizer = tokenizer
        self._parts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._is_open = False

    def take(
        self, piece: Piece, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> list[Event]:
        match piece:
            case ContentDelta(text):
                opening = self._ensure("message")
                self._parts.append(text)
                self._logprobs.extend(logprobs)
                found = chat_logprobs(logprobs, self._tokenizer)
                delta = {
                    "delta": text,
                    "logprobs": [] if found is None else found["content"],
                }
                return [
                    *opening,
                    self._event("response.output_text.delta", content_index=0, **delta),
                ]
            case ReasoningDelta(text):
                opening = self._ensure("reasoning")
                self._parts.append(text)
                return [
                    *opening,
                    self._event(
                        "response.reasoning_text.delta", content_index=0, delta=text
                    ),
                ]
            case ToolCallStart(_, call_id, name):
                closing = self.close()
                call = {
                    "type": "function_call",
                    "id": new_id("fc_"),
                    "call_id": call_id,
                    "name": name,
                }
                return [
                    *closing,
                    *self._open({**call, "arguments": "", "status": "in_progress"}),
                ]
            case ToolCallDelta(_, arguments):
                self._parts.append(arguments)
                return [
                    self._event(
                        "response.function_call_arguments.delta", delta=arguments
                    )
                ]
            case ToolCallEnd():
                return self.close()
            case _:
                return []

    def close(self, status: str = "completed") -> list[Event]:
        """End the item that is open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        item, text = self.items[-1], "".join(self._parts)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            done = [
                self._event(
                    "response.function_call_arguments.done",
                    arguments=text,
                    name=item["name"],
                )
            ]
        else:
            part = item["content"][0]
            part["text"] = text
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            said: dict[str, Any] = {"text": text}
            if kind == "output_text":
                found = chat_logprobs(self._logprobs, self._tokenizer)
                part["logprobs"] = said["logprobs"] = (
                    [] if found is None else found["content"]
                )
            done = [
                self._event(f"response.{kind}.done", content_index=0, **said),
                self._event(
                    "response.content_part.done", content_index=0, part=dict(part)
                ),
            ]
        return [*done, self._item_event("response.output_item.done")]

    def _ensure(self, kind: str) -> list[Event]:
        if self._is_open and self.items[-1]["type"] == kind:
            return []
        closing = self.close()
        if kind == "message":
            part: dict[str, Any] = {
                "type": "output_text",
                "text": "",
                "annotations": [],
                "logprobs": [],
            }
            item = {
                "type": "message",
                "id": new_id("msg_"),
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {
                "type": "reasoning",
                "id": new_id("rs_"),
                "summary": [],
                "content": [],
                "status": "in_progress",
            }
        opening = self._open(item)
        self.items[-1]["content"].append(part)
        return [
            *closing,
            *opening,
            self._event(
                "response.content_part.added", content_index=0, part=dict(part)
            ),
        ]

    def _open(self, item: dict[str, Any]) -> list[Event]:
        self.items.append(item)
        self._parts, self._logprobs, self._is_open = [], [], True
        return [self._item_event("response.output_item.added")]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {
            "type": kind,
            "item_id": self.items[-1]["id"],
            "output_index": len(self.items) - 1,
            **fields,
        }

    def _item_event(self, kind: str) -> Event:
        item = self.items[-1]
        shown = (
            {**item, "content": list(item["content"])}
            if "content" in item
            else dict(item)
        )
        return {"type": kind, "output_index": len(self.items) - 1, "item": shown}
