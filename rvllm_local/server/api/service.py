"""What every route needs: the models, the generator, the limits and the counters of one server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from starlette.requests import Request

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.reading import Reading
from rvllm_local.server.api.left_out import LeftOut
from rvllm_local.server.generation.generator import Generator
from rvllm_local.server.generation.metrics import Metrics
from rvllm_local.server.generation.workers import Workers
from rvllm_local.server.http import json_body
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.single_flight import Questions

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")
Bodies = dict[str, type[msgspec.Struct]]  # the types of request bodies, by path

_READ_AT_ONCE = 32 * 2**10  # bytes; at worst some two milliseconds


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running server. `at_end` is what its routes have to close."""

    settings: ServerSettings
    registry: Registry
    generator: Generator
    workers: Workers
    metrics: Metrics
    questions: Questions
    left_out: LeftOut = field(default_factory=LeftOut)
    at_end: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def read(self, request: Request, kind: type[T]) -> T:
        """The request's body as a `kind`. Raises `Problem` 400."""
        body, reading = await request.body(), self.reading(request)
        return await self.run(
            request,
            lambda: json_body.decode(
                body, kind, is_lenient=reading.is_lenient, dropped=reading.left_out
            ),
            "reading the body",
        )

    async def count_tokens(self, call: ChatCall) -> int:
        """The tokens of a conversation's prompt. Raises `Problem`."""
        async with self.registry.lease(call.model) as served:
            prepared = await served.prompts.prepare(
                call, served.client.limits, self.settings.prepare_timeout_s
            )
        return len(prepared.prompts[0])

    def reading(self, request: Request) -> Reading:
        """How this request is read; the guard tells what was left out."""
        return Reading(self.settings.is_lenient, request.state.left_out)

    async def run(self, request: Request, work: Callable[[], R], what: str) -> R:
        """`work()`, which grows with the request's body.

        At once if that is small, else on a worker, since the loop has others to serve.
        """
        if len(await request.body()) <= _READ_AT_ONCE:
            return work()
        return await self.workers.run(work, self.settings.prepare_timeout_s, what)
