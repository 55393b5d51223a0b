"""Gemma's calls: Python in a fence, and `call:name{...}` between the tags of newer models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.loose_values import loose_calls
from rvllm_local.text.tools.parameters import schemas_of
from rvllm_local.text.tools.python_calls import ends_in_string, python_calls
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading

MAX_CODE = 1 << 16
_MOST_FENCES = 64  # in the strings of a call


class LooseCallParser(JSONReader):
    """Calls that are read whole, then written: their values are not JSON's."""

    quote = tags.GEMMA_ESCAPE

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._schemas = schemas_of(tools)
        super().__init__()

    def _function(self, opening: str, closing: str) -> Reading[None]:
        """`call:name{key:value,...}` up to `closing`, several perhaps."""
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":  # as other models write calls
            yield from self._json_call()
            yield from self._call_closed(closing, (opening,))
            self._end_call()
            return
        endings = (opening, closing)
        code, tag = yield from self._text_until(endings, MAX_CODE, True)
        size, first_tag = len(code), tag
        while code.count(self.quote) % 2 and tag != END:
            code += tag  # a string holds it
            more, tag = yield from self._text_until(endings, MAX_CODE, True)
            code += more
        if code.count(self.quote) % 2 and size < len(code):  # a quote too many
            self._put_back(code[size:].removeprefix(first_tag))
            code, tag = code[:size], first_tag
        if tag == opening:
            self._put_back(tag)
        calls = loose_calls(code, self.quote, self._schemas)
        for number, (name, arguments) in enumerate(calls):
            self._index += number > 0
            self._whole_call(name, arguments)

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
                body = self._function(opening, closing)
                yield from self._call(tag, body, (closing,))
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
                body = self._function(opening, closing)
                yield from self._call(tag, body, (closing,))
        self._flush_space()

    def _fenced(self, closing: str) -> Reading[None]:
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":
            yield from self._json_call()
            yield from self._call_closed(closing)
            self._end_call()
            return
        code, _ = yield from self._text_until((closing,), MAX_CODE, True)
        for _ in range(_MOST_FENCES):
            if not ends_in_string(code):
                break
            more, _ = yield from self._text_until((closing,), MAX_CODE)
            code += closing + more
        calls = python_calls(code.strip())
        for number, (name, arguments) in enumerate(calls):
            self._index += number > 0
            self._whole_call(name, arguments)
