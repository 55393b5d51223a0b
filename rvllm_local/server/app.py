"""The application: every route behind the guard, and what lives as long as the server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from rvllm_local.server.api import openapi
from rvllm_local.server.api.anthropic import routes as anthropic
from rvllm_local.server.api.engine import routes as engine_routes
from rvllm_local.server.api.engine import token_routes, tokenize_routes
from rvllm_local.server.api.ollama import routes as ollama
from rvllm_local.server.api.openai import routes as openai
from rvllm_local.server.api.responses import routes as responses
from rvllm_local.server.api.service import Service
from rvllm_local.server.api.vectors import routes as vectors
from rvllm_local.server.generation.generator import Generator
from rvllm_local.server.generation.metrics import Metrics
from rvllm_local.server.generation.workers import Workers
from rvllm_local.server.http.field_names import in_dialect
from rvllm_local.server.http.guard import Guard
from rvllm_local.server.http.problems import Problem, problem_of
from rvllm_local.server.http.refusal_log import RefusalLog
from rvllm_local.server.http.replies import GoneError
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.single_flight import Questions

_DIALECTS = (
    openai,
    responses,
    anthropic,
    ollama,
    vectors,
    engine_routes,
    tokenize_routes,
    token_routes,
)
# The types that request bodies are read into, by path.
BODIES: Mapping[str, type[msgspec.Struct]] = {
    path: kind for dialect in _DIALECTS for path, kind in dialect.BODIES.items()
}


class Server:
    """The ASGI application of one server. Made on the event loop that will run it.

    `close` ends its engines, and waits for them until the loop's time `end_by`.
    """

    def __init__(self, registry: Registry, settings: ServerSettings) -> None:
        self.settings = settings
        self.registry = registry
        self.end_by: float | None = None
        self.refusals = RefusalLog()
        metrics, workers = Metrics(), Workers()
        generator = Generator(registry, workers, settings, metrics)
        self.service = Service(
            settings, registry, generator, workers, metrics, Questions()
        )
        self.routes: list[Route] = []
        for dialect in _DIALECTS:
            self.routes += dialect.routes(self.service)
        self.routes += openapi.routes(self.routes, BODIES)
        router = Router(self.routes, redirect_slashes=False)
        self._app = Guard(
            _Translated(router),
            settings,
            self.allowed_methods,
            metrics.responded,
            self.refusals,
        )
        self._watch = asyncio.create_task(registry.watch())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def allowed_methods(self, path: str) -> frozenset[str] | None:
        """The methods of a path; None if there is no such route."""
        return methods_of(self.routes, path)

    async def close(self) -> None:
        """End the engines and the workers."""
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        await self.registry.close(self.end_by)
        self.service.workers.close()
        for close in self.service.at_end:
            await close()
        self.refusals.tell()


@contextlib.asynccontextmanager
async def running(
    registry: Registry, settings: ServerSettings
) -> AsyncIterator[Server]:
    """A server that is closed at the end of the block."""
    server = Server(registry, settings)
    try:
        yield server
    finally:
        await server.close()


def methods_of(routes: Sequence[BaseRoute], path: str) -> frozenset[str] | None:
    """The methods that routes allow for a path, matched on the path alone.

    A route that spells the path out hides those that have a variable in its place.
    """
    spelled, matched = set[str](), set[str]()
    for route in routes:
        if not isinstance(route, Route):
            continue
        if route.path == path:
            spelled |= route.methods or set()
        elif route.path_regex.match(path):
            matched |= route.methods or set()
    return frozenset(spelled or matched) or None


class _Translated:
    """Turns the project's errors into problems, where no answer has begun.

    No name is bound to what is raised: an error that its own traceback leads to again
    keeps all that the request's frames hold, until the collector comes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except GoneError:
            return
        except Problem as known_problem:
            raise in_dialect(scope["path"], known_problem) from None
        except Exception as error:
            if problem_of(error).code == "internal_error":
                raise
            raise in_dialect(scope["path"], problem_of(error)) from None
