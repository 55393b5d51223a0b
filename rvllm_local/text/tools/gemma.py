"""Gemma's calls: Python in a `tool_code` fence, and FunctionGemma's `<start_function_call>call:name{...}`."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import MAX_DEPTH, MAX_NAME, JSONReader, loads
from rvllm_local.text.tools.reader import END, MalformedCallError, Reading

MAX_CODE = 1 << 16
_MOST_FENCES = 64  # in the strings of a call
_WORDS = {"true": True, "false": False, "null": None}
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')  # a string with its end
_BARE = re.compile(r"[^,{}\[\]<>]*")


class GemmaParser(JSONReader):
    """Calls are read whole, then written: Python's values are not JSON's. One fence may hold several."""

    def _parse(self) -> Reading[None]:
        fence, (opening, closing) = tags.GEMMA, tags.GEMMA_FUNCTION
        while (
            tag := (yield from self._until((fence[0], opening, closing), self._content))
        ) != END:
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
            if not _ends_in_string(code):
                break
            more, _ = yield from self._text_until((closing,), MAX_CODE)
            code += closing + more
        calls = _python_calls(code.strip())
        for number, (name, arguments) in enumerate(calls):
            self._index += number > 0
            self._whole_call(name, arguments)

    def _function(self, closing: str) -> Reading[None]:
        code, _ = yield from self._text_until((closing,), MAX_CODE)
        head, brace, rest = code.strip().removeprefix("call:").partition("{")
        value, end = _Loose(brace + rest).value(0) if brace else ({}, 0)
        if not isinstance(value, dict) or (brace + rest)[end:].strip():
            raise MalformedCallError("its arguments are not an object")
        self._whole_call(head.strip(), json.dumps(value, ensure_ascii=False))

    def _whole_call(self, name: str, arguments: str) -> None:
        if len(name) > MAX_NAME:
            raise MalformedCallError(f"its name is longer than {MAX_NAME} characters")
        self._start_call(name)
        self._arguments(arguments)
        self._end_call()


def _ends_in_string(code: str) -> bool:
    """True if the last line opens a string and does not close it: the fence behind it is the string's."""
    rest = _QUOTED.sub("", code.rpartition("\n")[2])
    return '"' in rest or "'" in rest


def _python_calls(code: str) -> list[tuple[str, str]]:
    """Names and arguments of the calls in an expression: one, or a list of them, perhaps printed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statements = ast.parse(code).body
        calls = [call for statement in statements for call in _calls_of(statement)]
        if not calls:
            raise MalformedCallError("it calls nothing")
        return [_python_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedCallError("its code is not a call with plain values") from error


def _calls_of(statement: ast.stmt) -> list[ast.Call]:
    value = getattr(statement, "value", None)
    found = value.elts if isinstance(value, ast.List) else [value]
    calls = []
    for call in found:
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id == "print"
            and call.args
        ):
            call = call.args[0]  # noqa: PLW2901
        if not isinstance(call, ast.Call):
            raise MalformedCallError("it holds code that is no call")
        calls.append(call)
    return calls


def _python_call(call: ast.Call) -> tuple[str, str]:
    if call.args or any(one.arg is None for one in call.keywords):
        raise MalformedCallError("its arguments have no names")
    name = ast.unparse(call.func).removeprefix("default_api.")
    if not _NAME.fullmatch(name):
        raise MalformedCallError("the call has no plain name")
    arguments = {str(one.arg): _python_value(one.value) for one in call.keywords}
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _python_value(node: ast.expr) -> Any:
    """A literal's value; JSON's words for true, false and null count too."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_python_value(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _key(one): _python_value(value)
            for one, value in zip(node.keys, node.values, strict=True)
        }
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None):
        raise MalformedCallError("it holds a value that JSON does not know")
    return value


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise MalformedCallError("it holds a key that is not a string")


class _Loose:
    """FunctionGemma's values: keys without quotes, strings between escape tags."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, at: int, depth: int = 0) -> tuple[Any, int]:
        """The value at `at`, and where it ends. Raises `MalformedCallError`."""
        if depth > MAX_DEPTH:
            raise MalformedCallError(f"its arguments nest deeper than {MAX_DEPTH}")
        at = self._solid(at)
        if self._text.startswith(tags.GEMMA_ESCAPE, at):
            start = at + len(tags.GEMMA_ESCAPE)
            end = self._text.find(tags.GEMMA_ESCAPE, start)
            if end < 0:
                raise MalformedCallError("a string of it has no end")
            return self._text[start:end], end + len(tags.GEMMA_ESCAPE)
        if self._text[at : at + 1] in ("{", "["):
            return self._members(at, depth)
        found = _BARE.match(self._text, at)
        assert found is not None
        bare = found[0].strip()
        if not bare:
            raise MalformedCallError("an argument of it has no value")
        try:
            return loads(bare), found.end()
        except ValueError:
            return bare, found.end()

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
                key, at = (
                    self._text[at:end].strip().removeprefix(tags.GEMMA_ESCAPE),
                    end + 1,
                )
            value, at = self.value(at, depth + 1)
            named[key.removesuffix(tags.GEMMA_ESCAPE)] = value
            listed.append(value)
            at = self._solid(at)
            if self._text.startswith(",", at):
                at = self._solid(at + 1)
            elif not self._text.startswith(closing, at):
                raise MalformedCallError("its arguments are broken")
        return (named if is_object else listed), at + 1

    def _solid(self, at: int) -> int:
        while at < len(self._text) and self._text[at].isspace():
            at += 1
        return at
