"""Routes that show the server itself: health, metrics, models, the engine at work, and tokens of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.errors import EngineError
from rvllm_local.server.api.chat_messages import ChatMessage, read_messages
from rvllm_local.server.api.common import Strict
from rvllm_local.server.api.service import Service
from rvllm_local.server.generation.metrics import CONTENT_TYPE
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.server.models.registry import Listed
from rvllm_local.server.models.served_model import Served, health_of
from rvllm_local.types import SamplingParams


class TokenizeRequest(Strict):
    """POST /tokenize: a text, or messages through the chat template."""

    model: str = "default"
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Strict, kw_only=True):
    """POST /detokenize."""

    model: str = "default"
    tokens: list[int]
    skip_special_tokens: bool = False


BODIES: dict[str, type[Strict]] = {
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def routes(service: Service) -> list[Route]:
    """The routes that show the server."""

    async def health(request: Request) -> Response:
        found = await _health(service)
        return JSONReply(found, 200 if found["status"] == "ok" else 503)

    async def metrics(request: Request) -> Response:
        engines = {
            served.name: await _stats(service, served)
            for served in service.registry.loaded()
        }
        return Response(service.metrics.exposition(engines), media_type=CONTENT_TYPE)

    async def models(request: Request) -> Response:
        rows = [_model(row) for row in service.registry.listed()]
        ends = {"has_more": False, "first_id": rows[0]["id"], "last_id": rows[-1]["id"]}
        return JSONReply({"object": "list", "data": rows, **ends})

    async def model(request: Request) -> Response:
        name = service.registry.resolve(request.path_params["name"])
        return JSONReply(
            next(_model(row) for row in service.registry.listed() if row.name == name)
        )

    async def engine(request: Request) -> Response:
        engines = [
            await _engine(service, served) for served in service.registry.loaded()
        ]
        return JSONReply(
            {
                "engines": engines,
                "models": [_model(row) for row in service.registry.listed()],
            }
        )

    async def explain(request: Request) -> Response:
        return await _explain(service, request.path_params["request_id"])

    async def tokenize(request: Request) -> Response:
        return await _tokenize(service, await service.read(request, TokenizeRequest))

    async def detokenize(request: Request) -> Response:
        return await _detokenize(
            service, await service.read(request, DetokenizeRequest)
        )

    return [
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/v1/engine", engine, methods=["GET"]),
        Route("/v1/engine/explain/{request_id}", explain, methods=["GET"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


async def _health(service: Service) -> dict[str, Any]:
    """Well if the default model's engine answers a question between its steps, and so do all others."""
    registry = service.registry
    engines = [await _engine_health(service, served) for served in registry.loaded()]
    default = next(
        (row for row in registry.listed() if row.name == registry.default), None
    )
    status = "ok"
    if any(row["status"] != "ok" for row in engines):
        status = "unwell"
    elif default is not None and default.state in ("loading", "failed"):
        status = default.state
    message = default.failure if default is not None else None
    return {
        "status": status,
        "default_model": registry.default,
        "message": message or "",
        "engines": engines,
    }


async def _engine_health(service: Service, served: Served) -> dict[str, Any]:
    found = health_of(served.client)
    row: dict[str, Any] = {"model": served.name, "status": "ok"}
    if found is not None:
        row |= {
            "state": found.state,
            "steps": found.steps,
            "last_step_age_s": found.last_step_age_s,
        }
        row |= {"restarts": found.restarts, "message": found.message, "pid": found.pid}
        if found.state != "ready":
            return {**row, "status": "unwell"}
    try:
        stats = await service.questions.ask(served.client, "stats", served.client.stats)
    except EngineError as error:
        return {**row, "status": "unwell", "message": str(error)}
    return {**row, "attention_backend": stats.get("attention_backend")}


async def _stats(service: Service, served: Served) -> Mapping[str, int | float | str]:
    try:
        return await service.questions.ask(served.client, "stats", served.client.stats)
    except EngineError:
        return {}


async def _engine(service: Service, served: Served) -> dict[str, Any]:
    health = health_of(served.client)
    limits = dataclasses.asdict(served.client.limits)
    head = {
        "model": served.name,
        "limits": limits,
        "planned_bytes": served.memory,
        "loaded_at": int(served.loaded_at),
    }
    if health is not None:
        head["health"] = dataclasses.asdict(health)
    try:
        snapshot = await service.questions.ask(
            served.client, "snapshot", served.client.snapshot
        )
    except EngineError as error:
        return {**head, "error": str(error)}
    return {**head, **dataclasses.asdict(snapshot)}


async def _explain(service: Service, request_id: str) -> Response:
    for served in service.registry.loaded():
        reports = await service.questions.ask(
            served.client, "explain", served.client.explain, request_id
        )
        if reports:
            return JSONReply(
                {
                    "id": request_id,
                    "model": served.name,
                    "choices": [dataclasses.asdict(r) for r in reports],
                }
            )
    raise Problem(404, "no finished request with this id is remembered", "not_found")


async def _tokenize(service: Service, asked: TokenizeRequest) -> Response:
    if (asked.prompt is None) == (asked.messages is None):
        raise Problem(400, "give either prompt or messages", None, "prompt")
    async with service.registry.lease(asked.model) as served:

        def work() -> list[int]:
            if asked.prompt is not None:
                return served.tokenizer.encode(
                    asked.prompt, bos=asked.add_special_tokens
                )
            messages = read_messages(asked.messages or [])
            return list(
                prepare_chat(
                    served.conversation,
                    ChatCall(asked.model, messages, SamplingParams(max_tokens=1)),
                ).prompts[0]
            )

        ids = await service.workers.run(
            work, service.settings.prepare_timeout_s, "tokenizing"
        )
        return JSONReply(
            {
                "tokens": ids,
                "count": len(ids),
                "max_model_len": served.client.limits.context_length,
            }
        )


async def _detokenize(service: Service, asked: DetokenizeRequest) -> Response:
    async with service.registry.lease(asked.model) as served:
        size = served.client.limits.vocab_size
        wrong = next((token for token in asked.tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise Problem(
                400,
                f"token id {wrong} is outside the vocabulary of {size}",
                None,
                "tokens",
            )
        decode = served.tokenizer.decode
        text = await service.workers.run(
            lambda: decode(asked.tokens, skip_special=asked.skip_special_tokens),
            service.settings.prepare_timeout_s,
            "detokenizing",
        )
        return JSONReply({"prompt": text})


def _model(row: Listed) -> dict[str, Any]:
    """A model in OpenAI's shape, with the fields of Anthropic's beside."""
    return {
        "id": row.name,
        "object": "model",
        "created": 0,
        "owned_by": "local",
        "type": "model",
        "display_name": row.name,
        "created_at": "1970-01-01T00:00:00Z",
        "state": row.state,
        "pinned": row.is_pinned,
        "open_requests": row.open_requests,
        "planned_bytes": row.memory,
        "context_length": row.context_length,
        "parent": row.parent,
    }
