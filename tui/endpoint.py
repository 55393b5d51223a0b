"""The chat's way to a server: any OpenAI-style endpoint, the project's own included.

Turns a stream into the parts of a reply, and everything that can go wrong into
`EndpointError` with one plain sentence. Knows nothing of Textual or the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from rvllm_local.errors import EndpointError
from rvllm_local.sse import DONE, EVENT_LIMIT, EventSizeError, SseReader
from rvllm_local.tui.read_pace import ReadPace
from rvllm_local.tui.reply_parts import ReplyEnd, ReplyPart, ReplyStart
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.server_answers import (
    mapping,
    mappings,
    read_engine,
    read_id,
    read_model,
    read_parts,
    refusal,
    text,
)
from rvllm_local.tui.state import EngineView, ModelInfo

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A server that sends nothing at all, not even a keepalive, is taken for dead.
_SILENCE_S = 300.0


class ServerGoneError(EndpointError):
    """Nobody answers at the address; a server there may be started again."""


class ChatEndpoint:
    """One server. `url` may end in /v1 or not. Close it when done.

    The key comes from `key`, else from the environment: RVLLM_API_KEY, or, for a server
    that is not on this machine, OPENAI_API_KEY.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _base(url)
        parts = urlsplit(self.url)
        is_local = parts.hostname in _LOOPBACK
        key = key or os.environ.get("RVLLM_API_KEY")
        if not key and not is_local:
            key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._calls: set[asyncio.Task[httpx.Response]] = set()
        self._is_closed = False
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(10.0, connect=5.0, read=_SILENCE_S),
            # A proxy has no business between this machine and itself.
            trust_env=not is_local,
            # Certificates take 50 ms to be read. Plain HTTP shows none.
            verify=parts.scheme == "https" or not is_local,
            transport=transport,
        )

    async def models(self, timeout: float = 5.0) -> tuple[ModelInfo, ...]:
        """What the server can answer with; `timeout` is in seconds."""
        value = await self._get("/v1/models", timeout)
        rows = value.get("data") if isinstance(value, Mapping) else None
        if not isinstance(rows, list):
            raise EndpointError(
                f"{self.url} does not answer like an OpenAI-style server"
            )
        named = (row for row in mappings(rows) if isinstance(row.get("id"), str))
        return tuple(read_model(row) for row in named)

    async def health(self) -> tuple[bool, str]:
        """Whether the server is ready, and what it says of itself.

        Raises `EndpointError` if nobody answers.
        """
        answer = await self._answer("/health", 5.0)
        try:
            value = mapping(answer.json())
        except ValueError:
            value = {}
        status = text(value.get("status")) or text(value.get("state"))
        words = f"{status} {text(value.get('default_model'))}"
        # A server without such a page is ready.
        return answer.status_code in (200, 404, 405), clean_line(words, 80)

    async def engine(self, model: str | None = None) -> EngineView | None:
        """A look at the engine of a model, else of the first.

        None where the server has no such page.
        """
        try:
            value = await self._get("/v1/engine", timeout=2.0)
        except EndpointError:
            return None
        return read_engine(value, model)

    async def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        params: Mapping[str, Any],
    ) -> AsyncGenerator[ReplyPart, None]:
        """Ask for a reply and yield its parts as they come; the last is its end.

        Leaving the loop closes the connection, which cancels the request. Raises
        `EndpointError`.
        """
        self._refuse_closed()
        body = _body(model, messages, params)
        try:
            async with self._client.stream(
                "POST", "/v1/chat/completions", content=body, headers=_HEADERS
            ) as answer:
                if answer.status_code != 200:
                    content = await answer.aread()
                    raise EndpointError(refusal(answer.status_code, content))
                async with contextlib.aclosing(_reply_parts(answer)) as parts:
                    async for part in parts:
                        yield part
        except httpx.HTTPError as error:
            raise _explain(error, self.url) from error

    async def load(self, model: str) -> None:
        """Have the server load a model: it must write one token.

        Others go on being answered. Raises `EndpointError` with the reason.
        """
        parts = self.chat(model, _ANYTHING, {"max_tokens": 1})
        async with contextlib.aclosing(parts) as stream:
            async for _ in stream:
                pass

    async def close(self) -> None:
        """Close the connections, and end the calls that are under way."""
        self._is_closed = True
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        # One that were still connecting would be missed by the client's own closing.
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.aclose()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ServerGoneError(f"the connection to {self.url} is closed")

    async def _answer(
        self,
        path: str,
        timeout: float,
    ) -> httpx.Response:
        self._refuse_closed()
        call = asyncio.create_task(self._client.get(path, timeout=timeout))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await call
        except httpx.HTTPError as error:
            raise _explain(error, self.url) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            reason = f"the connection to {self.url} is closed"
            raise ServerGoneError(reason) from None

    async def _get(
        self,
        path: str,
        timeout: float = 5.0,
    ) -> Any:
        answer = await self._answer(path, timeout)
        if answer.status_code != 200:
            raise EndpointError(refusal(answer.status_code, answer.content))
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise EndpointError(
                f"{self.url}{path} answered with something that is no JSON"
            ) from error


# A header, for many servers refuse a request with a field that they do not know.
_HEADERS = {"Content-Type": "application/json", "X-Include-Timings": "true"}
_ANYTHING = ({"role": "user", "content": "hi"},)


def _is_cancelled() -> bool:
    """Whether the present task is to end, and not a call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _base(url: str) -> str:
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_valid = is_http and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        examples = "http://127.0.0.1:8473 or https://host/v1"
        raise EndpointError(f"{url!r} is no endpoint; write it like {examples}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _body(
    model: str,
    messages: Sequence[Mapping[str, str]],
    params: Mapping[str, Any],
) -> bytes:
    """The request. It is ASCII, so that a lone surrogate cannot break it."""
    body: dict[str, Any] = {"model": model, "messages": list(messages)}
    for name, value in params.items():
        if value is not None:
            body[name] = value
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode("ascii")


async def _reply_parts(answer: httpx.Response) -> AsyncGenerator[ReplyPart, None]:
    """The parts of a stream; its end comes last, after the usage."""
    end: ReplyEnd | None = None
    has_begun = False
    async for data in _events(answer):
        if data == DONE:
            break
        parts = read_parts(data)
        if not has_begun and (name := read_id(data)):
            yield ReplyStart(name)
        has_begun = True
        for part in parts:
            if isinstance(part, ReplyEnd):
                end = part
            else:
                yield part
    if end is not None:
        yield end
    elif has_begun:
        raise EndpointError(
            "the server closed the connection in the middle of the reply"
        )
    else:
        kind = clean_line(answer.headers.get("content-type", "no type"), 60)
        raise EndpointError(f"the server's answer ({kind}) is no stream of a reply")


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each event of the stream."""
    reader, pace = SseReader(EVENT_LIMIT), ReadPace()
    chunks = aiter(answer.aiter_bytes())
    try:
        while (chunk := await pace.next(chunks)) is not None:
            for data in reader.feed(chunk):
                yield data
            await pace.rest()
    except EventSizeError as error:
        raise EndpointError(
            f"the server sent an event of more than {EVENT_LIMIT >> 20} MiB"
        ) from error
    for data in reader.close():
        yield data


def _explain(error: Exception, url: str) -> EndpointError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerGoneError(f"no server answers at {url}")
    if isinstance(error, httpx.ReadTimeout):
        return EndpointError(f"the server at {url} has gone silent")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return EndpointError(
            "the server closed the connection in the middle of the reply"
        )
    kind = type(error).__name__
    return EndpointError(f"the connection to {url} failed: {kind}")
