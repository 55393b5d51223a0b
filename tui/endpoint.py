"""The chat's way to a server: any OpenAI-style HTTP endpoint, the project's own included.

Turns lines of a stream into the session's events and everything that can go wrong into `EndpointError` with one
plain sentence. Knows nothing of Textual or the history.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from rvllm_local.errors import EndpointError
from rvllm_local.history.types import ToolCall
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import EngineView, ModelInfo, RunningRequest

EVENT_LIMIT = 16 * 2**20  # bytes of one server-sent event
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SILENCE_S = (
    300.0  # a server that sends nothing at all, not even a keepalive, is taken for dead
)


class ChatEndpoint:
    """One server. `url` may end in /v1 or not. Close it when done.

    The key comes from `key`, else from the environment: RVLLM_API_KEY, or, for a server that is not on this machine,
    OPENAI_API_KEY.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _base(url)
        is_local = urlsplit(self.url).hostname in _LOOPBACK
        key = (
            key
            or os.environ.get("RVLLM_API_KEY")
            or (None if is_local else os.environ.get("OPENAI_API_KEY"))
        )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(10.0, connect=5.0, read=_SILENCE_S),
            trust_env=not is_local,  # a proxy has no business between this machine and itself
            transport=transport,
        )

    async def models(self) -> tuple[ModelInfo, ...]:
        """What the server can answer with."""
        value = await self._get("/v1/models")
        rows = value.get("data") if isinstance(value, Mapping) else None
        if not isinstance(rows, list):
            raise EndpointError(
                f"{self.url} does not answer like an OpenAI-style server"
            )
        return tuple(
            _model(row)
            for row in rows
            if isinstance(row, Mapping) and isinstance(row.get("id"), str)
        )

    async def health(self) -> tuple[bool, str]:
        """Whether the server is ready, and what it says of itself. Raises `EndpointError` if nobody answers."""
        try:
            answer = await self._client.get("/health", timeout=5.0)
        except (httpx.HTTPError, RuntimeError) as error:
            raise EndpointError(_explain(error, self.url)) from error
        try:
            value = answer.json()
        except ValueError:
            value = {}
        known = _mapping(value)
        told = [
            _text(known.get("status")) or _text(known.get("state")),
            _text(known.get("default_model")),
        ]
        return answer.status_code in (200, 404, 405), clean_line(
            " ".join(one for one in told if one), 80
        )

    async def engine(self, model: str | None = None) -> EngineView | None:
        """A look at the engine of a model, else of the first; None where the server has no such page."""
        try:
            value = await self._get("/v1/engine", timeout=2.0)
        except EndpointError:
            return None
        engines = value.get("engines") if isinstance(value, Mapping) else None
        rows = [
            one
            for one in (engines if isinstance(engines, list) else ())
            if isinstance(one, Mapping)
        ]
        found = next(
            (one for one in rows if one.get("model") == model),
            rows[0] if rows else value,
        )
        return (
            _view(found)
            if isinstance(found, Mapping) and "block_map" in found
            else None
        )

    async def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        params: Mapping[str, Any],
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Ask for a reply and yield its parts as they come; the last has "finish".

        A part may hold text, reasoning, tool_calls (a tuple of `ToolCall`), usage (prompt, output and cached tokens)
        and finish. Leaving the loop closes the connection, which cancels the request. Raises `EndpointError`.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            **_sendable(params),
        }
        body["stream_options"] = {"include_usage": True}
        try:
            async with self._client.stream(
                "POST", "/v1/chat/completions", content=_encode(body), headers=_JSON
            ) as answer:
                if answer.status_code != 200:
                    raise EndpointError(
                        _refusal(answer.status_code, await answer.aread())
                    )
                finish, has_begun = None, False
                async for part in _parts(answer):
                    has_begun = True
                    finish = part.get("finish") or finish
                    yield {
                        name: value for name, value in part.items() if name != "finish"
                    }
                if finish is None and not has_begun:
                    kind = clean_line(answer.headers.get("content-type", "no type"), 60)
                    raise EndpointError(
                        f"the server's answer ({kind}) is no stream of a reply"
                    )
                if finish is None:
                    raise EndpointError(
                        "the server closed the connection in the middle of the reply"
                    )
                yield {"finish": finish}
        except httpx.HTTPError as error:
            raise EndpointError(_explain(error, self.url)) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _get(self, path: str, timeout: float = 5.0) -> Any:
        try:
            answer = await self._client.get(path, timeout=timeout)
        except (
            httpx.HTTPError,
            RuntimeError,
        ) as error:  # RuntimeError: closed meanwhile, because the app ends
            raise EndpointError(_explain(error, self.url)) from error
        if answer.status_code != 200:
            raise EndpointError(_refusal(answer.status_code, answer.content))
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise EndpointError(
                f"{self.url}{path} answered with something that is no JSON"
            ) from error


_JSON = {"Content-Type": "application/json"}


