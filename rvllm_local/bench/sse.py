"""Reads an OpenAI-style event stream into an `Outcome`. Lean: it shares its cores with the server that it measures."""

from __future__ import annotations

from typing import Any

import msgspec

from rvllm_local.bench.outcome import Failure, Outcome

_LONGEST_LINE = 4 * 2**20
_MOST_LINES = 1000  # of one event
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


class EventReader:
    """Takes the bytes of one answer as they come. `is_done` once [DONE] was read or the answer has failed."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._rest = b""
        self._held: list[
            bytes
        ] = []  # data lines of an event that is no JSON before its other lines have come
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
        rest = self._rest.strip()
        if self.is_done or (
            rest.startswith(b"data:")
            and rest[5:].strip() == b"[DONE]"
            and not self._held
        ):
            self.is_done = True
        else:
            within = f" within {rest[:60]!r}" if rest else ""
            self._fail(Failure.UNFINISHED, f"the stream ended{within} without [DONE]")

    def _fail(self, failure: Failure, detail: str) -> None:
        self._outcome.fail(failure, detail)
        self.is_done = True

    def _line(self, line: bytes, now: float) -> None:
        if not line:
            if self._held:
                self._event(b"\n".join(self._held), now, is_whole=True)
        elif not line.startswith(_FIELDS):
            self._fail(Failure.GARBAGE, f"{line[:60]!r} is no server-sent event")
        elif line.startswith(b"data:"):
            data = line[5:].strip()
            if self._held:
                self._hold(data)
            elif data == b"[DONE]":
                self.is_done = True
            else:
                self._event(data, now)

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        if sum(map(len, self._held)) > _LONGEST_LINE or len(self._held) > _MOST_LINES:
            self._fail(Failure.GARBAGE, "an event has no end")

    def _event(self, data: bytes, now: float, *, is_whole: bool = False) -> None:
        """One event. Data that is no JSON may go on in the next line, until the empty one."""
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if is_whole:
                self._fail(Failure.GARBAGE, f"{data[:60]!r} is not JSON")
            else:
                self._hold(data)
            return
        self._held = []
        if not isinstance(event, dict):
            self._fail(Failure.GARBAGE, f"{data[:60]!r} is not an object")
            return
        try:
            if event.get("error") is not None:
                self._fail(Failure.ERROR_EVENT, str(event["error"]))
            else:
                self._chunk(event, now)
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            self._fail(
                Failure.GARBAGE,
                f"{data[:60]!r} is not the API's: {type(error).__name__}",
            )

    def _chunk(self, event: dict[str, Any], now: float) -> None:
        outcome = self._outcome
        found = ""
        for choice in event["choices"]:
            found += _choice_text(outcome, choice)
        if found:
            outcome.times.append(now)
            outcome.text.append(found)
        if event.get("usage") is not None:
            _take_usage(outcome, event["usage"])


def _choice_text(outcome: Outcome, choice: dict[str, Any]) -> str:
    """Take what a choice says of the end; its text."""
    if choice.get("index"):
        raise ValueError("one choice was asked for")
    delta = choice.get("delta")
    delta = {"content": choice.get("text")} if delta is None else delta
    # Some servers send the same thought under both names.
    found: str = (delta.get("content") or "") + (
        delta.get("reasoning_content") or delta.get("reasoning") or ""
    )
    for call in delta.get("tool_calls") or ():
        found += _call_text(outcome, call)
    reason = choice.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise TypeError(f"{reason!r} is no finish_reason")
    outcome.finish_reason = (
        reason or outcome.finish_reason
    )  # some servers send "" until the end
    return found


def _call_text(outcome: Outcome, call: dict[str, Any]) -> str:
    """Put a piece of a tool call to the call that it belongs to; its text."""
    function, index = call.get("function") or {}, int(call.get("index", 0))
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
