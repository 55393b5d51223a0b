"""The routes of Ollama's API that ask a model."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.server.api.answer import reply
from rvllm_local.server.api.ollama import embeds, model_routes, refused_routes
from rvllm_local.server.api.ollama.answer import (
    OllamaAnswer,
    OllamaChatAnswer,
    OllamaGenerateAnswer,
)
from rvllm_local.server.api.ollama.durations import keep_alive_seconds
from rvllm_local.server.api.ollama.requests import Asking, chat_call, generate_call
from rvllm_local.server.api.ollama.schema import (
    OllamaChatRequest,
    OllamaGenerateRequest,
)
from rvllm_local.server.api.service import Bodies, Service
from rvllm_local.server.http.replies import JSON_LINES, JSONReply

BODIES: Bodies = {
    "/api/chat": OllamaChatRequest,
    "/api/generate": OllamaGenerateRequest,
    **embeds.BODIES,
    **model_routes.BODIES,
    **refused_routes.BODIES,
}


def routes(service: Service) -> list[Route]:
    """The routes of this dialect."""
    asking = _Asking(service)
    return [
        Route("/api/chat", asking.chat, methods=["POST"], name="ollama_chat"),
        Route("/api/generate", asking.generate, methods=["POST"]),
        *embeds.routes(service),
        *model_routes.routes(service),
        *refused_routes.routes(service),
    ]


class _Asking:
    """The answers of these routes."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, service.registry

    async def chat(self, request: Request) -> Response | ASGIApp:
        body = await self._service.read(request, OllamaChatRequest)
        answer = OllamaChatAnswer(body.model)
        if not body.messages:
            return await self._load(body, answer)
        call = await self._service.run(
            request,
            lambda: chat_call(body, self._service.reading(request)),
            "reading the messages",
        )
        self._keep(body)
        is_stream = body.stream is not False
        return await reply(
            self._service, request, call, answer, is_stream, framing=JSON_LINES
        )

    async def generate(self, request: Request) -> Response | ASGIApp:
        body = await self._service.read(request, OllamaGenerateRequest)
        is_turn = not body.raw and not body.suffix
        answer = OllamaGenerateAnswer(body.model, gives_context=is_turn)
        if not body.prompt and not body.suffix and not body.images:
            return await self._load(body, answer)
        async with self._registry.lease(body.model) as served:
            has_template = served.facts.chat_template is not None
        call = await self._service.run(
            request, lambda: generate_call(body, has_template), "reading the prompt"
        )
        self._keep(body)
        is_stream = body.stream is not False
        return await reply(
            self._service, request, call, answer, is_stream, framing=JSON_LINES
        )

    async def _load(self, body: Asking, answer: OllamaAnswer) -> Response:
        """Load the model, or unload it where it is to be kept for no time at all."""
        if keep_alive_seconds(body.keep_alive) == 0:
            await self._registry.unload(body.model)
            return JSONReply(answer.loaded("unload"))
        async with self._registry.lease(body.model):
            self._keep(body)
        return JSONReply(answer.loaded("load"))

    def _keep(self, body: Asking) -> None:
        """Set how long the model stays loaded, if the request says it."""
        seconds = keep_alive_seconds(body.keep_alive)
        if seconds is not None:
            self._registry.keep(body.model, seconds)
