"""What a server's JSON means, read with distrust: anything may be missing or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rvllm_local.errors import EndpointError
from rvllm_local.history.types import ToolCall
from rvllm_local.tui.reply_parts import ReplyEnd, ReplyPart, ReplyText, ReplyUsage
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import EngineView, ModelInfo, RunningRequest

_CONTEXT_NAMES = ("context_length", "max_model_len", "max_context_length")
_FASTEST = 1e6  # tokens a second beyond which a server lies
_STATUS_HINTS = {
    401: "the key is missing or wrong; set RVLLM_API_KEY",
    403: "this is not allowed",
    404: "it has no such page",
    429: "too many requests wait",
    503: "it is not ready",
}


def read_parts(data: bytes) -> list[ReplyPart]:
    """The parts in one event of a stream. Raises `EndpointError`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EndpointError(
            "the server sent a part of the reply that cannot be read"
        ) from error
    if not isinstance(value, Mapping):
        raise EndpointError("the server sent a part of the reply that is no object")
    if value.get("error"):
        raise EndpointError(error_text(value["error"]))
    choice = mapping(first(value.get("choices")))
    parts: list[ReplyPart] = []
    text = _reply_text(mapping(choice.get("delta")))
    if text != ReplyText():
        parts.append(text)
    usage = _usage(value.get("usage"), mapping(value.get("timings")))
    if usage is not None:
        parts.append(usage)
    reason = choice.get("finish_reason")
    if isinstance(reason, str) and reason:
        parts.append(ReplyEnd(reason))
    return parts


def read_id(data: bytes) -> str:
    """The server's name for a reply, of an event that was read; empty without one."""
    return clean_line(text(mapping(json.loads(data)).get("id")), 80)


def _reply_text(delta: Mapping[str, Any]) -> ReplyText:
    reasoning = text(delta.get("reasoning_content")) or text(delta.get("reasoning"))
    calls = _tool_calls(delta.get("tool_calls"))
    return ReplyText(text(delta.get("content")), reasoning, calls)


def _tool_calls(value: Any) -> tuple[ToolCall, ...]:
    calls = []
    for call in mappings(value):
        function = call.get("function")
        if isinstance(function, Mapping):
            name, arguments = (
                text(function.get("name")),
                text(function.get("arguments")),
            )
            calls.append(ToolCall(name, arguments, text(call.get("id"))))
    return tuple(calls)


def _usage(value: Any, timings: Mapping[str, Any]) -> ReplyUsage | None:
    if not isinstance(value, Mapping):
        return None
    prompt = count(value.get("prompt_tokens"))
    output = count(value.get("completion_tokens"))
    if prompt is None or output is None:
        return None
    details = mapping(value.get("prompt_tokens_details"))
    drafts = mapping(value.get("completion_tokens_details"))
    return ReplyUsage(
        prompt,
        output,
        count(details.get("cached_tokens")),
        count(drafts.get("accepted_prediction_tokens")) or 0,
        count(drafts.get("rejected_prediction_tokens")) or 0,
        _speed(timings),
    )


def _speed(timings: Mapping[str, Any]) -> float | None:
    """Tokens a second by the server's clock, where it tells what can be one."""
    value = timings.get("predicted_per_second")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 < value < _FASTEST or timings.get("predicted_n") == 1:
        return None
    return float(value)


def read_model(row: Mapping[str, Any]) -> ModelInfo:
    """A row of /v1/models that has an id."""
    context_length = None
    for name in _CONTEXT_NAMES:
        context_length = context_length or count(row.get(name))
    fits = row.get("fits")
    return ModelInfo(
        row["id"],
        context_length,
        size=count(row.get("size")) or count(row.get("planned_bytes")),
        fits=fits if isinstance(fits, bool) else None,
        note=text(row.get("note")),
    )


def read_engine(value: Any, model: str | None) -> EngineView | None:
    """The engine of a model in /v1/engine, else the first; None if there is none."""
    engines = mappings(mapping(value).get("engines"))
    row = engines[0] if engines else mapping(value)
    for engine in engines:
        if engine.get("model") == model:
            row = engine
            break
    return _engine_view(row) if "block_map" in row else None


def _engine_view(row: Mapping[str, Any]) -> EngineView:
    stats = {}
    for name, value in mapping(row.get("stats")).items():
        if isinstance(value, int | float | str):
            stats[str(name)] = value
    return EngineView(
        blocks=_counts(row.get("blocks")),
        block_map=text(row.get("block_map")),
        requests=tuple(_running(request) for request in mappings(row.get("requests"))),
        stats=stats,
        memory=_counts(row.get("memory")),
    )


def _running(row: Mapping[str, Any]) -> RunningRequest:
    return RunningRequest(
        id=str(row.get("request_id", "")),
        state=str(row.get("state", "")),
        prompt_tokens=count(row.get("prompt_tokens")) or 0,
        computed_tokens=count(row.get("computed_tokens")) or 0,
        output_tokens=count(row.get("output_tokens")) or 0,
        cached_tokens=count(row.get("cached_tokens")) or 0,
    )


def refusal(status: int, body: bytes) -> str:
    """Why a server refused, in one sentence."""
    try:
        value = mapping(json.loads(body))
    except (ValueError, RecursionError):
        value = {}
    reason = value.get("error", value.get("detail", ""))
    if reason:
        return error_text(reason)
    hint = _STATUS_HINTS.get(status, "no reason given")
    return f"the server refused with status {status}: {hint}"


def error_text(error: Any) -> str:
    """A server's error, in one line of at most 300 characters."""
    message = error.get("message") if isinstance(error, Mapping) else error
    return f"the server says: {' '.join(str(message).split())[:300]}"


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is an object."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list."""
    rows = value if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, Mapping)]


def first(value: Any) -> Any:
    """The first item of a list, or None."""
    return value[0] if isinstance(value, list) and value else None


def text(value: Any) -> str:
    """The value, if it is text."""
    return value if isinstance(value, str) else ""


def count(value: Any) -> int | None:
    """The value, if it is a count that a double can hold."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < 2**53 else None


def _counts(value: Any) -> dict[str, int]:
    counts = {}
    for name, number in mapping(value).items():
        size = count(number)
        if size is not None:
            counts[str(name)] = size
    return counts
