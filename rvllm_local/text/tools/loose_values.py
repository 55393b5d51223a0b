"""Gemma's values: keys without quotes, strings between tags, all else as in JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from rvllm_local.text.tools.json_calls import MAX_DEPTH, loads
from rvllm_local.text.tools.python_calls import python_calls
from rvllm_local.text.tools.reader import MalformedCallError

_BARE = re.compile(r"[^,{}\[\]<>]*")
_SINGLE = re.compile(r"'((?:[^'\\]|\\.)*)'(?=\s*[,}\]])")
_CALL = re.compile(r"[\s,;]*(?:call\s*:\s*)?([\w.-]+)\s*(?=([{(])|$)")
_FORGOTTEN = ("", "}", "}}")  # braces at a call's end
_DECODER = json.JSONDecoder(strict=False)


def loose_calls(code: str, quote: str) -> list[tuple[str, str]]:
    """Names and arguments of `call:name{key:value,...}`, once or more often.

    The last brace may be missing. Raises `MalformedCallError`.
    """
    for braces in _FORGOTTEN:
        try:
            return _loose_calls(code.strip() + braces, quote)
        except MalformedCallError as error:
            reason = error
    raise reason


def _loose_calls(code: str, quote: str) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    at = 0
    while at < len(code):
        match = _CALL.match(code, at)
        if match is None:
            raise MalformedCallError("its arguments are not an object")
        if match[2] == "(":  # as Python writes it
            return [*calls, *python_calls(code[match.start(1) :])]
        value: Any = {}
        at = match.end()
        if match[2]:
            value, at = LooseValues(code, quote).value(at)
        calls.append((match[1], json.dumps(value, ensure_ascii=False)))
    if not calls:
        raise MalformedCallError("it calls nothing")
    return calls


class LooseValues:
    """Reads a text of such values; `quote` is the tag around strings."""

    def __init__(self, text: str, quote: str) -> None:
        self._text, self._quote = text, quote

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
            return single[1], single.end()
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
            value, at = self.value(at, depth + 1)
            named[key] = value
            listed.append(value)
            at = self._solid(at)
            if self._text.startswith(",", at):
                at = self._solid(at + 1)
            elif not self._text.startswith(closing, at):
                raise MalformedCallError("its arguments are broken")
        return (named if is_object else listed), at + 1

    def _key(self, text: str) -> str:
        """A key without the quotes that it may have."""
        for quote in (self._quote, '"'):
            text = text.removeprefix(quote).removesuffix(quote)
        return text

    def _solid(self, at: int) -> int:
        while at < len(self._text) and self._text[at].isspace():
            at += 1
        return at
