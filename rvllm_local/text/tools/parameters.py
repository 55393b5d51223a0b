"""Families that write each argument between tags, as text: Qwen3-Coder, Seed-OSS, GLM.

Which arguments are strings, the tools' schemas say; without them, what reads as JSON is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import MAX_NAME, JSONReader, loads
from rvllm_local.text.tools.reader import (
    END,
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


class ParameterReader(JSONReader):
    """Base: turns named texts into the members of one JSON object."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._schemas = schemas_of(tools)
        self._num_arguments = 0
        super().__init__()

    def _open_arguments(self, name: str) -> None:
        self._start_call(name)
        self._properties = self._schemas.get(name, {})
        self._num_arguments = 0
        self._arguments("{")

    def _argument(self, key: str, text: str, is_text: bool | None = None) -> None:
        """One member; `is_text` is what the call itself says, where it does."""
        schema = self._properties.get(key, {}) if is_text is None else {}
        if is_text:
            schema = {"type": "string"}
        self._member(key, json_text(text, schema))

    def _member(self, key: str, value: str) -> None:
        """One member whose value is JSON text."""
        separator = ", " if self._num_arguments else ""
        self._num_arguments += 1
        self._arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: {value}")

    def _close_arguments(self) -> None:
        self._arguments("}")
        self._end_call()


class Qwen3CoderParser(ParameterReader):
    """`<tool_call><function=name><parameter=key>value</parameter>...</function>` and the
    end of the outer tag, which may be missing.
    """

    outer = tags.HERMES

    def _parse(self) -> Reading[None]:
        opening, closing = self.outer
        every = (opening, closing, *tags.FUNCTION)
        while (tag := (yield from self._until(every, self._content))) != END:
            if tag == opening:
                yield from self._call(tag, self._wrapped(closing), (closing,))
            elif tag == "<function=":
                yield from self._call(tag, self._function(), ("</function>",))
        self._flush_space()

    def _wrapped(self, closing: str) -> Reading[None]:
        yield from self._expect_solid("<function=")
        yield from self._function(ends_here=False)
        first = yield from self._next_solid()
        if first != END:
            self._put_back(first)
            yield from self._expect(closing)
        self._close_arguments()

    def _function(self, ends_here: bool = True) -> Reading[None]:
        name, _ = yield from self._text_until((">",), MAX_NAME)
        self._open_arguments(name.strip())
        while True:
            yield from self._expect_solid("<")
            tag, _ = yield from self._text_until((">",), MAX_NAME)
            if tag == "/function":
                break
            if not tag.startswith("parameter="):
                raise MalformedCallError(
                    "it holds a tag that is neither a parameter nor the end"
                )
            value, _ = yield from self._text_until(("</parameter>",), MAX_CALL_CHARS)
            value = value.removeprefix("\n").removesuffix("\n")
            self._argument(tag.removeprefix("parameter=").strip(), value)
        if ends_here:
            self._close_arguments()


class SeedParser(Qwen3CoderParser):
    """Seed-OSS: the same between tags of its own."""

    outer = tags.SEED


class GLMParser(ParameterReader):
    """`<tool_call>name`, then `<arg_key>key</arg_key><arg_value>value</arg_value>` pairs, then `</tool_call>`."""

    outer, key, value = tags.HERMES, tags.GLM_KEY, tags.GLM_VALUE

    def _parse(self) -> Reading[None]:
        opening, closing = self.outer
        while (
            tag := (yield from self._until((opening, closing), self._content))
        ) != END:
            if tag == opening:
                yield from self._call(tag, self._body(closing), (closing,))
        self._flush_space()

    def _body(self, closing: str) -> Reading[None]:
        key_opening, key_closing = self.key
        name, tag = yield from self._text_until((key_opening, closing), MAX_NAME)
        self._open_arguments(name.strip())
        while tag == key_opening:
            key, _ = yield from self._text_until((key_closing,), MAX_NAME)
            yield from self._expect_solid(self.value[0])
            value, _ = yield from self._text_until((self.value[1],), MAX_CALL_CHARS)
            self._argument(key.strip(), value)
            blank, tag = yield from self._text_until((key_opening, closing), MAX_NAME)
            if blank.strip():
                raise MalformedCallError("it holds text between its arguments")
        self._close_arguments()


class LongCatParser(GLMParser):
    """LongCat: the same between tags of its own."""

    outer, key, value = tags.LONGCAT, tags.LONGCAT_KEY, tags.LONGCAT_VALUE


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Properties by tool name; what is not in shape is left out."""
    by_name: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = mapping(tool).get("function")
        name = mapping(function).get("name")
        if isinstance(name, str):
            parameters = mapping(function).get("parameters")
            by_name[name] = mapping(mapping(parameters).get("properties"))
    return by_name


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _is_text(schema: Mapping[str, Any]) -> bool:
    """True if the schema takes strings alone."""
    if schema.get("type") == "string":
        return True
    choices = schema.get("enum") or []
    if not choices and "const" in schema:
        choices = [schema["const"]]
    is_list = isinstance(choices, list) and bool(choices)
    return is_list and all(isinstance(choice, str) for choice in choices)


def json_text(text: str, schema: Any) -> str:
    """The JSON text of an argument that was written as `text`."""
    if not _is_text(mapping(schema)):
        plain = _PYTHON_WORDS.get(text.strip(), text.strip())
        try:
            loads(plain)
        except ValueError:
            pass
        else:
            return plain
    return json.dumps(text, ensure_ascii=False)
