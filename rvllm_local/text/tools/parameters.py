"""Families that write each argument between tags, as text: Qwen3-Coder, Seed-OSS, GLM.

Which arguments are strings, the tools' schemas say; without them, what reads as JSON is JSON.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.closed_values import ClosedValueReader
from rvllm_local.text.tools.json_calls import loads
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.python_values import PYTHON_ERRORS, python_value
from rvllm_local.text.tools.reader import (
    END,
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_AROUND_NAMES = " \t\r\n\"'"  # blanks and quotes, which a name is read without
_MOST_SAID = 512  # characters between the outer tag and the function
_STRAYS = ("</function_invocation>", "</function_calls>")
_OPENED_PARAMETER = re.compile(r"\n<parameter=([^>\n]{1,256})>(?=\n)")
_OPENED_TAG = re.compile(r"(?<!\n)<parameter=[^>\n]{1,256}>|<parameter>")
_JSON_TYPES: Mapping[type[Any], tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number", "integer"),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
}


class ParameterReader(ClosedValueReader):
    """Base: turns named texts into the members of one JSON object."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._schemas = schemas_of(tools)
        self._num_arguments = 0
        super().__init__()

    def _next_tag(self) -> Reading[str | None]:
        """What the next tag says; None where the output ends instead."""
        first = yield from self._next_solid()
        self._put_back(first)
        if first == END and not self._is_cut:
            return None
        yield from self._expect("<")
        tag, _ = yield from self._text_until((">",), MAX_NAME)
        return tag

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
        types = types_of(schema)
        if not text.strip() and types and types.isdisjoint(("string", "null")):
            return  # the format has no other way to leave it out
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
        every = (opening, closing, *tags.FUNCTION, *_STRAYS)
        while (tag := (yield from self._until(every, self._content))) != END:
            if tag == opening:
                yield from self._call(tag, self._wrapped(), (closing,))
            elif tag == tags.FUNCTION[0]:
                yield from self._call(tag, self._unwrapped(), tags.FUNCTION[1:])
        self._flush_space()

    def _wrapped(self) -> Reading[None]:
        """The first call between the outer tags; a further one stands for itself."""
        opening, closing = self.outer
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":  # as other models of the family write calls
            yield from self._json_call()
            yield from self._call_closed(closing, (opening, tags.FUNCTION[0], "{"))
        else:
            ends = (tags.FUNCTION[0], closing)
            said, tag = yield from self._text_until(ends, _MOST_SAID)
            if tag == closing:
                raise MalformedCallError("it holds no function")
            for char in said.strip():
                self._content(char)
            yield from self._function()
        self._end_call()

    def _unwrapped(self) -> Reading[None]:
        yield from self._function()
        self._end_call()

    def _function(self) -> Reading[None]:
        """A function's name and parameters, up to its closing tag."""
        name, _ = yield from self._text_until((">",), MAX_NAME)
        name = name.strip(_AROUND_NAMES)
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":
            self._start_call(name)
            yield from self._object_arguments()
            yield from self._call_closed(tags.FUNCTION[1], self.outer)
            return
        self._open_arguments(name)
        while (yield from self._parameter()):
            pass
        self._arguments("}")

    def _parameter(self) -> Reading[bool]:
        """The next parameter; False if the call ends instead."""
        tag = yield from self._next_tag()
        if tag is None or tag.startswith("/func"):
            return False
        if f"<{tag}>" in self.outer:
            self._put_back(f"<{tag}>")
            return False
        if not tag.startswith("parameter="):
            raise MalformedCallError(
                "it holds a tag that is neither a parameter nor the end"
            )
        key = tag.removeprefix("parameter=").strip(_AROUND_NAMES)
        followers = ("<parameter=", *tags.FUNCTION, *self.outer)
        value, tag = yield from self._closed_value(
            _OPENED_TAG, "</parameter>", followers
        )
        if tag == END:
            endings = (self.outer[1], tags.FUNCTION[1], "</parameter")
            value = without_endings(value, endings)
        self._parameters_in(key, value)
        return True

    def _parameters_in(self, key: str, value: str) -> None:
        """A parameter, and those that follow it where closing tags are forgotten.

        Only a parameter of the tool ends a value in this way: it may speak of others.
        """
        given_keys = {key}
        start = 0
        for match in _OPENED_PARAMETER.finditer(value):
            if match[1] in self._properties and match[1] not in given_keys:
                self._argument(key, _without_newlines(value[start : match.start()]))
                key, start = match[1], match.end()
                given_keys.add(key)
        self._argument(key, _without_newlines(value[start:]))


class SeedParser(Qwen3CoderParser):
    """Seed-OSS: the same between tags of its own."""

    outer = tags.SEED


