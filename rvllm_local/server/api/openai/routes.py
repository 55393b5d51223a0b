"""The routes of OpenAI's chat completions and completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.server.api.answer import reply
from rvllm_local.server.api.openai.chat_answer import ChatAnswer
from rvllm_local.server.api.openai.requests import chat_call, text_call
from rvllm_local.server.api.openai.schema import ChatRequest, Sampling, TextRequest
from rvllm_local.server.api.openai.text_answer import Scoring, TextAnswer
from rvllm_local.server.api.service import Service

BODIES: dict[str, type[Sampling]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
}


def routes(service: Service) -> list[Route]:
    """The routes of this dialect."""

    async def chat(request: Request) -> Response | ASGIApp:
        body = await service.read(request, ChatRequest)
        call = await service.run(
            request,
            lambda: chat_call(body, service.reading(request)),
            "reading the messages",
        )
        answer = ChatAnswer(
            body.wants_usage, body.hides_thinking, _wants_timings(request)
        )
        return await reply(service, request, call, answer, body.stream is True)

    async def text(request: Request) -> Response | ASGIApp:
        body = await service.read(request, TextRequest)
        call = await service.run(
            request, lambda: text_call(body), "reading the prompts"
        )
        scoring = Scoring(
            echoes=body.echo is True and body.logprobs is not None,
            is_shown=body.prompt_logprobs is not None,
        )
        answer = TextAnswer(
            call,
            body.echo is True,
            scoring,
            body.wants_usage,
            _wants_timings(request),
        )
        return await reply(service, request, call, answer, body.stream is True)

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", text, methods=["POST"]),
    ]


def _wants_timings(request: Request) -> bool:
    """Whether a client asks for timings: in a header, which no server refuses."""
    return request.headers.get("x-include-timings", "").lower() == "true"
