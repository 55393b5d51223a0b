"""Routes that show the server itself: health, metrics, models, and the engine at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rvllm_local.errors import EngineError
from rvllm_local.server.api.common import Strict
from rvllm_local.server.api.service import Service
from rvllm_local.server.generation.metrics import CONTENT_TYPE
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.server.models.registry import Listed
from rvllm_local.server.models.served_model import Served, health_of

BODIES: dict[str, type[Strict]] = {}


def routes(service: Service) -> list[Route]:
    """The routes that show the server."""
    shown = _Shown(service)
    by_path = {
        "/": shown.root,
        "/health": shown.health,
        "/metrics": shown.metrics,
        "/v1/models": shown.models,
        "/v1/models/{name:path}": shown.model,
        "/v1/engine": shown.engine,
        "/v1/engine/explain/{request_id}": shown.explain,
    }
    return [Route(path, show, methods=["GET"]) for path, show in by_path.items()]


class _Shown:
    """The answers of these routes."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, service.registry

    async def root(self, request: Request) -> Response:
        """For clients that ask whether anything answers here; on Ollama's port, it does."""
        _, port = request.scope.get("server") or ("", None)
        if port is not None and port == self._service.settings.ollama_port:
            return PlainTextResponse("Ollama is running")
        return JSONReply({"server": "rvllm_local", "routes": "/openapi.json"})

    async def health(self, request: Request) -> Response:
        """Well if every loaded engine answers a question between its steps.

        The default model's state counts as well, loaded or not.
        """
        registry = self._registry
        engines = [await self._engine_health(served) for served in registry.loaded()]
        default = next(row for row in registry.listed() if row.name == registry.default)
        status = "ok"
        if any(row["status"] != "ok" for row in engines):
            status = "unwell"
        elif default.state in ("loading", "failed"):
            status = default.state
        body = {
            "status": status,
            "default_model": registry.default,
            "message": default.failure or "",
            "engines": engines,
        }
        return JSONReply(body, 200 if status == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        engines: dict[str, Mapping[str, int | float | str]] = {}
        for served in self._registry.loaded():
            try:
                engines[served.name] = await self._stats(served)
            except EngineError:
                engines[served.name] = {}
        text = self._service.metrics.exposition(engines)
        return Response(text, media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        await self._registry.find_models()
        await self._registry.learn_lengths()
        rows = [_model(row) for row in self._registry.listed()]
        body: dict[str, Any] = {"object": "list", "data": rows, "has_more": False}
        body["first_id"], body["last_id"] = rows[0]["id"], rows[-1]["id"]
        return JSONReply(body)

    async def model(self, request: Request) -> Response:
        name = self._registry.resolve(request.path_params["name"])
        await self._registry.learn_lengths()
        listed = self._registry.listed()
        return JSONReply(next(_model(row) for row in listed if row.name == name))

    async def engine(self, request: Request) -> Response:
        engines = [await self._engine(served) for served in self._registry.loaded()]
        models = [_model(row) for row in self._registry.listed()]
        return JSONReply({"engines": engines, "models": models})

    async def explain(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]
        for served in self._registry.loaded():
            client = served.client
            reports = await self._service.questions.ask(
                client, "explain", client.explain, request_id
            )
            if reports:
                choices = [dataclasses.asdict(report) for report in reports]
                body = {"id": request_id, "model": served.name, "choices": choices}
                if left_out := self._service.left_out.of(request_id):
                    body["left_out"] = left_out
                return JSONReply(body)
        raise Problem(
            404, "no finished request with this id is remembered", "not_found"
        )

    async def _engine_health(self, served: Served) -> dict[str, Any]:
        health = health_of(served.client)
        row: dict[str, Any] = {"model": served.name, "status": "ok"}
        if health is not None:
            row["state"] = health.state
            row["steps"] = health.steps
            row["last_step_age_s"] = health.last_step_age_s
            row["restarts"] = health.restarts
            row["message"] = health.message
            row["pid"] = health.pid
            if health.state != "ready":
                return {**row, "status": "unwell"}
        try:
            stats = await self._stats(served)
        except EngineError as error:
            return {**row, "status": "unwell", "message": str(error)}
        return {**row, "attention_backend": stats.get("attention_backend")}

    async def _stats(self, served: Served) -> Mapping[str, int | float | str]:
        """The engine's own figures. Raises `EngineError` if it does not answer."""
        client = served.client
        return await self._service.questions.ask(client, "stats", client.stats)

    async def _engine(self, served: Served) -> dict[str, Any]:
        client = served.client
        head = {
            "model": served.name,
            "limits": dataclasses.asdict(client.limits),
            "planned_bytes": served.memory,
            "loaded_at": int(served.loaded_at),
        }
        if (health := health_of(client)) is not None:
            head["health"] = dataclasses.asdict(health)
        try:
            snapshot = await self._service.questions.ask(
                client, "snapshot", client.snapshot
            )
        except EngineError as error:
            return {**head, "error": str(error)}
        return {**head, **dataclasses.asdict(snapshot)}


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
