"""Ollama's routes that this server has nothing behind: each refusal says what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local.server.api.ollama.schema import OllamaUnsupportedRequest
from rvllm_local.server.api.service import Bodies, Service
from rvllm_local.server.http.problems import Problem

_REFUSED = {
    "/api/copy": "models are not copied; give one another name with rvllm serve --alias",
    "/api/create": "models are not made here; quantize one with rvllm convert",
    "/api/push": "models are not sent anywhere",
    "/api/signin": "there is no account to sign in to",
    "/api/signout": "there is no account to sign out of",
    "/api/me": "there is no account",
}
_NO_BLOBS = "no blobs are kept here; models are fetched with /api/pull"
_BLOB = "/api/blobs/{digest}"

BODIES: Bodies = {
    **dict.fromkeys(_REFUSED, OllamaUnsupportedRequest),
    _BLOB: OllamaUnsupportedRequest,
}


def routes(service: Service) -> list[Route]:
    """The routes that are refused by name."""

    async def blob(request: Request) -> Response:
        raise Problem(404, _NO_BLOBS, "not_found")

    refused = [
        Route(path, _refusing(message), methods=["POST"], name=path.rpartition("/")[2])
        for path, message in _REFUSED.items()
    ]
    return [
        *refused,
        Route(_BLOB, blob, methods=["HEAD", "POST"]),
    ]


def _refusing(message: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        raise Problem(400, f"this is not supported: {message}", "unsupported")

    return refuse
