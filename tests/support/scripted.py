"""An engine that answers from a script, so that every answer of a server is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import QueueFullError
from rvllm_local.types import (
    BlockCounts,
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    StreamEvent,
    TokenLogprob,
)

# What is said to a prompt that holds `say:NAME`.
SCRIPTS = {
    "hello": "Hello by the sea.",
    "thought": "<think>Is it salty?</think>\n\nYes, it is.",
    "call": '<tool_call>\n{"name": "weather", "arguments": {"city": "Lisbon"}}\n'
    "</tool_call>",
    "calls": '<think>Two.</think>\nLooking.\n<tool_call>\n{"name": "weather", '
    '"arguments": {"city": "Rome"}}\n</tool_call>\n<tool_call>\n{"name": "clock", '
    '"arguments": {}}\n</tool_call>',
    "json": '{"salty": true}',
    "stop": "One, two, STOP, three.",
    "nothing": "",
    "failure": "Half an ans",
    "crash": "Half an ans",
}
DEFAULT = "hello"


class ScriptedClient:
    """Speaks one token at a time, all before `start` returns; choices take turns.

    `tokenizer` encodes the scripts. Half of each prompt counts as cached. Text before
    the seventh token of "failure" and "crash" arrives, then an error.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.limits = EngineLimits(384, 2048, 2048, (0,), max_open=12)

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        for request in requests:
            self.limits.check(request)
        scripts = [self._events(request) for request in requests]
        for step in range(max(map(len, scripts))):
            for script in scripts:
                if step < len(script):
                    sink(script[step])

    def script(self, request: Request) -> str:
        """What is said to a prompt."""
        return SCRIPTS.get(self._word(request), SCRIPTS[DEFAULT])

    def cached(self, request: Request) -> int:
        """How many tokens of a prompt count as cached."""
        return len(request.prompt_token_ids) // 2

    def _word(self, request: Request) -> str:
        prompt = self._tokenizer.decode(request.prompt_token_ids, skip_special=False)
        words = prompt.rpartition("say:")[2].split("<")[0].split()
        return words[0] if words else DEFAULT

    def _events(self, request: Request) -> list[StreamEvent]:
        word = self._word(request)
        if word == "full":
            raise QueueFullError("too many requests wait; try again later", 3.0)
        text, cached = self.script(request), self.cached(request)
        stop = next((s for s in request.params.stop_strings if s in text), None)
        if stop is not None:
            text = text[: text.index(stop)]
        tokens = self._tokenizer.encode(text, bos=False)
        cut = tokens[: request.params.max_tokens]
        events = [
            self._said(request, token, step, cached) for step, token in enumerate(cut)
        ]
        if word in ("failure", "crash"):
            kind = "ParameterError" if word == "failure" else "EngineCrashedError"
            failed = StreamEvent("", (), FinishReason.ERROR, index=request.index)
            events[6:] = [replace(failed, error="it went wrong", error_kind=kind)]
            return events
        reason = FinishReason.LENGTH if len(cut) < len(tokens) else FinishReason.STOP
        if reason is FinishReason.LENGTH:
            events[-1] = replace(events[-1], finish_reason=reason)
            return events
        last = StreamEvent("", (), reason, index=request.index, stop_string=stop)
        return [*events, replace(last, cached_tokens=cached)]

    def _said(
        self, request: Request, token: int, step: int, cached: int
    ) -> StreamEvent:
        text = self._tokenizer.decode([token], skip_special=False)
        logprobs = None
        if request.params.logprobs is not None:
            top = [(token + k, -0.25 - k) for k in range(request.params.logprobs)]
            logprobs = (TokenLogprob(token, -0.25 * (step % 4), tuple(top)),)
        return StreamEvent(
            text, (token,), None, logprobs, request.index, cached_tokens=cached
        )

    def submit(self, prompt_token_ids: Sequence[int], params: Any) -> Any:
        raise AssertionError("a server starts its requests")

    def cancel(self, request_id: str) -> None:
        pass  # everything was said at once

    def stats(self) -> dict[str, int | float | str]:
        return {"requests_running": 0, "attention_backend": "scripted"}

    def snapshot(self) -> EngineSnapshot:
        blocks = BlockCounts(4, 1, 2, 0, 1, 0)
        return EngineSnapshot(blocks, "fuuc", (), self.stats(), {"weights": 7})

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        if request_id != "told":
            return ()
        stop = FinishReason.STOP
        report = RequestReport(
            request_id, 0, stop, 5, 3, 2, 0, None, 1, 0, 1, 0.5, 1.0, 2.0, None, None,
            None, None,
        )  # fmt: skip
        return (report,)

    def close(self) -> None:
        pass
