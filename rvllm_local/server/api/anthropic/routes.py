"""The routes of Anthropic's messages API."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.server.api.answer import reply
from rvllm_local.server.api.anthropic.answer import MessageAnswer
from rvllm_local.server.api.anthropic.requests import count_call, messages_call
from rvllm_local.server.api.anthropic.schema import CountRequest, MessagesRequest
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.types import SamplingParams

BODIES: dict[str, type[CountRequest]] = {
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
}


def routes(service: Service) -> list[Route]:
    """The routes of this dialect."""

    async def messages(request: Request) -> Response | ASGIApp:
        body = await service.read(request, MessagesRequest)
        call = await service.run(
            request,
            lambda: messages_call(body, service.reading(request)),
            "reading the messages",
        )
        answer = MessageAnswer(body.omits_thinking)
        return await reply(service, request, call, answer, body.stream is True)

    async def count(request: Request) -> Response:
        body = await service.read(request, CountRequest)
        params = SamplingParams(max_tokens=1)
        call = await service.run(
            request,
            lambda: count_call(body, params, service.reading(request)),
            "reading the messages",
        )
        return JSONReply({"input_tokens": await service.count_tokens(call)})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count, methods=["POST"]),
    ]
