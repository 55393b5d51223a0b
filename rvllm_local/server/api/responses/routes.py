"""The routes of OpenAI's responses API, stateless or going on from a kept response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.server.api.answer import reply
from rvllm_local.server.api.responses.answer import ResponsesAnswer
from rvllm_local.server.api.responses.requests import Messages, responses_call
from rvllm_local.server.api.responses.schema import ResponsesRequest
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import bad_request
from rvllm_local.server.http.replies import JSONReply

BODIES: dict[str, type[ResponsesRequest]] = {"/v1/responses": ResponsesRequest}
_MOST_ITEMS = 100  # of one page


def routes(service: Service) -> list[Route]:
    """The routes of this dialect; kept responses live as long as these routes."""
    store = ResponseStore()

    async def create(request: Request) -> Response | ASGIApp:
        return await _create(service, store, request)

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

    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/{response_id}", retrieve, methods=["GET"]),
        Route("/v1/responses/{response_id}", delete, methods=["DELETE"]),
        Route("/v1/responses/{response_id}/input_items", input_items, methods=["GET"]),
    ]


async def _create(
    service: Service, store: ResponseStore, request: Request
) -> Response | ASGIApp:
    body = await service.read(request, ResponsesRequest)
    size = len(await request.body())
    earlier: Messages = ()
    if body.previous_response_id is not None:
        before = store.find(body.previous_response_id, "previous_response_id")
        earlier = before.messages
        size += before.size
    call = await service.run(
        request, lambda: responses_call(body, earlier), "reading the input"
    )
    answer = ResponsesAnswer(body, call, earlier, size, store)
    return await reply(service, request, call, answer, body.stream is True)


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
