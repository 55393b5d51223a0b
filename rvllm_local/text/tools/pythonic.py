"""Families that write calls as Python: LFM2 between tags, Llama 4 and 3.2 without any."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text.tools.gemma import MAX_CODE, LooseCallParser
from rvllm_local.text.tools.parameters import schemas_of
from rvllm_local.text.tools.python_calls import ends_in_string, python_calls
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading

_MOST_CLOSINGS = 64  # in the strings of a call
_BEGINNING = re.compile(r"\[\s*(?:[A-Za-z_][\w.-]*\s*(?:\(.*)?)?", re.DOTALL)
_DECIDED = re.compile(r"\[\s*[A-Za-z_][\w.-]*\s*\(")


class PythonReader(LooseCallParser):
    """Base: knows the names of the tools' parameters, for values without a name."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._parameters: dict[str, tuple[str, ...]] = {}
        for name, properties in schemas_of(tools).items():
            self._parameters[name] = tuple(properties)
        super().__init__(tools)

    def _write_python(self, code: str) -> None:
        """Write every call of the code. Raises `MalformedCallError` before the first."""
        calls = python_calls(code, self._parameters)
        for number, (name, arguments) in enumerate(calls):
            self._index += number > 0
            self._whole_call(name, arguments)


class PythonicParser(PythonReader):
    """`[f(a=1), g(b="x")]` as the whole output; what turns out to be no call is content."""

    def _parse(self) -> Reading[None]:
        while (first := (yield from self._next())).isspace():
            self._content(first)
        self._put_back(first)
        if first == "[":
            yield from self._call(first, self._list(), (), bare=True)
        yield from self._until((), self._content)
        self._flush_space()

    def _list(self) -> Reading[None]:
        code = ""
        is_decided = False
        while (char := (yield from self._next())) != END:
            code += char
            if not is_decided:
                is_decided = _DECIDED.match(code) is not None
                if not _BEGINNING.fullmatch(code):
                    raise MalformedCallError("it is no call")
            if char == "]" and not ends_in_string(code) and self._write_calls(code):
                return
        raise MalformedCallError("it was cut off")

    def _write_calls(self, code: str) -> bool:
        """Write the calls of a whole list; False while it is not whole."""
        try:
            self._write_python(code)
        except MalformedCallError:
            return False
        return True


class TaggedPythonicParser(PythonReader):
    """`<|tool_call_start|>[f(a=1)]<|tool_call_end|>`, as LFM2 writes it.

    OLMo 3 has other tags, and calls line by line between them.
    """

    def __init__(
        self, tags: tuple[str, str], tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._tags = tags
        super().__init__(tools)

    def _parse(self) -> Reading[None]:
        opening, closing = self._tags
        while True:
            tag = yield from self._until((opening, closing), self._content)
            if tag == END:
                break
            if tag == opening:
                yield from self._call(tag, self._body(closing), (closing,))
        self._flush_space()

    def _body(self, closing: str) -> Reading[None]:
        first = yield from self._next_solid()
        if first == "[":
            second = yield from self._next_solid()
            self._put_back(second)
        else:
            self._put_back(first)
            second = first
            first = ""
        if second == "{":
            yield from self._json_calls(closing, is_list=bool(first))
            return
        code, tag = yield from self._text_until(self._tags, MAX_CODE, True)
        for _ in range(_MOST_CLOSINGS):
            if not ends_in_string(code):
                break
            code += tag
            more, tag = yield from self._text_until(self._tags, MAX_CODE)
            code += more
        if tag == self._tags[0]:
            self._put_back(tag)
        code = first + code.strip()
        if first and not code.endswith("]"):
            code += "]"  # it was forgotten
        self._write_python(code)

    def _json_calls(self, closing: str, is_list: bool) -> Reading[None]:
        """The calls as JSON, which the model is told to write at times."""
        while True:
            yield from self._json_call()
            separator = yield from self._next_solid()
            if separator == "{":
                self._put_back(separator)  # a comma was forgotten
            elif separator != ",":
                break
            self._end_call()
            self._index += 1
            self._is_started = False
        if is_list and separator == "]":
            separator = yield from self._next_solid()
        self._put_back(separator)
        yield from self._call_closed(closing, self._tags[:1])
        self._end_call()
