"""Ways to answer: JSON when all is there, server-sent events as it comes. Both end the work when the client goes.

Events are ASCII-escaped JSON, since some clients break lines at U+2028. Comments keep a silent stream alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rvllm_local.server.http.problems import Problem, problem_of

KEEPALIVE = b": keepalive\n\n"


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream is told apart from others, and what its silence looks like.

    `silence` stands for an empty part, `opening` for an empty first part.
    """

    content_type: bytes
    silence: bytes
    opening: bytes

    def part(self, part: bytes, is_first: bool) -> bytes:
        """What is sent for a part."""
        return part or (self.opening if is_first else self.silence)


SERVER_SENT_EVENTS = Framing(
    b"text/event-stream; charset=utf-8", KEEPALIVE, opening=KEEPALIVE
)
# A space before a line changes nothing for who reads the line as JSON.
JSON_LINES = Framing(b"application/x-ndjson", b" ", opening=b"")


class GoneError(Exception):
    """The client went away; nobody is left to answer."""


class JSONReply(Response):
    """A JSON body; NaN can never be in it."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(json.dumps(content, allow_nan=False).encode(), status, headers)


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return b"%sdata: %s\n\n" % (
        head,
        json.dumps(data, allow_nan=False, separators=(",", ":")).encode(),
    )


async def while_connected(request: Request, work: Awaitable[Response]) -> Response:
    """The result of `work`, which is cancelled when the client disconnects. Raises `GoneError` then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        raise GoneError
    finally:
        await _end(task, gone)
        del task, gone  # what it raised leads to this frame: neither would go


class EventStream:
    """An ASGI response that sends what `events` yields; an empty part stands for silence and becomes a comment.

    `events` must have passed everything that can be refused: its first part is awaited before the status is sent, so
    that a `Problem` raised before it becomes a proper error. One that comes later is sent as `on_problem` writes it.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        on_problem: Callable[[Problem], bytes],
        framing: Framing = SERVER_SENT_EVENTS,
    ) -> None:
        self._events, self._on_problem = events, on_problem
        self._framing = framing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((writer, gone), return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                await writer
        finally:
            await _end(writer, gone)
            del writer, gone  # see `while_connected`

    def _start(self) -> dict[str, Any]:
        headers = [
            (b"content-type", self._framing.content_type),
            (b"x-accel-buffering", b"no"),
        ]
        return {"type": "http.response.start", "status": 200, "headers": headers}

    async def _write(self, send: Send) -> None:
        has_begun = False
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            try:
                async for part in events:
                    body = self._framing.part(part, is_first=not has_begun)
                    if not has_begun:
                        await send(self._start())
                        has_begun = True
                    await send(
                        {"type": "http.response.body", "body": body, "more_body": True}
                    )
            except Exception as error:
                if not has_begun or isinstance(error, OSError):
                    raise
                part = self._on_problem(problem_of(error))
                await send(
                    {"type": "http.response.body", "body": part, "more_body": True}
                )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their ends, whatever they are."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # nobody else may look at it
