"""Reads an OpenAI-style event stream into an `Outcome`. Lean: it shares its cores with the server that it measures."""

from __future__ import annotations

from typing import Any

import msgspec

from rvllm_local.bench.outcome import Failure, Outcome

_LONGEST_LINE = 4 * 2**20
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


class EventReader:
    """Takes the bytes of one answer as they come. `is_done` once [DONE] was read or the answer has failed."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._rest = b""
        self.is_done = False

    def feed(self, part: bytes, now: float) -> None:
        """Read what came at `now`."""
        lines = (self._rest + part).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST_LINE:
            self._fail(Failure.GARBAGE, "a line has no end")
        for line in lines:
            if self.is_done:
                return
            self._line(line.rstrip(b"\r"), now)

    def close(self) -> None:
        """The stream has ended."""
        if not self.is_done:
            self._fail(Failure.UNFINISHED, "the stream ended without [DONE]")

    def _fail(self, failure: Failure, detail: str) -> None:
        self._outcome.fail(failure, detail)
        self.is_done = True

    def _line(self, line: bytes, now: float) -> None:
        if not line:
            return
        if not line.startswith(_FIELDS):
            self._fail(Failure.GARBAGE, f"{line[:60]!r} is no server-sent event")
        elif line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                self.is_done = True
            else:
                self._event(data, now)

    def _event(self, data: bytes, now: float) -> None:
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._fail(Failure.GARBAGE, f"{data[:60]!r} is not JSON")
            return
        if not isinstance(event, dict):
            self._fail(Failure.GARBAGE, f"{data[:60]!r} is not an object")
        elif event.get("error") is not None:
            self._fail(Failure.ERROR_EVENT, str(event["error"]))
        else:
            try:
                self._chunk(event, now)
            except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
                self._fail(Failure.GARBAGE, f"{data[:60]!r} is not the API's: {type(error).__name__}")

    def _chunk(self, event: dict[str, Any], now: float) -> None:
        outcome = self._outcome
        for choice in event["choices"]:
            delta = choice.get("delta")
            delta = {"content": choice.get("text")} if delta is None else delta
            pieces = [delta.get("content"), delta.get("reasoning_content"), delta.get("reasoning")]
            pieces += [_call_text(outcome, call) for call in delta.get("tool_calls") or ()]
            found = "".join(piece for piece in pieces if piece)
            if found:
                outcome.times.append(now)
                outcome.text.append(found)
            if choice.get("finish_reason") is not None:
                outcome.finish_reason = str(choice["finish_reason"])
        if event.get("usage") is not None:
            _take_usage(outcome, event["usage"])


def _call_text(outcome: Outcome, call: dict[str, Any]) -> str:
    """Put a piece of a tool call to the call that it belongs to; its text."""
    function, index = call["function"], int(call.get("index", 0))
    if index == len(outcome.tool_calls):
        head = {"id": call.get("id") or f"call_{index}", "type": "function"}
        outcome.tool_calls.append({**head, "function": {"name": "", "arguments": ""}})
    whole: Any = outcome.tool_calls[index]["function"]
    name, arguments = function.get("name") or "", function.get("arguments") or ""
    whole["name"] += name
    whole["arguments"] += arguments
    return f"{name}{arguments}"


def _take_usage(outcome: Outcome, usage: dict[str, Any]) -> None:
    outcome.usage.prompt = _count(usage.get("prompt_tokens"))
    outcome.usage.completion = _count(usage.get("completion_tokens"))
    details = usage.get("prompt_tokens_details") or {}
    outcome.usage.cached = _count(details.get("cached_tokens"))


def _count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a number of tokens")
    return value
