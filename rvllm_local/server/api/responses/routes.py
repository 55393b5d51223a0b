"""The routes of OpenAI's responses API, stateless or going on from a kept response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.server.api.answer import reply
from rvllm_local.server.api.responses.answer import ResponsesAnswer
from rvllm_local.server.api.responses.input import Messages
from rvllm_local.server.api.responses.requests import input_call, responses_call
from rvllm_local.server.api.responses.schema import (
    CancelRequest,
    InputTokensRequest,
    ResponsesRequest,
)
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import bad_request
from rvllm_local.server.http.replies import JSONReply

BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": InputTokensRequest,
    "/v1/responses/{response_id}/cancel": CancelRequest,
}
B = TypeVar("B", bound=InputTokensRequest)
Answers = WeakValueDictionary[str, ResponsesAnswer]
_MOST_ITEMS = 100  # of one page


def routes(service: Service) -> list[Route]:
    """The routes of this dialect; kept responses live as long as these routes."""
    store = ResponseStore()
    # Those that were created and may still be open; nobody else holds the ended ones.
    open_answers: Answers = WeakValueDictionary()

    async def create(request: Request) -> Response | ASGIApp:
        answer = await _answer(service, store, request)
        open_answers[answer.request_id] = answer
        is_stream = answer.body.stream is True
        return await reply(service, request, answer.call, answer, is_stream)

    async def retrieve(request: Request) -> Response:
        if request.query_params.get("stream", "false") != "false":
            raise bad_request(
                "a kept response is not streamed; leave stream out",
                "stream",
                "unsupported",
            )
        return JSONReply(store.find(request.path_params["response_id"]).response)

    async def delete(request: Request) -> Response:
        response_id = request.path_params["response_id"]
        store.forget(response_id)
        return JSONReply({"id": response_id, "object": "response", "deleted": True})

    async def input_items(request: Request) -> Response:
        items = store.find(request.path_params["response_id"]).input_items
        return JSONReply(_page(items, request.query_params))

    async def cancel(request: Request) -> Response:
        response_id = request.path_params["response_id"]
        return JSONReply(_cancel(service, store, open_answers, response_id))

    async def input_tokens(request: Request) -> Response:
        return await _input_tokens(service, store, request)

    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
        Route("/v1/responses/{response_id}/cancel", cancel, methods=["POST"]),
        Route("/v1/responses/{response_id}", retrieve, methods=["GET"]),
        Route("/v1/responses/{response_id}", delete, methods=["DELETE"]),
        Route("/v1/responses/{response_id}/input_items", input_items, methods=["GET"]),
    ]


async def _answer(
    service: Service, store: ResponseStore, request: Request
) -> ResponsesAnswer:
    """The answer to a request that was read. Raises `Problem`."""
    body, reading = (
        await service.read(request, ResponsesRequest),
        service.reading(request),
    )
    if body.input is None and body.previous_response_id is None:
        raise bad_request("input: give text or at least one item", "input")
    earlier, size = _earlier(store, body)
    size += len(await request.body())
    body = _resolved(store, body)
    call = await service.run(
        request, lambda: responses_call(body, earlier, reading), "reading the input"
    )
    return ResponsesAnswer(body, call, earlier, size, store)


async def _input_tokens(
    service: Service, store: ResponseStore, request: Request
) -> Response:
    body = await service.read(request, InputTokensRequest)
    reading = service.reading(request)
    earlier, _ = _earlier(store, body)
    body = _resolved(store, body)
    call = await service.run(
        request, lambda: input_call(body, earlier, reading), "reading the input"
    )
    tokens = await service.count_tokens(call)
    return JSONReply({"object": "response.input_tokens", "input_tokens": tokens})


def _earlier(store: ResponseStore, body: InputTokensRequest) -> tuple[Messages, int]:
    """The messages of the response that a request goes on from, and their size."""
    if body.previous_response_id is None:
        return (), 0
    before = store.find(body.previous_response_id, "previous_response_id")
    return before.messages, before.size


def _resolved(store: ResponseStore, body: B) -> B:
    """The request with the items that it refers to by their ids. Raises `Problem`."""
    if not isinstance(body.input, list):
        return body
    items: list[Any] = []
    for index, row in enumerate(body.input):
        is_bare = row.get("type") is None and "content" not in row
        if row.get("type") != "item_reference" and not is_bare:
            items.append(row)
            continue
        where = f"input[{index}].id"
        item_id = row.get("id")
        if not isinstance(item_id, str):
            raise bad_request(f"{where}: a reference needs the id of an item", where)
        items.append(dict(store.find_item(item_id, where)))
    return msgspec.structs.replace(body, input=items)


def _cancel(
    service: Service, store: ResponseStore, open_answers: Answers, response_id: str
) -> dict[str, Any]:
    """End an open response. Raises `Problem` if it has ended, or never was."""
    answer = open_answers.get(response_id)
    if answer is not None and service.generator.cancel(response_id):
        return answer.cancelled()
    store.find(response_id)
    raise bad_request("this response has ended; only an open one can be cancelled")


def _page(
    items: Sequence[Mapping[str, Any]], query: Mapping[str, str]
) -> dict[str, Any]:
    """A page of the items as the query asks for it.

    Without a word it is the last twenty, the last one first.
    """
    limit = _limit(query.get("limit", "20"))
    rows = _after(_ordered(items, query.get("order", "desc")), query.get("after"))
    page = rows[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(rows) > len(page),
    }


def _ordered(items: Sequence[Mapping[str, Any]], order: str) -> list[Mapping[str, Any]]:
    if order not in ("asc", "desc"):
        raise bad_request("order must be asc or desc", "order")
    return list(items) if order == "asc" else list(reversed(items))


def _limit(text: str) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) < 4
    if not is_number or not 1 <= int(text) <= _MOST_ITEMS:
        raise bad_request(f"limit must be from 1 to {_MOST_ITEMS}", "limit")
    return int(text)


def _after(
    rows: list[Mapping[str, Any]], item_id: str | None
) -> list[Mapping[str, Any]]:
    """The rows behind the item with this id; all of them for None."""
    if item_id is None:
        return rows
    for index, row in enumerate(rows):
        if row["id"] == item_id:
            return rows[index + 1 :]
    raise bad_request("after must be the id of an item of this response", "after")
