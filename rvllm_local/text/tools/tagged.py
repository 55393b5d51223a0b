"""Families that write a call as a JSON object between two tags, or alone: Hermes, Qwen and plain JSON."""

from __future__ import annotations

from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading


class HermesParser(JSONReader):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes, Qwen 2.5 and Qwen 3 write it."""

    opening, closing = "<tool_call>", "</tool_call>"

    def _parse(self) -> Reading[None]:
        while (tag := (yield from self._until((self.opening,), self._content))) != END:
            yield from self._call(tag, self._body(), (self.closing,))
        self._flush_space()

    def _body(self) -> Reading[None]:
        yield from self._json_call()
        char = yield from self._next_solid()
        if char != self.closing[0]:
            raise MalformedCallError("it was cut off" if char == END else "its closing tag is missing")
        yield from self._expect(self.closing[1:])
        self._end_call()
