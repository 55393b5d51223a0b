"""The routes of embeddings and of reranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local.conversation.pooled import (
    best_first,
    check_dimensions,
    checked_count,
    pairs,
    prompt_named,
    relevance_of,
)
from rvllm_local.server.api.common import new_id, refuse_unsupported
from rvllm_local.server.api.service import Bodies, Service
from rvllm_local.server.api.vectors.reading import (
    Read,
    pools_of,
    read_texts,
    read_tokens,
)
from rvllm_local.server.api.vectors.schema import (
    NEUTRAL,
    Document,
    EmbeddingsRequest,
    RerankRequest,
)
from rvllm_local.server.api.vectors.writing import (
    WrittenReply,
    join_vectors,
    write_vectors,
)
from rvllm_local.server.http.problems import bad_request
from rvllm_local.server.http.replies import JSONReply, while_connected
from rvllm_local.server.models.served_model import Served
from rvllm_local.text.read_inputs import EncodedInput

_EMBEDDINGS = "/v1/embeddings"
_RERANK = ("/v1/rerank", "/v2/rerank", "/rerank")
BODIES: Bodies = {
    _EMBEDDINGS: EmbeddingsRequest,
    **dict.fromkeys(_RERANK, RerankRequest),
}


def routes(service: Service) -> list[Route]:
    """The routes of models that read texts and write none."""

    async def embeddings(request: Request) -> Response:
        body = await service.read(request, EmbeddingsRequest)
        return await while_connected(request, _embeddings(service, body))

    async def rerank(request: Request) -> Response:
        body = await service.read(request, RerankRequest)
        return await while_connected(request, _rerank(service, body))

    made = [Route(_EMBEDDINGS, embeddings, methods=["POST"])]
    for path in _RERANK:
        made.append(Route(path, rerank, methods=["POST"]))
    return made


async def _embeddings(service: Service, body: EmbeddingsRequest) -> Response:
    async with service.registry.lease(body.model or "default") as served:
        pools = pools_of(served, "embed")
        check_dimensions(body.dimensions, pools)
        prompt = prompt_named(pools, body.input_type)
        read = await _read_inputs(service, served, body, prompt)
        vectors = await join_vectors(read.parts, body.dimensions, pools)
        written = await write_vectors(vectors, body.encoding_format == "base64")
        about = {"model": served.name, "usage": _usage(read.num_tokens)}
        return WrittenReply(_list_of(written, about))


async def _read_inputs(
    service: Service, served: Served, body: EmbeddingsRequest, prompt: str
) -> Read:
    """Have the inputs read; `prompt` goes before each text."""
    most = served.client.limits.context_length if body.truncate else None
    rows: Sequence[Any] = body.input
    if isinstance(body.input, str):
        rows = [body.input]
    checked_count(len(rows), "input")
    if len({type(row) for row in rows}) > 1:
        raise bad_request(
            "input mixes texts and token ids; give a text, texts, token ids, or lists of "
            "them",
            "input",
        )
    if isinstance(rows[0], str):
        inputs = [(prompt + text,) for text in rows]
        return await read_texts(service, served, inputs, most)
    if prompt:
        raise bad_request(
            "input_type puts a prompt before texts; give texts and no token ids, or "
            "leave it out",
            "input_type",
        )
    return await read_tokens(service, served, _token_rows(rows, most))


def _token_rows(rows: Sequence[Any], most: int | None) -> list[EncodedInput]:
    """Token ids as they were given: one list of them, or many."""
    if isinstance(rows[0], int):
        rows = [rows]
    return [EncodedInput(tuple(ids[:most])) for ids in rows]


def _list_of(vectors: Sequence[bytes], about: dict[str, Any]) -> bytes:
    """OpenAI's list of vectors that are JSON already."""
    rows = []
    for index, vector in enumerate(vectors):
        head = b'{"object":"embedding","index":%d,"embedding":' % index
        rows.append(head + vector + b"}")
    fields = msgspec.json.encode(about)[1:]
    return b'{"object":"list","data":[' + b",".join(rows) + b"]," + fields


async def _rerank(service: Service, body: RerankRequest) -> Response:
    refuse_unsupported(body, NEUTRAL)
    checked_count(len(body.documents), "documents")
    if body.top_n is not None and body.top_n < 1:
        raise bad_request(f"top_n is {body.top_n}; give at least 1", "top_n")
    async with service.registry.lease(body.model or "default") as served:
        pools = pools_of(served, "score")
        texts = [_text_of(document) for document in body.documents]
        most = _most_tokens(served, body)
        read = await read_texts(service, served, pairs(body.query, texts, pools), most)
        scores = relevance_of(read.parts, pools)
        results = []
        for index in best_first(scores, body.top_n):
            row: dict[str, Any] = {
                "index": index,
                "relevance_score": scores[index],
            }
            if body.return_documents:
                row["document"] = {"text": texts[index]}
            results.append(row)
        return JSONReply(_ranked(served.name, results, read.num_tokens))


def _usage(num_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
    }


def _text_of(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text


def _most_tokens(served: Served, body: RerankRequest) -> int:
    """Tokens of a pair: the model's most, or fewer where the caller asks for fewer."""
    longest = served.client.limits.context_length
    if body.max_tokens_per_doc is None:
        return longest
    if body.max_tokens_per_doc < 1:
        raise bad_request(
            f"max_tokens_per_doc is {body.max_tokens_per_doc}; give at least 1",
            "max_tokens_per_doc",
        )
    return min(longest, body.max_tokens_per_doc)


def _ranked(
    model: str,
    results: Sequence[dict[str, Any]],
    num_tokens: int,
) -> dict[str, Any]:
    """An answer with the fields of both Cohere's and Jina's."""
    return {
        "id": new_id("rerank-"),
        "object": "list",
        "model": model,
        "results": list(results),
        "usage": _usage(num_tokens),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 0},
            "tokens": {"input_tokens": num_tokens, "output_tokens": 0},
        },
    }
