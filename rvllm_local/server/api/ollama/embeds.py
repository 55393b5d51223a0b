"""Ollama's two routes that ask for vectors."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local.conversation.pooled import check_dimensions
from rvllm_local.server.api.ollama.durations import keep_alive_seconds
from rvllm_local.server.api.ollama.schema import (
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
)
from rvllm_local.server.api.service import Bodies, Service
from rvllm_local.server.api.vectors.reading import pools_of, read_texts
from rvllm_local.server.api.vectors.writing import (
    WrittenReply,
    join_vectors,
    write_vectors,
)
from rvllm_local.server.http.replies import while_connected

BODIES: Bodies = {
    "/api/embed": OllamaEmbedRequest,
    "/api/embeddings": OllamaEmbeddingsRequest,
}


def routes(service: Service) -> list[Route]:
    """The present route, and the former one."""

    async def embed(request: Request) -> Response:
        body = await service.read(request, OllamaEmbedRequest)
        return await while_connected(request, _embed(service, body))

    async def embeddings(request: Request) -> Response:
        body = await service.read(request, OllamaEmbeddingsRequest)
        same = OllamaEmbedRequest(
            model=body.model, input=body.prompt, keep_alive=body.keep_alive
        )
        return await while_connected(request, _embed(service, same, is_former=True))

    return [
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embeddings, methods=["POST"], name="ollama_former"),
    ]


async def _embed(
    service: Service, body: OllamaEmbedRequest, is_former: bool = False
) -> Response:
    """Texts that are too long are cut, unless the request says otherwise."""
    began = time.perf_counter_ns()
    texts = [body.input] if isinstance(body.input, str) else body.input
    seconds = keep_alive_seconds(body.keep_alive)
    async with service.registry.lease(body.model) as served:
        loaded = time.perf_counter_ns()
        pools = pools_of(served, "embed")
        check_dimensions(body.dimensions, pools)
        most_tokens: int | None = served.client.limits.context_length
        if body.truncate is False:
            most_tokens = None
        # Without a text it is a request to load the model.
        written: list[bytes] = []
        num_tokens = 0
        if texts:
            inputs = [(text,) for text in texts]
            read = await read_texts(service, served, inputs, most_tokens)
            # Ollama's vectors have length 1; those of its former route are as made.
            vectors = await join_vectors(
                read.parts, body.dimensions, pools, is_unit=not is_former
            )
            written = await write_vectors(vectors)
            num_tokens = read.num_tokens
        if seconds is not None:
            service.registry.keep(body.model, seconds)
    if is_former:
        first = written[0] if written else b"[]"
        return WrittenReply(b'{"embedding":' + first + b"}")
    about: dict[str, Any] = {
        "model": body.model,
        "total_duration": time.perf_counter_ns() - began,
        "load_duration": loaded - began,
        "prompt_eval_count": num_tokens,
    }
    fields = msgspec.json.encode(about)[1:]
    return WrittenReply(b'{"embeddings":[' + b",".join(written) + b"]," + fields)
