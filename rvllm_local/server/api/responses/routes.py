"""OpenAI's responses API, stateless or going on from a kept response: answers and streams, in that API's shapes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.conversation.calls import ChatCall, Delta, Ended
from rvllm_local.server.api.openai.routes import raise_failed
from rvllm_local.server.api.responses.answer import Event, OutputItems
from rvllm_local.server.api.responses.requests import (
    input_messages,
    output_messages,
    responses_call,
)
from rvllm_local.server.api.responses.schema import ResponsesRequest
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.api.service import Service, new_id
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.server.http.replies import (
    EventStream,
    JSONReply,
    event,
    while_connected,
)
from rvllm_local.text.tools import ContentDelta, Piece
from rvllm_local.types import FinishReason

BODIES: dict[str, type[ResponsesRequest]] = {"/v1/responses": ResponsesRequest}


def routes(service: Service) -> list[Route]:
    """The routes of this dialect; kept responses live as long as these routes."""
    store = ResponseStore()

    async def create(request: Request) -> Response | ASGIApp:
        asked = await service.read(request, ResponsesRequest)
        previous = asked.previous_response_id
        before = (
            None if previous is None else store.find(previous, "previous_response_id")
        )
        earlier = () if before is None else before.messages
        call = await service.run(
            request, lambda: responses_call(asked, earlier), "reading the input"
        )
        size = len(await request.body()) + (0 if before is None else before.size)
        turn = _Turn(asked, call, earlier, size)
        if not asked.stream:
            return await while_connected(request, _whole(service, store, turn))
        return EventStream(_events(service, store, turn), turn.on_problem)

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


@dataclass(slots=True)
class _Turn:
    """One request on its way to a response; with what came before it, it has `size` bytes. `sequence` counts the events of
    its stream.
    """

    asked: ResponsesRequest
    call: ChatCall
    earlier: tuple[Mapping[str, Any], ...]
    size: int
    response_id: str = field(default_factory=lambda: new_id("resp_"))
    created: float = field(default_factory=time.time)
    sequence: int = 0

    def response(self, status: str, model: str, **found: Any) -> dict[str, Any]:
        """The response object; `found` are the fields that are known by now."""
        asked, params = self.asked, self.call.params
        text = (
            {"format": {"type": "text"}}
            if asked.text is None
            else _builtins(asked.text)
        )
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": int(self.created),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": model,
            "output": [],
            "parallel_tool_calls": self.call.parallel_tool_calls,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None}
            if asked.reasoning is None
            else _builtins(asked.reasoning),
            "store": asked.store is not False,
            "temperature": params.temperature,
            "text": text,
            "tool_choice": "auto"
            if asked.tool_choice is None
            else _builtins(asked.tool_choice),
            "tools": [_builtins(tool) for tool in asked.tools or ()],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            "metadata": asked.metadata or {},
            **found,
        }

    def sent(self, one: Event) -> bytes:
        """An event with its number, as bytes."""
        self.sequence += 1
        return event({**one, "sequence_number": self.sequence - 1}, one["type"])

    def on_problem(self, problem: Problem) -> bytes:
        """What a stream tells of a failure after its start: the response failed, in the form that clients raise on."""
        error = {"code": problem.code or problem.kind, "message": problem.message}
        failed = self.sent(
            {
                "type": "response.failed",
                "response": self.response("failed", self.call.model, error=error),
            }
        )
        return failed + self.sent(
            {"type": "error", **error, "param": problem.parameter}
        )


def _ended(
    turn: _Turn, generation: Generation, items: OutputItems, ended: Ended
) -> dict[str, Any]:
    """The response of an output that has come to its end."""
    usage = ended.usage
    is_cut = ended.reason is FinishReason.LENGTH
    return turn.response(
        "incomplete" if is_cut else "completed",
        generation.model,
        output=items.items,
        incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
        completed_at=None if is_cut else int(time.time()),
        usage={
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    )


async def _whole(service: Service, store: ResponseStore, turn: _Turn) -> Response:
    async with service.generator.open(turn.call, turn.response_id) as generation:
        items = OutputItems(generation.served.tokenizer)
        async for outcomes in generation.outcomes():
            for outcome in outcomes:
                if isinstance(outcome, Delta):
                    for _ in _grown(items, outcome):
                        pass
                else:
                    raise_failed(outcome)
                    items.close(_status(outcome))
                    response = _ended(turn, generation, items, outcome)
        _keep(store, turn, response)
        return JSONReply(response)


async def _events(
    service: Service, store: ResponseStore, turn: _Turn
) -> AsyncIterator[bytes]:
    async with service.generator.open(turn.call, turn.response_id) as generation:
        begun = turn.response("in_progress", generation.model)
        yield turn.sent({"type": "response.created", "response": begun}) + turn.sent(
            {"type": "response.in_progress", "response": begun}
        )
        items = OutputItems(generation.served.tokenizer)
        async for outcomes in generation.outcomes():
            events: list[Event] = []
            for outcome in outcomes:
                if isinstance(outcome, Delta):
                    events.extend(_grown(items, outcome))
                else:
                    raise_failed(outcome)
                    events.extend(items.close(_status(outcome)))
                    response = _ended(turn, generation, items, outcome)
                    _keep(store, turn, response)
                    events.append(
                        {"type": f"response.{response['status']}", "response": response}
                    )
            if events or not outcomes:
                yield b"".join(map(turn.sent, events))


def _page(
    items: Sequence[Mapping[str, Any]], query: Mapping[str, str]
) -> dict[str, Any]:
    """A page of the items as the query wants it: the last ones first, twenty of them, unless it says otherwise."""
    order, limit, after = (
        query.get("order", "desc"),
        query.get("limit", "20"),
        query.get("after"),
    )
    if order not in ("asc", "desc"):
        raise bad_request("order must be asc or desc", "order")
    if not (
        limit.isascii()
        and limit.isdecimal()
        and len(limit) < 4
        and 1 <= int(limit) <= 100
    ):
        raise bad_request("limit must be from 1 to 100", "limit")
    rows = list(items) if order == "asc" else list(reversed(items))
    places = [place for place, row in enumerate(rows) if row["id"] == after]
    if after is not None and not places:
        raise bad_request("after must be the id of an item of this response", "after")
    rest = rows[places[0] + 1 :] if places else rows
    page = rest[: int(limit)]
    ends = (
        {"first_id": page[0]["id"], "last_id": page[-1]["id"]}
        if page
        else {"first_id": None, "last_id": None}
    )
    return {"object": "list", "data": page, **ends, "has_more": len(rest) > len(page)}


def _grown(items: OutputItems, delta: Delta) -> Iterator[Event]:
    """The events of a delta; its log-probabilities go with its first piece of content."""
    logprobs = delta.logprobs
    pieces: tuple[Piece, ...] = delta.pieces or (
        (ContentDelta(""),) if logprobs else ()
    )
    for piece in pieces:
        yield from items.take(
            piece, logprobs if isinstance(piece, ContentDelta) else ()
        )
        logprobs = () if isinstance(piece, ContentDelta) else logprobs


def _status(ended: Ended) -> str:
    return "incomplete" if ended.reason is FinishReason.LENGTH else "completed"


def _keep(store: ResponseStore, turn: _Turn, response: dict[str, Any]) -> None:
    if turn.asked.store is False:
        return
    given = turn.asked.input
    answered = output_messages(response["output"]) if response["output"] else ()
    messages = (*turn.earlier, *input_messages(given), *answered)
    if isinstance(given, str):
        text = [{"type": "input_text", "text": given}]
        rows: list[dict[str, Any]] = [
            {"type": "message", "role": "user", "content": text}
        ]
    else:
        rows = [{"type": item.type, **_builtins(item)} for item in given]
    items = tuple({"id": new_id("item_"), **row} for row in rows)
    said = sum(
        len(part["text"])
        for item in response["output"]
        for part in item.get("content", ())
    )
    store.keep(response, items, messages, turn.size + said)


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value)
