"""Reads JSON as it comes, character by character, and the calls that are written in it.

What it passes on is strictly valid JSON. Raw control characters in strings are escaped; a
comma too many, strings in single quotes and Python's words for true, false and null are
put right; all else is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rvllm_local.text.tools.json_strings import (
    MAX_NAME,
    QUOTES,
    JSONStringReader,
    Take,
    unexpected,
)
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading

MAX_DEPTH = 128
MAX_SCALAR = 400  # characters of a number; longer ones no reader takes
_SCALAR = re.compile(
    r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
)
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_NAME_KEYS = ("name", "tool_name")
_OTHER_NAME_KEYS = ("function_name", "tool", "action")  # of a call between tags alone
_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_ARGUMENT_KEYS = ("args", "input", "action_input")  # the same
_SKIPPED_KEYS = ("name", "function", "id", "type", *_ARGUMENT_KEYS)  # of calls, too


class JSONReader(JSONStringReader):
    """A `PieceReader` that can read JSON values."""

    _has_other_keys = False  # an object that was read has keys that no call has

    def _json_value(self, take: Take, depth: int = 0) -> Reading[None]:
        """Read one value, blanks before it skipped; its text goes to `take`."""
        closers: list[str] = []
        while True:
            char = yield from self._next_solid()
            if char in ("{", "["):
                take(char)
                closers.append("}" if char == "{" else "]")
                if len(closers) + depth > MAX_DEPTH:
                    raise MalformedCallError(
                        f"its arguments nest deeper than {MAX_DEPTH}"
                    )
                following = yield from self._next_solid()
                if following != closers[-1]:
                    self._put_back(following)
                    if closers[-1] == "}":
                        yield from self._json_key(take)
                    continue
                take(closers.pop())
            elif char in QUOTES:
                yield from self._json_string(take, char)
            else:
                yield from self._json_scalar(char, take)
            yield from self._json_after_value(closers, take)
            if not closers:
                return

    def _json_after_value(self, closers: list[str], take: Take) -> Reading[None]:
        """Close what ends here; a comma leads on to the next value."""
        while closers:
            char = yield from self._next_solid()
            if self._ends_early(char):
                self._put_back(char)
                while closers:
                    take(closers.pop())
                return
            if char == ",":
                following = yield from self._next_solid()
                if following == closers[-1]:
                    take(closers.pop())  # a comma too many
                    continue
                self._put_back(following)
                take(char)
                if closers[-1] == "}":
                    yield from self._json_key(take)
                return
            if char in ("]", "}") and char not in closers and self._is_started:
                continue  # a bracket too many
            if char not in closers:
                raise unexpected(char)
            while closers[-1] != char:
                take(closers.pop())  # it was forgotten
            take(closers.pop())

    def _ends_early(self, char: str) -> bool:
        """True where a call ends though its JSON has not: models forget brackets.

        It is the call's closing tag that has come, or the end of the model's turn.
        """
        is_in_call = self._is_started and self._raw is not None
        return is_in_call and (char == "<" or (char == END and not self._is_cut))

    def _json_key(self, take: Take) -> Reading[None]:
        char = yield from self._next_solid()
        yield from self._json_name(take, char)
        char = yield from self._next_solid()
        if char != ":":
            raise unexpected(char)
        take(char)

    def _json_scalar(self, first: str, take: Take) -> Reading[None]:
        text = first
        while True:
            char = yield from self._next()
            if char == END or not (
                char.isascii() and (char.isalnum() or char in "+-.")
            ):
                break
            text += char
            if len(text) > MAX_SCALAR:
                raise MalformedCallError(
                    f"its JSON holds a number of more than {MAX_SCALAR} characters"
                )
        self._put_back(char)
        text = _PYTHON_WORDS.get(text, text)
        if not _SCALAR.fullmatch(text):
            raise unexpected(text[:1])
        take(text)

    def _text_value(self, what: str, limit: int) -> Reading[str]:
        """A JSON string, decoded."""
        parts: list[str] = []
        char = yield from self._next_solid()
        if char not in QUOTES:
            raise MalformedCallError(f"its {what} is not a string")
        yield from self._json_string(parts.append, char)
        text = str(json.loads("".join(parts)))
        if len(text) > limit:
            raise MalformedCallError(f"its {what} is longer than {limit} characters")
        return text

    def _json_call(self, bare: bool = False, opened: bool = False) -> Reading[None]:
        """One call as an object: a name, and arguments before or after it; other keys are skipped.

        Writes the start and the deltas; the caller reads what closes the call, then ends it. A `bare` object
        without arguments is no call. With `opened`, its brace has been read.
        """
        char = "{"
        if not opened:
            char = yield from self._next_solid()
        if char != "{":
            raise unexpected(char)
        self._has_other_keys = False
        name: str | None = None
        waiting: str | None = None  # arguments that came before the name
        separator = "{"
        while separator != "}":
            key = yield from self._key_of_call()
            if (yield from self._next_solid()) != ":":
                raise MalformedCallError("its JSON lacks a colon")
            is_argument = key in _ARGUMENT_KEYS
            if not bare and key in _OTHER_ARGUMENT_KEYS:
                is_argument = True
            is_name = key in _NAME_KEYS or (not bare and key in _OTHER_NAME_KEYS)
            if is_name and name is None:
                name = yield from self._text_value("name", MAX_NAME)
            elif is_argument and not self._is_started and waiting is None:
                waiting = yield from self._call_arguments(name)
            elif key == "function" and name is None:
                name = yield from self._function_member()
                if name is None:
                    yield from self._nested_function(bare)
                    return
            else:
                self._has_other_keys |= key not in _SKIPPED_KEYS
                yield from self._json_value(_drop, depth=1)
            if name is not None and waiting is not None and not self._is_started:
                self._start_call(name)
                self._arguments(waiting)
            separator = yield from self._separator()
        if not self._is_started:
            self._start_without_arguments(name, bare)

    def _key_of_call(self) -> Reading[str]:
        parts: list[str] = []
        first = yield from self._next_solid()
        yield from self._json_name(parts.append, first)
        return str(json.loads("".join(parts)))

    def _function_member(self) -> Reading[str | None]:
        """The name, if the member `function` is one; None if it is an object."""
        first = yield from self._next_solid()
        self._put_back(first)
        if first not in QUOTES:
            return None
        return (yield from self._text_value("name", MAX_NAME))

    def _separator(self) -> Reading[str]:
        """What follows a member: a comma or the end, before which there may be one."""
        separator = yield from self._next_solid()
        if separator == ",":
            following = yield from self._next_solid()
            if following != "}":
                self._put_back(following)
                return separator
            separator = following
        if self._ends_early(separator):
            self._put_back(separator)
            return "}"
        if separator != "}":
            raise unexpected(separator)
        return separator

    def _start_without_arguments(self, name: str | None, bare: bool) -> None:
        if name is None or bare or self._has_other_keys:
            raise MalformedCallError(
                "the call has no name" if name is None else "the call has no arguments"
            )
        self._start_call(name)
        self._arguments("{}")

    def _nested_function(self, bare: bool) -> Reading[None]:
        """`{"type": "function", "function": {...}}`: the call is inside."""
        yield from self._json_call(bare)
        while (char := (yield from self._next_solid())) == ",":
            yield from self._json_key(_drop)
            yield from self._json_value(_drop, depth=1)
        if char != "}":
            raise unexpected(char)

    def _object_arguments(self) -> Reading[None]:
        """The arguments of a started call, alone: an object."""
        first = yield from self._next_solid()
        if first != "{":
            raise unexpected(first)
        self._put_back(first)
        yield from self._json_value(self._arguments, depth=1)

    def _optional_arguments(self) -> Reading[None]:
        """The same; a tag or the end in their place means that there are none."""
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "<" or (first == END and not self._is_cut):
            self._arguments("{}")
        else:
            yield from self._object_arguments()

    def _call_arguments(self, name: str | None) -> Reading[str | None]:
        """Arguments: streamed if the name is known, else returned. An object, null, or an object inside a string."""
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{" and name is not None:
            self._start_call(name)
            yield from self._json_value(self._arguments, depth=1)
            return None
        parts: list[str] = []
        yield from self._json_value(parts.append, depth=1)
        text = "".join(parts)
        return checked_object(json.loads(text) if first == '"' else text)


def loads(text: str) -> Any:
    """The value of a JSON text, strictly read. Raises ValueError, for what nests too deep as well."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def checked_object(text: str) -> str:
    """`text`, if it is the JSON text of an object; `{}` for null or nothing. Raises `MalformedCallError`."""
    try:
        value = loads(text or "null")
    except ValueError as error:
        raise MalformedCallError("its arguments are not JSON") from error
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise MalformedCallError("its arguments are not a JSON object")
    return text


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _drop(_: str) -> None:
    pass
