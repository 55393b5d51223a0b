"""Anthropic's messages API: answers, streams and token counts, in that API's shapes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.conversation.calls import ChatCall, Delta, Ended, Usage
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.server.api.anthropic.requests import count_call, messages_call
from rvllm_local.server.api.anthropic.schema import CountRequest, MessagesRequest
from rvllm_local.server.api.openai.routes import raise_failed
from rvllm_local.server.api.service import Service, new_id
from rvllm_local.server.http.replies import (
    EventStream,
    JSONReply,
    event,
    while_connected,
)
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallStart,
)
from rvllm_local.types import FinishReason, SamplingParams

BODIES: dict[str, type[CountRequest]] = {
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
}
Event = dict[str, Any]


def routes(service: Service) -> list[Route]:
    """The routes of this dialect."""

    async def messages(request: Request) -> Response | ASGIApp:
        asked = await service.read(request, MessagesRequest)
        call = await service.run(
            request, lambda: messages_call(asked), "reading the messages"
        )
        request_id = new_id("msg_")
        blocks = Blocks(
            omits_thinking=asked.thinking is not None
            and asked.thinking.display == "omitted"
        )
        if not asked.stream:
            return await while_connected(
                request, _whole(service, call, request_id, blocks)
            )
        return EventStream(
            _events(service, call, request_id, blocks),
            lambda problem: event(problem.anthropic(), "error"),
        )

    async def count(request: Request) -> Response:
        asked = await service.read(request, CountRequest)
        params = SamplingParams(max_tokens=1)
        call = await service.run(
            request, lambda: count_call(asked, params), "reading the messages"
        )
        async with service.registry.lease(call.model) as served:
            prepared = await service.workers.run(
                lambda: prepare_chat(served.conversation, call),
                service.settings.prepare_timeout_s,
                "counting tokens",
            )
        return JSONReply({"input_tokens": len(prepared.prompts[0])})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count, methods=["POST"]),
    ]


class Blocks:
    """The blocks of one message as they grow; every change comes back as the events that tell of it.

    With `omits_thinking`, thoughts are blocks without text.
    """

    def __init__(self, omits_thinking: bool = False) -> None:
        self._omits_thinking = omits_thinking
        self.blocks: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._is_open = False

    def take(self, piece: Piece) -> list[Event]:
        match piece:
            case ContentDelta(text):
                return self._grow(
                    "text",
                    {"type": "text", "text": ""},
                    {"type": "text_delta", "text": text},
                    text,
                )
            case ReasoningDelta(text):
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                return self._grow(
                    "thinking",
                    empty,
                    {"type": "thinking_delta", "thinking": text},
                    text,
                )
            case ToolCallStart(_, call_id, name):
                call = {
                    "type": "tool_use",
                    "id": call_id,
                    "name": name,
                    "input": dict[str, Any](),
                }
                return [*self.close(), *self._open(call)]
            case ToolCallDelta(_, arguments):
                self._parts.append(arguments)
                return [
                    self._delta({"type": "input_json_delta", "partial_json": arguments})
                ]
            case _:
                return []

    def close(self) -> list[Event]:
        """End the block that is open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        block, text = self.blocks[-1], "".join(self._parts)
        events: list[Event] = []
        if block["type"] == "tool_use":
            block["input"] = _object(text)
        else:
            block[block["type"]] = text
        if block["type"] == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": ""}))
        return [*events, {"type": "content_block_stop", "index": len(self.blocks) - 1}]

    def _grow(
        self, kind: str, empty: dict[str, Any], delta: dict[str, Any], text: str
    ) -> list[Event]:
        opening: list[Event] = []
        if not self._is_open or self.blocks[-1]["type"] != kind:
            opening = [*self.close(), *self._open(empty)]
        if kind == "thinking" and self._omits_thinking:
            return opening
        self._parts.append(text)
        return [*opening, self._delta(delta)]

    def _open(self, block: dict[str, Any]) -> list[Event]:
        self.blocks.append(dict(block))
        self._parts, self._is_open = [], True
        return [
            {
                "type": "content_block_start",
                "index": len(self.blocks) - 1,
                "content_block": block,
            }
        ]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {
            "type": "content_block_delta",
            "index": len(self.blocks) - 1,
            "delta": delta,
        }


async def _whole(
    service: Service, call: ChatCall, request_id: str, blocks: Blocks
) -> Response:
    async with service.generator.open(call, request_id) as generation:
        ended = None
        async for outcomes in generation.outcomes():
            for outcome in outcomes:
                if isinstance(outcome, Delta):
                    for piece in outcome.pieces:
                        blocks.take(piece)
                else:
                    ended = outcome
        assert ended is not None
        raise_failed(ended)
        blocks.close()
        message = _message(request_id, generation.model, ended.usage)
        return JSONReply(
            {
                **message,
                **_stop(ended),
                "content": blocks.blocks or [{"type": "text", "text": ""}],
            }
        )


async def _events(
    service: Service, call: ChatCall, request_id: str, blocks: Blocks
) -> AsyncIterator[bytes]:
    async with service.generator.open(call, request_id) as generation:
        message = _message(request_id, generation.model, generation.usage)
        yield _sent({"type": "message_start", "message": message})
        async for outcomes in generation.outcomes():
            events: list[Event] = []
            for outcome in outcomes:
                if isinstance(outcome, Delta):
                    for piece in outcome.pieces:
                        events.extend(blocks.take(piece))
                else:
                    raise_failed(outcome)
                    events.extend(blocks.close())
                    events.append(
                        {
                            "type": "message_delta",
                            "delta": _stop(outcome),
                            "usage": _usage(outcome.usage),
                        }
                    )
                    events.append({"type": "message_stop"})
            if events or not outcomes:
                yield b"".join(map(_sent, events))


def _sent(one: Event) -> bytes:
    return event(one, one["type"])


def _message(request_id: str, model: str, usage: Usage) -> dict[str, Any]:
    return {
        "id": request_id,
        "type": "message",
        "role": "assistant",
        "model": model,
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
    else:
        reason = "end_turn" if ended.stop_sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": ended.stop_sequence}


def _object(text: str) -> dict[str, Any]:
    """The input of a call; one that was cut off by the token limit is empty."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
