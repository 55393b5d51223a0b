"""Families whose calls are JSON without tags, at the start of the output: Llama 3 and plain JSON.

JSON that turns out to be no call is content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.parameters import schemas_of
from rvllm_local.text.tools.python_calls import python_calls
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading


class JSONParser(JSONReader):
    """`{"name": ..., "arguments": {...}}` and nothing before it; several in a list, or one after another."""

    separators = ","

    def _parse(self) -> Reading[None]:
        yield from self._calls()
        yield from self._until((), self._content)
        self._flush_space()

    def _calls(self) -> Reading[None]:
        """Calls one after another, until something else comes."""
        opening = ""
        while True:
            char = yield from self._next()
            if char == END:
                if self._is_cut and opening.strip():
                    return
                break
            opening += char
            if (
                char.isspace()
                or (char in self.separators and self._index)
                or opening.strip() == "["
            ):
                if len(opening) > 64:
                    break
                continue
            if char == "]" and self._index:
                opening = ""
                continue
            if char != "{":
                break
            before = self._index
            self._put_back(char)
            yield from self._call(opening, self._body(), (), bare=True)
            if self._index == before:
                return
            opening = ""
        for held in opening[:-1]:
            self._content(held)
        self._put_back(opening[-1:])

    def _begins_call(self) -> bool:
        return not self._has_other_keys

    def _body(self) -> Reading[None]:
        self._has_other_keys = False
        yield from self._json_call(bare=True)
        self._end_call()


class Llama3Parser(JSONParser):
    """`<|python_tag|>` and JSON, or JSON alone: `{"name": ..., "parameters": {...}}`, several parted by `;`."""

    separators = ",;"
    opening: str = tags.PYTHON_TAG
    strays: tuple[str, ...] = ()

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._names = schemas_of(tools).keys()
        super().__init__()

    def _parse(self) -> Reading[None]:
        yield from self._calls()
        every = (self.opening, *self.strays)
        while True:
            tag = yield from self._until(every, self._content)
            if tag == END:
                break
            if tag in self.strays:
                yield from self._calls()
                continue
            first = yield from self._next_solid()
            if first != "{" and self.strays:
                self._put_back(first)
                continue
            if first.isalpha():  # a tool that the model was trained with
                yield from self._call(tag + first, self._code(first), ())
                continue
            while tag or first == "{":
                self._put_back(first)
                yield from self._call(tag + first, self._body(), ())
                tag = ""
                while (first := (yield from self._next_solid())) in tuple(
                    self.separators
                ):
                    pass
            self._put_back(first)
        self._flush_space()

    def _code(self, first: str) -> Reading[None]:
        """`brave_search.call(query="...")`, up to the end of the output."""
        parts = [first]
        yield from self._until((), parts.append)
        calls = python_calls("".join(parts).strip())
        name = calls[0][0].removesuffix(".call")
        if len(calls) != 1 or name not in self._names:
            raise MalformedCallError("it is not one call of a tool that was given")
        self._start_call(name)
        self._arguments(calls[0][1])
        self._end_call()


class Llama4Parser(Llama3Parser):
    """`<|python_start|>`, JSON and `<|python_end|>`; the tags may hold nothing."""

    opening = tags.PYTHON_BLOCK[0]
    strays = (tags.PYTHON_BLOCK[1],)
