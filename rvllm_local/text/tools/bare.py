"""Families whose calls are JSON without tags, at the start of the output: Llama 3 and plain JSON.

JSON that turns out to be no call is content.
"""

from __future__ import annotations

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.reader import END, Reading


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

    def _body(self) -> Reading[None]:
        yield from self._json_call(bare=True)
        self._end_call()


class Llama3Parser(JSONParser):
    """`<|python_tag|>` and JSON, or JSON alone: `{"name": ..., "parameters": {...}}`, several parted by `;`."""

    separators = ",;"

    def _parse(self) -> Reading[None]:
        yield from self._calls()
        while (
            tag := (yield from self._until((tags.PYTHON_TAG,), self._content))
        ) != END:
            first = yield from self._next_solid()
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
