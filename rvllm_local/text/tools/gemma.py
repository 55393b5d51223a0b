"""Gemma's calls: Python in a fence, and `call:name{...}` between the tags of newer models."""

from __future__ import annotations

import json
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import MAX_NAME, JSONReader
from rvllm_local.text.tools.loose_values import LooseValues
from rvllm_local.text.tools.python_calls import ends_in_string, python_calls
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading

MAX_CODE = 1 << 16
_MOST_FENCES = 64  # in the strings of a call


class LooseCallParser(JSONReader):
    """Calls that are read whole, then written: their values are not JSON's."""

    quote = tags.GEMMA_ESCAPE

    def _function(self, closing: str) -> Reading[None]:
        """`call:name{key:value,...}` up to `closing`."""
        code, _ = yield from self._text_until((closing,), MAX_CODE)
        head, brace, rest = code.strip().removeprefix("call:").partition("{")
        value: Any = {}
        end = 0
        if brace:
            value, end = LooseValues(brace + rest, self.quote).value(0)
        if not isinstance(value, dict) or (brace + rest)[end:].strip():
            raise MalformedCallError("its arguments are not an object")
        self._whole_call(head.strip(), json.dumps(value, ensure_ascii=False))

    def _whole_call(self, name: str, arguments: str) -> None:
        if len(name) > MAX_NAME:
            raise MalformedCallError(f"its name is longer than {MAX_NAME} characters")
        self._start_call(name)
        self._arguments(arguments)
        self._end_call()


class Gemma4Parser(LooseCallParser):
    """`<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>`."""

    quote = tags.GEMMA4_QUOTE

    def _parse(self) -> Reading[None]:
        opening, closing = tags.GEMMA4_CALL
        while True:
            tag = yield from self._until((opening, closing), self._content)
            if tag == END:
                break
            if tag == opening:
                yield from self._call(tag, self._function(closing), (closing,))
        self._flush_space()


class GemmaParser(LooseCallParser):
    """Python in a fence, which may hold several calls; or FunctionGemma's tags."""

    def _parse(self) -> Reading[None]:
        fence, (opening, closing) = tags.GEMMA, tags.GEMMA_FUNCTION
        while True:
            tag = yield from self._until((fence[0], opening, closing), self._content)
            if tag == END:
                break
            if tag == fence[0]:
                yield from self._call(tag, self._fenced(fence[1]), (fence[1],))
            elif tag == opening:
                yield from self._call(tag, self._function(closing), (closing,))
        self._flush_space()

    def _fenced(self, closing: str) -> Reading[None]:
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":
            yield from self._json_call()
            yield from self._expect_solid(closing)
            self._end_call()
            return
        code, _ = yield from self._text_until((closing,), MAX_CODE)
        for _ in range(_MOST_FENCES):
            if not ends_in_string(code):
                break
            more, _ = yield from self._text_until((closing,), MAX_CODE)
            code += closing + more
        calls = python_calls(code.strip())
        for number, (name, arguments) in enumerate(calls):
            self._index += number > 0
            self._whole_call(name, arguments)