class GLMParser(ParameterReader):
    """`<tool_call>name`, then `<arg_key>key</arg_key><arg_value>value</arg_value>` pairs, then `</tool_call>`."""

    outer, key, value = tags.HERMES, tags.GLM_KEY, tags.GLM_VALUE
    kind: tuple[str, str] | None = None  # tags around an argument's type
    strays: tuple[str, ...] = ()

    def _parse(self) -> Reading[None]:
        opening, closing = self.outer
        return self._tagged_calls(opening, closing, self.strays, self._body)

    def _body(self) -> Reading[None]:
        opening, closing = self.outer
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":  # as other models of the family write calls
            yield from self._json_call()
        else:
            yield from self._named_call()
        yield from self._call_closed(closing, (opening, *self.strays))
        self._end_call()

    def _named_call(self) -> Reading[None]:
        """A name and its arguments: pairs of tags, or an object."""
        endings = (self.key[0], *self.outer)
        strays = (self.key[1], self.value[1])
        every = (*endings, *strays, "{")
        name, tag = yield from self._text_until(every, MAX_NAME, True)
        name = name.strip()
        if tag == END and not (name in self._schemas or not self._schemas):
            raise MalformedCallError("it was cut off")
        if tag == "{":
            self._start_call(name)
            self._put_back(tag)
            yield from self._object_arguments()
            return
        key = ""
        if tag == self.key[1]:  # its opening tag was forgotten
            name, key = self._name_and_key(name)
        self._open_arguments(name)
        if key:
            yield from self._value_of(key)
        if tag in strays:
            tag = yield from self._between_pairs(endings)
        while tag == self.key[0]:
            yield from self._pair()
            tag = yield from self._between_pairs(endings)
        self._put_back(tag)
        self._arguments("}")

    def _name_and_key(self, text: str) -> tuple[str, str]:
        """A tool's name, and the key that stands behind it without a tag."""
        names = [name for name in self._schemas if text.startswith(name)]
        name = max(names, key=len, default="")
        key = text.removeprefix(name).strip()
        if not name or not key:
            raise MalformedCallError("it holds a tag that closes nothing")
        return name, key

    def _between_pairs(self, endings: Sequence[str]) -> Reading[str]:
        """The tag behind an argument."""
        blank, tag = yield from self._text_until(endings, MAX_NAME, True)
        if blank.strip():
            raise MalformedCallError("it holds text between its arguments")
        return tag

    def _pair(self) -> Reading[None]:
        """One argument behind the tag of its key."""
        opening = self.value[0]
        key, tag = yield from self._text_until((self.key[1], opening), MAX_NAME)
        if tag == opening:
            self._put_back(tag)
        yield from self._value_of(key.strip())

    def _value_of(self, key: str) -> Reading[None]:
        """A value, whose opening tag may be forgotten."""
        opening, closing = self.value
        value, tag = yield from self._text_until((opening, closing), MAX_CALL_CHARS)
        if tag == opening:
            if self._without_kind(value).strip():
                raise MalformedCallError("it holds text between its arguments")
            value, tag = yield from self._text_until((closing,), MAX_CALL_CHARS, True)
        if tag == END:
            value = without_endings(value, self.outer[1:])
        self._argument(key, value)

    def _without_kind(self, text: str) -> str:
        """What stands between a key and a value, without the value's type."""
        if self.kind is None:
            return text
        before, opening, rest = text.partition(self.kind[0])
        _, closing, after = rest.partition(self.kind[1])
        return before + after if opening and closing else text


class LongCatParser(GLMParser):
    """LongCat: the same between tags of its own."""

    outer, key, value = tags.LONGCAT, tags.LONGCAT_KEY, tags.LONGCAT_VALUE


class K2Parser(GLMParser):
    """K2 Horizon: the same, with the type of each argument where it is asked to say it."""

    outer, key, value = tags.IFM_CALL, tags.IFM_KEY, tags.IFM_VALUE
    kind, strays = tags.IFM_TYPE, tags.IFM_CALLS


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


def without_endings(value: str, closings: Sequence[str]) -> str:
    """A value that the output's end closed, without the closing tags of what is around it."""
    value = value.rstrip()
    for closing in closings:
        value = value.removesuffix(closing).rstrip()
    return value


def _without_newlines(text: str) -> str:
    """A value without the line breaks of its tags."""
    return text.removeprefix("\n").removesuffix("\n")


def types_of(schema: Any) -> set[str]:
    """The types that a schema takes, by name; nothing where it does not say."""
    schema = mapping(schema)
    stated = schema.get("type")
    types = {stated} if isinstance(stated, str) else set()
    if isinstance(stated, list):
        types = {name for name in stated if isinstance(name, str)}
    choices = schema.get("enum") or []
    if not choices and "const" in schema:
        choices = [schema["const"]]
    if not types and isinstance(choices, list):
        for choice in choices:
            types.update(_JSON_TYPES.get(type(choice), ("string",)))
    for name in ("anyOf", "oneOf"):
        parts = schema.get(name)
        for part in parts if isinstance(parts, list) else ():
            types |= types_of(part) or set(_ANY_TYPE)
    return types


_ANY_TYPE = frozenset(name for names in _JSON_TYPES.values() for name in names)


def json_text(text: str, schema: Any) -> str:
    """The JSON text of an argument that was written as `text`.

    What may be a string is one, unless it reads as another type that the schema takes.
    """
    types = types_of(schema)
    if types == {"string"}:
        return json.dumps(text, ensure_ascii=False)
    plain = _PYTHON_WORDS.get(text.strip(), text.strip())
    try:
        value = loads(plain)
    except ValueError:
        value, plain = _python_object(plain, types)
    kinds = _JSON_TYPES.get(type(value), ("string",))
    is_wanted = "string" not in types or not types.isdisjoint(kinds)
    if plain and is_wanted and not (kinds == ("string",) and "string" in types):
        return plain
    return json.dumps(text, ensure_ascii=False)


def _python_object(text: str, types: set[str]) -> tuple[Any, str]:
    """A list or an object in Python's spelling, and its JSON; nothing if it is none."""
    if not text.startswith(("{", "[")) or types.isdisjoint(("object", "array")):
        return None, ""
    try:
        value = python_value(ast.parse(text, mode="eval").body)
        return value, json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (MalformedCallError, *PYTHON_ERRORS):
        return None, ""
