"""Gemma's values: keys without quotes, strings between tags, all else as in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rvllm_local.text.tools.json_calls import MAX_DEPTH, loads
from rvllm_local.text.tools.parameters import types_of
from rvllm_local.text.tools.python_calls import python_calls
from rvllm_local.text.tools.reader import MalformedCallError

_BARE = re.compile(r"[^,{}\[\]<>]*")
_SINGLE = re.compile(r"'((?:[^'\\]|\\.)*)'(?=\s*[,}\]<])")
_CALL = re.compile(r"[\s,;]*(?:call\s*:\s*)?((?:[\w-]+:)*[\w.-]+)\s*(?=([{(])|$)")
_FORGOTTEN = ("", "}", "}}")  # braces at a call's end
_DECODER = json.JSONDecoder(strict=False)


def loose_calls(
    code: str, quote: str, schemas: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Names and arguments of `call:name{key:value,...}`, once or more often.

    The last brace may be missing, and the quotes of strings, where the `schemas` by
    name tell that it is one. Raises `MalformedCallError`.
    """
    for braces in _FORGOTTEN:
        try:
            return _loose_calls(code.strip() + braces, quote, schemas)
        except MalformedCallError as error:
            reason = error
    raise reason


def _loose_calls(
    code: str, quote: str, schemas: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    at = 0
    while at < len(code):
        match = _CALL.match(code, at)
        if match is None:
            raise MalformedCallError("its arguments are not an object")
        if match[2] == "(":  # as Python writes it
            return [*calls, *_in_parentheses(code[match.start(1) :], match[1], quote)]
        value: Any = {}
        at = match.end()
        if match[2]:
            properties = schemas.get(match[1], {})
            value, at = LooseValues(code, quote, properties).value(at)
        calls.append((match[1], json.dumps(value, ensure_ascii=False)))
    if not calls:
        raise MalformedCallError("it calls nothing")
    return calls


def _in_parentheses(code: str, name: str, quote: str) -> list[tuple[str, str]]:
    """Calls in Python, or one whose keys stand before colons all the same."""
    try:
        return python_calls(code)
    except MalformedCallError:
        inside = code.partition("(")[2].rstrip(" \n}").removesuffix(")")
        value, _ = LooseValues(f"{{{inside}}}", quote, {}).value(0)
        return [(name, json.dumps(value, ensure_ascii=False))]


class LooseValues:
    """Reads a text of such values; `quote` is the tag around strings."""

    def __init__(self, text: str, quote: str, properties: Mapping[str, Any]) -> None:
        self._text, self._quote = text, quote
        self._properties = properties

    def value(self, at: int, depth: int = 0) -> tuple[Any, int]:
        """The value at `at`, and where it ends. Raises `MalformedCallError`."""
        if depth > MAX_DEPTH:
            raise MalformedCallError(f"its arguments nest deeper than {MAX_DEPTH}")
        at = self._solid(at)
        if self._text.startswith(self._quote, at):
            start = at + len(self._quote)
            end = self._text.find(self._quote, start)
            if end < 0:
                raise MalformedCallError("a string of it has no end")
            return self._text[start:end], end + len(self._quote)
        if self._text[at : at + 1] in ("{", "["):
            return self._members(at, depth)
        if self._text.startswith('"', at):
            return self._json_string(at)
        single = _SINGLE.match(self._text, at)
        if single is not None:
            at = single.end()
            if self._text.startswith(self._quote, at):  # one of each kind
                at += len(self._quote)
            return single[1], at
        match = _BARE.match(self._text, at)
        assert match is not None
        bare = match[0].strip()
        if not bare:
            raise MalformedCallError("an argument of it has no value")
        try:
            return loads(bare), match.end()
        except ValueError:
            return bare, match.end()

    def _json_string(self, at: int) -> tuple[str, int]:
        """A string in JSON's quotes, which some models write all the same."""
        try:
            value, end = _DECODER.raw_decode(self._text, at)
        except ValueError as error:
            raise MalformedCallError("a string of it has no end") from error
        return str(value), end

    def _members(self, at: int, depth: int) -> tuple[Any, int]:
        is_object = self._text[at] == "{"
        closing = "}" if is_object else "]"
        named: dict[str, Any] = {}
        listed: list[Any] = []
        at = self._solid(at + 1)
        while not self._text.startswith(closing, at):
            key = ""
            if is_object:
                end = self._text.find(":", at)
                if end < 0:
                    raise MalformedCallError("an argument of it has no value")
                key, at = self._key(self._text[at:end].strip()), end + 1
            if depth == 0 and self._is_bare_string(key, at):
                value, at = self._bare_string(at)
            else:
                value, at = self.value(at, depth + 1)
            named[key] = value
            listed.append(value)
            at = self._solid(at)
            if self._text.startswith(",", at):
                at = self._solid(at + 1)
            elif not self._text.startswith(closing, at):
                raise MalformedCallError("its arguments are broken")
        return (named if is_object else listed), at + 1

    def _is_bare_string(self, key: str, at: int) -> bool:
        """True if an argument is a string whose quotes were forgotten."""
        if types_of(self._properties.get(key)) != {"string"}:
            return False
        at = self._solid(at)
        is_quoted = self._text.startswith((self._quote, '"', "null"), at)
        return not is_quoted and _SINGLE.match(self._text, at) is None

    def _bare_string(self, at: int) -> tuple[str, int]:
        """The text up to the next argument of the tool, or to the call's end."""
        keys = "|".join(re.escape(key) for key in self._properties)
        following = re.compile(rf",\s*(?:{keys})\s*:|\}}\s*(?=$|[,;]?\s*call\s*:)")
        match = following.search(self._text, at)
        if match is None:
            raise MalformedCallError("a string of it has no end")
        return self._text[at : match.start()], match.start()

    def _key(self, text: str) -> str:
        """A key without the quotes that it may have."""
        for quote in (self._quote, '"'):
            text = text.removeprefix(quote).removesuffix(quote)
        return text

    def _solid(self, at: int) -> int:
        while at < len(self._text) and self._text[at].isspace():
            at += 1
        return at
