"""The engine itself over HTTP, for `HttpClient`: token ids in, the engine's own events out. No text is made or read here."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.clients import http_messages
from rvllm_local.conversation.pooled import checked_count
from rvllm_local.server.api.common import checked_priority
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import EventStream, JSONReply, event
from rvllm_local.types import Request as TokenRequest
from rvllm_local.types import StreamEvent

BODIES: dict[str, type[msgspec.Struct]] = {
    http_messages.GENERATE: http_messages.GenerateRequest,
    http_messages.READ: http_messages.ReadRequest,
    http_messages.LOAD: http_messages.LoadRequest,
}
_DONE = b"data: [DONE]\n\n"


def routes(service: Service) -> list[Route]:
    """The routes of the engine's own client."""

    async def load(request: Request) -> Response:
        body = await service.read(request, http_messages.LoadRequest)
        async with service.registry.lease(body.model) as served:
            limits = dataclasses.asdict(served.client.limits)
            return JSONReply({"model": served.name, "limits": limits})

    async def generate(request: Request) -> Response | ASGIApp:
        body = await service.read(request, http_messages.GenerateRequest)
        checked_priority(body.priority)
        requests = http_messages.decode(body)
        events = _events(service, body.model, requests)
        return EventStream(events, lambda problem: event(problem.openai()))

    async def cancel(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        if not service.generator.cancel(request_id):
            raise Problem(404, "no request with this id is open", "not_found")
        return JSONReply({"id": request_id, "cancelled": True})

    return [
        Route(http_messages.LOAD, load, methods=["POST"]),
        Route(http_messages.GENERATE, generate, methods=["POST"]),
        _read_route(service),
        Route(f"{http_messages.REQUESTS}/{{request_id}}", cancel, methods=["DELETE"]),
    ]


def _read_route(service: Service) -> Route:
    """Texts for a model that reads alone."""

    async def read(request: Request) -> Response | ASGIApp:
        body = await service.read(request, http_messages.ReadRequest)
        checked_priority(body.priority)
        checked_count(len(body.inputs), "inputs")
        requests = http_messages.decode_read(body)
        events = _events(service, body.model, requests)
        return EventStream(events, lambda problem: event(problem.openai()))

    return Route(http_messages.READ, read, methods=["POST"])


async def _events(
    service: Service, model: str, requests: Sequence[TokenRequest]
) -> AsyncIterator[bytes]:
    async with service.generator.open_tokens(model, requests) as generation:
        yield b""  # accepted: the status goes out
        async for events in generation.token_events():
            if not events:
                yield b""
                continue
            yield event({"events": [_row(token) for token in events]})
        yield _DONE


def _row(token: StreamEvent) -> dict[str, Any]:
    row = dataclasses.asdict(token)
    if token.vector is not None:
        row["vector"] = base64.b64encode(token.vector).decode()
    return row
