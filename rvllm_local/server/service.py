"""What every route needs: the models, the generator, the limits and the counters of one server."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.requests import Request

from rvllm_local.server import json_body
from rvllm_local.server.generation import Generator
from rvllm_local.server.metrics import Metrics
from rvllm_local.server.registry import Registry
from rvllm_local.server.settings import ServerSettings
from rvllm_local.server.workers import Workers

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running server."""

    settings: ServerSettings
    registry: Registry
    generator: Generator
    workers: Workers
    metrics: Metrics

    async def read(self, request: Request, kind: type[T]) -> T:
        """The request's body as a `kind`. Raises `Problem` 400."""
        return json_body.decode(await request.body(), kind, is_lenient=self.settings.is_lenient)


def new_id(prefix: str) -> str:
    """A fresh id, in the form that an API's clients expect."""
    return f"{prefix}{uuid.uuid4().hex}"
