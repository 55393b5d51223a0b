"""The routes of OpenAI's responses API, stateless or going on from a kept response."""

from __future__ import annotations

import time
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.server.api.answer import reply
from rvllm_local.server.api.common import Object
from rvllm_local.server.api.responses.answer import ResponsesAnswer
from rvllm_local.server.api.responses.compaction import (
    CompactionAnswer,
    summary_call,
)
from rvllm_local.server.api.responses.file import ResponseFile
from rvllm_local.server.api.responses.input import Messages
from rvllm_local.server.api.responses.kept import Kept
from rvllm_local.server.api.responses.pages import item_page
from rvllm_local.server.api.responses.requests import input_call, responses_call
from rvllm_local.server.api.responses.schema import (
    CancelRequest,
    CompactRequest,
    InputTokensRequest,
    ResponsesRequest,
)
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import bad_request
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.server.http.settings import ServerSettings

BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": InputTokensRequest,
    "/v1/responses/compact": CompactRequest,
    "/v1/responses/{response_id}/cancel": CancelRequest,
}
B = TypeVar("B", bound=InputTokensRequest)


def routes(service: Service) -> list[Route]:
    """The routes of this dialect, and the store of kept responses behind them."""
    store = _store(service.settings)
    service.at_end.append(store.close)
    responses = _Responses(service, store)
    path = "/v1/responses"
    one_path = f"{path}/{{response_id}}"
    return [
        Route(path, responses.create, methods=["POST"]),
        Route(f"{path}/input_tokens", responses.input_tokens, methods=["POST"]),
        Route(f"{path}/compact", responses.compact, methods=["POST"]),
        Route(f"{one_path}/cancel", responses.cancel, methods=["POST"]),
        Route(one_path, responses.retrieve, methods=["GET"]),
        Route(one_path, responses.delete, methods=["DELETE"]),
        Route(f"{one_path}/input_items", responses.input_items, methods=["GET"]),
    ]


class _Responses:
    """The kept responses, the open ones, and the answers of these routes."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self._service = service
        self._store = store
        # Those that were created and may still be open; nobody else holds the ended.
        self._open: WeakValueDictionary[str, ResponsesAnswer] = WeakValueDictionary()

    async def create(self, request: Request) -> Response | ASGIApp:
        answer = await self._answer(request)
        self._open[answer.request_id] = answer
        is_stream = answer.body.stream is True
        return await reply(self._service, request, answer.call, answer, is_stream)

    async def retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream", "false") != "false":
            raise bad_request(
                "a kept response is not streamed; leave stream out",
                "stream",
                "unsupported",
            )
        kept = await self._kept(request)
        return JSONReply(kept.response)

    async def delete(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        await self._store.forget(response_id)
        return JSONReply({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        kept = await self._kept(request)
        return JSONReply(item_page(kept.input_items, request.query_params))

    async def cancel(self, request: Request) -> Response:
        """End an open response. Raises `Problem` if it has ended, or never was."""
        response_id = request.path_params["response_id"]
        answer = self._open.get(response_id)
        if answer is not None and self._service.generator.cancel(response_id):
            return JSONReply(answer.cancelled())
        await self._kept(request)
        raise bad_request("this response has ended; only an open one can be cancelled")

    async def input_tokens(self, request: Request) -> Response:
        """The tokens of an input."""
        body = await self._service.read(request, InputTokensRequest)
        reading = self._service.reading(request)
        earlier, _ = await self._earlier(body)
        body = await self._resolved(body)
        call = await self._service.run(
            request, lambda: input_call(body, earlier, reading), "reading the input"
        )
        tokens = await self._service.count_tokens(call)
        return JSONReply({"object": "response.input_tokens", "input_tokens": tokens})

    async def compact(self, request: Request) -> Response | ASGIApp:
        """A shorter conversation in the place of a long one."""
        body = await self._service.read(request, CompactRequest)
        reading = self._service.reading(request)
        if body.input is None and body.previous_response_id is None:
            raise bad_request("input: give text or at least one item", "input")
        earlier, _ = await self._earlier(body)
        body = await self._resolved(body)
        call = await self._service.run(
            request, lambda: input_call(body, earlier, reading), "reading the input"
        )
        messages = call.messages
        if body.instructions is not None:
            messages = messages[1:]
        answer = CompactionAnswer(messages, self._store, int(time.time()))
        return await reply(
            self._service, request, summary_call(call), answer, is_stream=False
        )

    async def _answer(self, request: Request) -> ResponsesAnswer:
        """The answer to a request that was read. Raises `Problem`."""
        body = await self._service.read(request, ResponsesRequest)
        reading = self._service.reading(request)
        if body.input is None and body.previous_response_id is None:
            raise bad_request("input: give text or at least one item", "input")
        earlier, size = await self._earlier(body)
        size += len(await request.body())
        body = await self._resolved(body)
        call = await self._service.run(
            request, lambda: responses_call(body, earlier, reading), "reading the input"
        )
        return ResponsesAnswer(body, call, earlier, size, self._store)

    async def _kept(self, request: Request) -> Kept:
        """The response that the path names. Raises `Problem` 404."""
        return await self._store.find(request.path_params["response_id"])

    async def _earlier(self, body: InputTokensRequest) -> tuple[Messages, int]:
        """The messages of the response that a request goes on from, and their size."""
        if body.previous_response_id is None:
            return (), 0
        name = "previous_response_id"
        before = await self._store.find(body.previous_response_id, name)
        return before.messages, before.size

    async def _resolved(self, body: B) -> B:
        """The request with the items that it refers to by their ids.

        Raises `Problem`.
        """
        if not isinstance(body.input, list):
            return body
        items: list[Object] = []
        for index, row in enumerate(body.input):
            item = row
            if _is_reference(row):
                item = await self._referred(row, f"input[{index}].id")
            items.append(item)
        return msgspec.structs.replace(body, input=items)

    async def _referred(self, row: Object, where: str) -> Object:
        """The item whose id a reference holds. Raises `Problem`."""
        item_id = row.get("id")
        if not isinstance(item_id, str):
            raise bad_request(f"{where}: a reference needs the id of an item", where)
        return dict(await self._store.find_item(item_id, where))


def _store(settings: ServerSettings) -> ResponseStore:
    """The store of a server with these settings; its file is opened when needed."""
    path = settings.responses_file
    if path is None:
        return ResponseStore()
    return ResponseStore(
        open_file=lambda: ResponseFile(
            path, settings.responses_max_bytes, settings.responses_max_age_s
        )
    )


def _is_reference(row: Object) -> bool:
    """True for an item that only names another. Its type may be left out."""
    kind = row.get("type")
    if kind is None:
        return "content" not in row
    return bool(kind == "item_reference")
