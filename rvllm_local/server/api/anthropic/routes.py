"""The routes of Anthropic's messages API."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.conversation.prompts import prepare_chat
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
            request, lambda: messages_call(body), "reading the messages"
        )
        answer = MessageAnswer(body.omits_thinking)
        return await reply(service, request, call, answer, body.stream is True)

    async def count(request: Request) -> Response:
        body = await service.read(request, CountRequest)
        params = SamplingParams(max_tokens=1)
        call = await service.run(
            request, lambda: count_call(body, params), "reading the messages"
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
