"""The OpenAPI document of the server, made of its routes and of the types that its requests are read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local import __version__
from rvllm_local.server.http.replies import JSONReply

Bodies = Mapping[str, type[msgspec.Struct]]


def routes(others: Sequence[Route], bodies: Bodies) -> list[Route]:
    """The route that shows the document of all `others`; `bodies` are the request types by path."""
    document = describe(others, bodies)

    async def openapi(request: Request) -> Response:
        return JSONReply(document)

    return [Route("/openapi.json", openapi, methods=["GET"])]


def describe(others: Sequence[Route], bodies: Bodies) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    kinds = list(dict.fromkeys(bodies.values()))
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in others:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation: dict[str, Any] = {
                "operationId": f"{method.lower()}_{route.name}",
                "parameters": [
                    {
                        "name": name,
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string"},
                    }
                    for name in route.param_convertors
                ],
                "responses": {
                    "200": {"description": "The answer"},
                    "default": {"description": "An error, in the API's shape"},
                },
            }
            if method == "POST":
                schema = by_kind[bodies[route.path]]
                operation["requestBody"] = {
                    "required": True,
                    "content": {"application/json": {"schema": schema}},
                }
            paths.setdefault(route.path_format, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "rvllm", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
