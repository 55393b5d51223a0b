"""The values in a call that is written as Python: literals, and what is made of them.

Nothing is run: what is not known here is refused.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from rvllm_local.text.tools.reader import MalformedCallError

_WORDS = {"true": True, "false": False, "null": None}
_LARGEST = 1e15  # beyond it nobody writes a sum
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
# Names that make a list of one, and names that make one value of another.
_LISTS = frozenset({"list", "tuple", "set", "frozenset"})
_CONVERSIONS: Mapping[str, type[Any]] = {"str": str, "int": int, "float": float}
# Before a name that is a keyword of Python, where a model uses it as any other.
TAKEN = "q7z_"
# What reading Python ends in where it is none, or holds what JSON does not.
PYTHON_ERRORS = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def python_value(node: ast.expr) -> Any:
    """The value of an expression, as JSON knows values.

    JSON's words for true, false and null count too. A set and a tuple are lists. An
    object that is made by keywords is the object of its keywords: `Point(x=1)`. Raises
    `MalformedCallError`, `ValueError` or `TypeError` for all else.
    """
    match node:
        case ast.Name(name) if name in _WORDS:
            return _WORDS[name]
        case ast.List(items) | ast.Tuple(items) | ast.Set(items):
            return [python_value(item) for item in items]
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_key(key): python_value(item) for key, item in pairs}
        case ast.BinOp(left, kind, right):
            return _computed(python_value(left), type(kind), python_value(right))
        case ast.JoinedStr(parts):
            return "".join(_text(part) for part in parts)
        case ast.Call():
            return _made(node)
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None):
        raise MalformedCallError("it holds a value that JSON does not know")
    return value


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise MalformedCallError("it holds a key that is not a string")


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise MalformedCallError("it holds a text with values to fill in")


def _computed(left: Any, kind: type[ast.operator], right: Any) -> Any:
    """A sum of numbers, or two texts that are joined."""
    if isinstance(left, str) and isinstance(right, str) and kind is ast.Add:
        return left + right
    for value in (left, right):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or abs(value) > _LARGEST:
            raise MalformedCallError("it holds a sum of other things than numbers")
    if kind not in _ARITHMETIC or (kind is ast.Div and right == 0):
        raise MalformedCallError("it holds a sum that is not known")
    value = _ARITHMETIC[kind](left, right)
    if not math.isfinite(value):
        raise MalformedCallError("it holds a sum that is not known")
    return value


def _made(call: ast.Call) -> Any:
    """What a call inside a call makes, where that can be told without running it."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if len(call.args) == 1 and not call.keywords:
        value = python_value(call.args[0])
        if name in _LISTS and isinstance(value, list):
            return value
        if name in _CONVERSIONS and not isinstance(value, list | dict | None):
            return _CONVERSIONS[name](value)
    if not call.args and not call.keywords and name in _LISTS:
        return []
    # Classes begin with a capital letter; another function's value is not known yet.
    is_object = name == "dict" or name[:1].isupper()
    if call.args or not is_object or any(each.arg is None for each in call.keywords):
        raise MalformedCallError(f"an argument is itself a call, of {name:.60}")
    made = {}
    for each in call.keywords:
        made[str(each.arg).removeprefix(TAKEN)] = python_value(each.value)
    return made
