"""The routes of Ollama's API that show models, fetch them and remove them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local import __version__
from rvllm_local.models.store import InUseError, find_installed, remove
from rvllm_local.server.api.ollama.durations import FOREVER, expiry
from rvllm_local.server.api.ollama.listing import loaded_row, row, shown
from rvllm_local.server.api.ollama.pulls import Pull
from rvllm_local.server.api.ollama.schema import OllamaNameRequest, OllamaPullRequest
from rvllm_local.server.api.service import Bodies, Service
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.server.http.replies import (
    JSON_LINES,
    EventStream,
    JSONReply,
    while_connected,
)
from rvllm_local.server.models.registry import Listed

# The version whose API this is: some clients ask for one that is new enough.
_SPOKEN = "0.15.0"
BODIES: Bodies = {"/api/show": OllamaNameRequest, "/api/pull": OllamaPullRequest}


def routes(service: Service) -> list[Route]:
    """The routes of models."""
    models = _Models(service)
    shown = {
        "/api/version": models.version,
        "/api/tags": models.tags,
        "/api/ps": models.ps,
    }
    rows = [Route(path, show, methods=["GET"]) for path, show in shown.items()]
    rows += [
        Route("/api/show", models.show, methods=["POST"]),
        Route("/api/pull", models.pull, methods=["POST"]),
        Route("/api/delete", models.delete, methods=["DELETE"]),
    ]
    return rows


class _Models:
    """The answers of these routes."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, service.registry

    async def version(self, request: Request) -> Response:
        return JSONReply({"version": _SPOKEN, "rvllm": __version__})

    async def tags(self, request: Request) -> Response:
        await self._registry.find_models()
        rows = []
        seen = set()
        for listed in self._registry.listed():
            files = self._registry.files(listed.name)
            if listed.parent is None and files.path in seen:
                continue  # another name of the same model
            seen.add(files.path)
            rows.append(row(listed.name, await self._registry.facts(listed.name)))
        return JSONReply({"models": rows})

    async def ps(self, request: Request) -> Response:
        rows = []
        for listed in self._registry.listed():
            if listed.state == "ready" and listed.parent is None:
                rows.append(await self._loaded(listed))
        return JSONReply({"models": rows})

    async def show(self, request: Request) -> Response:
        body = await self._service.read(request, OllamaNameRequest)
        name = self._registry.resolve(_name(body))
        facts = await self._registry.facts(name)
        if facts is None:
            raise Problem(400, f"the files of {name} cannot be read", "model_unusable")
        return JSONReply(shown(name, facts))

    async def pull(self, request: Request) -> Response | ASGIApp:
        """Fetch a model. A client that goes away pauses it: what came is kept."""
        body = await self._service.read(request, OllamaPullRequest)
        pull = Pull(_name(body), self._service.settings.cache_dir, self._registry)
        if body.stream is not False:
            return EventStream(pull.lines(), pull.problem, JSON_LINES)
        return await while_connected(request, pull.whole())

    async def delete(self, request: Request) -> Response:
        """Remove a model from the store, from this server's list and from memory."""
        body = await self._service.read(request, OllamaNameRequest)
        name = self._registry.resolve(_name(body))
        if name == self._registry.default:
            raise Problem(409, f"{name} is this server's default model", "in_use")
        cache_dir = self._service.settings.cache_dir
        model = await asyncio.to_thread(find_installed, name, cache_dir)
        if model is None:
            raise bad_request(f"{name} is not in the store; delete its files", "model")
        await self._registry.unload(name)
        try:
            await asyncio.to_thread(remove, name, cache_dir)
        except InUseError as error:
            raise Problem(409, str(error), "in_use") from None
        for each in model.names:
            self._registry.withdraw(each)
        return Response(status_code=200)

    async def _loaded(self, listed: Listed) -> dict[str, Any]:
        left_s = listed.unloaded_in_s
        expires = expiry(time.time(), FOREVER if left_s is None else left_s)
        facts = await self._registry.facts(listed.name)
        return loaded_row(listed, facts, expires)


def _name(body: OllamaNameRequest | OllamaPullRequest) -> str:
    """The model's name, from the field's present or its former name."""
    name = body.model or body.name
    if not name:
        raise bad_request("model: give a model's name", "model")
    return name
