"""Reads an OpenAI-style event stream into an `Outcome`, and judges it.

It is lean, since it shares its cores with the server that it measures.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rvllm_local.bench.outcome import Failure, Outcome
from rvllm_local.sse import DONE, EventSizeError, SseReader

_EVENT_LIMIT = 4 * 2**20  # bytes
_NO_JSON = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)
_WRONG_SHAPE = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    RecursionError,
)


class EventReader:
    """Takes the bytes of one answer as they come.

    `is_done` is set once [DONE] was read or the answer has failed.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._reader = SseReader(_EVENT_LIMIT)
        self.is_done = False

    def feed(self, piece: bytes, now: float) -> None:
        """Read what came at `now`."""
        try:
            events = self._reader.feed(piece)
        except EventSizeError:
            self._fail(Failure.GARBAGE, "an event has no end")
            return
        if (stray := self._reader.stray_line) is not None:
            self._fail(Failure.GARBAGE, f"{stray[:60]!r} is no server-sent event")
        for data in events:
            if self.is_done:
                return
            self._event(data, now)

    def close(self) -> None:
        """The stream has ended."""
        if self.is_done:
            return
        line = self._reader.unfinished_line.strip()
        if self._reader.close() == [DONE]:
            self.is_done = True
            return
        within = f" within {line[:60]!r}" if line else ""
        self._fail(Failure.UNFINISHED, f"the stream ended{within} without [DONE]")

    def _fail(self, failure: Failure, detail: str) -> None:
        self._outcome.fail(failure, detail)
        self.is_done = True

    def _event(self, data: bytes, now: float) -> None:
        if data == DONE:
            self.is_done = True
            return
        try:
            event = msgspec.json.decode(data)
        except _NO_JSON:
            self._fail(Failure.GARBAGE, f"{data[:60]!r} is not JSON")
            return
        if not isinstance(event, dict):
            self._fail(Failure.GARBAGE, f"{data[:60]!r} is not an object")
            return
        try:
            self._chunk(event, now)
        except _WRONG_SHAPE as error:
            kind = type(error).__name__
            self._fail(Failure.GARBAGE, f"{data[:60]!r} is not the API's: {kind}")

    def _chunk(self, event: dict[str, Any], now: float) -> None:
        if event.get("error") is not None:
            self._fail(Failure.ERROR_EVENT, str(event["error"]))
            return
        outcome = self._outcome
        text = ""
        for choice in event["choices"]:
            text += _choice_text(outcome, choice)
        if text:
            outcome.times.append(now)
            outcome.text.append(text)
        usage = event.get("usage")
        if usage is not None:
            _take_usage(outcome, usage)


def _choice_text(outcome: Outcome, choice: dict[str, Any]) -> str:
    """Take what a choice says of the end; return its text."""
    if choice.get("index"):
        raise ValueError("one choice was asked for")
    delta = choice.get("delta")
    if delta is None:
        delta = {"content": choice.get("text")}
    # Some servers send the same thought under both names.
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    content = delta.get("content") or ""
    text: str = content + thought
    for call in delta.get("tool_calls") or ():
        text += _call_text(outcome, call)
    reason = choice.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise TypeError(f"{reason!r} is no finish_reason")
    if reason:  # some servers send "" until the end
        outcome.finish_reason = reason
    return text


def _call_text(outcome: Outcome, call: dict[str, Any]) -> str:
    """Add a piece of a tool call to the call that it belongs to; return its text."""
    piece = call.get("function") or {}
    index = int(call.get("index", 0))
    if index == len(outcome.tool_calls):
        outcome.tool_calls.append(
            {
                "id": call.get("id") or f"call_{index}",
                "type": "function",
                "function": {"name": "", "arguments": ""},
            }
        )
    function: Any = outcome.tool_calls[index]["function"]
    name = piece.get("name") or ""
    arguments = piece.get("arguments") or ""
    function["name"] += name
    function["arguments"] += arguments
    return f"{name}{arguments}"


def _take_usage(outcome: Outcome, usage: dict[str, Any]) -> None:
    details = usage.get("prompt_tokens_details") or {}
    outcome.usage.prompt = _count(usage.get("prompt_tokens"))
    outcome.usage.completion = _count(usage.get("completion_tokens"))
    outcome.usage.cached = _count(details.get("cached_tokens"))


def _count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a number of tokens")
    return value