def _base(url: str) -> str:
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        valid = False
    if not valid:
        raise EndpointError(
            f"{url!r} is no endpoint; write it like http://127.0.0.1:8473 or https://host/v1"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode(
        "ascii"
    )  # \u escapes, so that a lone surrogate cannot break the request


def _sendable(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


async def _parts(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The parts of a stream of server-sent events, until [DONE] or the end."""
    async for data in _events(answer):
        if data == b"[DONE]":
            return
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise EndpointError(
                "the server sent a part of the reply that cannot be read"
            ) from error
        if not isinstance(value, Mapping):
            raise EndpointError("the server sent a part of the reply that is no object")
        if value.get("error"):
            raise EndpointError(_error_text(value["error"]))
        yield _part(value)


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each event. Lines end at newlines alone: other separators belong to the text."""
    pending = bytearray()
    async for chunk in answer.aiter_bytes():
        pending += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(pending).split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
        if len(pending) > EVENT_LIMIT:
            raise EndpointError(
                f"the server sent an event of more than {EVENT_LIMIT >> 20} MiB"
            )
    if pending.startswith(b"data:"):
        yield bytes(pending)[5:].strip()


def _part(value: Mapping[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {}
    choices = value.get("choices")
    choice = (
        choices[0]
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping)
        else {}
    )
    delta = _mapping(choice.get("delta"))
    part["text"] = _text(delta.get("content"))
    part["reasoning"] = _text(delta.get("reasoning_content")) or _text(
        delta.get("reasoning")
    )
    part["tool_calls"] = _calls(delta.get("tool_calls"))
    part["usage"] = _usage(value.get("usage"))
    part["finish"] = (
        choice.get("finish_reason")
        if isinstance(choice.get("finish_reason"), str)
        else None
    )
    return {name: found for name, found in part.items() if found}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _calls(value: Any) -> tuple[ToolCall, ...]:
    found = []
    for call in value if isinstance(value, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            found.append(
                ToolCall(
                    _text(function.get("name")),
                    _text(function.get("arguments")),
                    _text(call.get("id")),
                )
            )
    return tuple(found)


def _usage(value: Any) -> tuple[int, int, int | None] | None:
    if not isinstance(value, Mapping):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    counts = [
        _count(value.get("prompt_tokens")),
        _count(value.get("completion_tokens")),
    ]
    return (
        (counts[0] or 0, counts[1] or 0, _count(cached)) if None not in counts else None
    )


def _count(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
        else None
    )


def _model(row: Mapping[str, Any]) -> ModelInfo:
    lengths = (
        row.get(name)
        for name in ("context_length", "max_model_len", "max_context_length")
    )
    context = next((length for one in lengths if (length := _count(one))), None)
    fits = row.get("fits") if isinstance(row.get("fits"), bool) else None
    return ModelInfo(
        row["id"],
        context,
        size=_count(row.get("size")) or _count(row.get("planned_bytes")),
        fits=fits,
        note=_text(row.get("note")),
    )


def _view(value: Mapping[str, Any]) -> EngineView:
    blocks, stats, memory = (
        _mapping(value.get(name)) for name in ("blocks", "stats", "memory")
    )
    rows = value.get("requests")
    return EngineView(
        {
            str(name): count
            for name, one in blocks.items()
            if (count := _count(one)) is not None
        },
        _text(value.get("block_map")),
        tuple(
            _running(row)
            for row in (rows if isinstance(rows, list) else ())
            if isinstance(row, Mapping)
        ),
        {str(k): v for k, v in stats.items() if isinstance(v, int | float | str)},
        {str(k): c for k, v in memory.items() if (c := _count(v)) is not None},
    )


def _running(row: Mapping[str, Any]) -> RunningRequest:
    names = ("prompt_tokens", "computed_tokens", "output_tokens", "cached_tokens")
    return RunningRequest(
        str(row.get("request_id", "")),
        str(row.get("state", "")),
        *(_count(row.get(name)) or 0 for name in names),
    )


def _error_text(error: Any) -> str:
    text = error.get("message") if isinstance(error, Mapping) else error
    return f"the server says: {' '.join(str(text).split())[:300]}"


def _refusal(status: int, body: bytes) -> str:
    try:
        value = json.loads(body)
        told = (
            value.get("error", value.get("detail", ""))
            if isinstance(value, Mapping)
            else ""
        )
    except (ValueError, RecursionError):
        told = ""
    hints = {
        401: "the key is missing or wrong; set RVLLM_API_KEY",
        403: "this is not allowed",
        404: "it has no such page",
    }
    hints |= {429: "too many requests wait", 503: "it is not ready"}
    return (
        _error_text(told)
        if told
        else f"the server refused with status {status}: {hints.get(status, 'no reason given')}"
    )


def _explain(error: Exception, url: str) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"no server answers at {url}"
    if isinstance(error, httpx.ReadTimeout):
        return f"the server at {url} has gone silent"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return "the server closed the connection in the middle of the reply"
    return f"the connection to {url} failed: {type(error).__name__}"
