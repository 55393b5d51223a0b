"""Calls as Python writes them: `f(a=1, b="x")`, or a list of such. Nothing is run."""

from __future__ import annotations

import ast
import json
import keyword
import re
import warnings
from collections.abc import Mapping, Sequence

from rvllm_local.text.tools.python_values import PYTHON_ERRORS, TAKEN, python_value
from rvllm_local.text.tools.reader import MalformedCallError

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_TRIPLE = re.compile(r'"""(?:[^\\]|\\[\s\S])*?"""|\'\'\'(?:[^\\]|\\[\s\S])*?\'\'\'')
# A whole string.
_QUOTED = re.compile(_TRIPLE.pattern + r'|"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')

_DASH = "q7zdash"  # how a dash in a name is spelled
# A string, which stays as it is; an argument's name; a function's name with dashes.
_FREE_NAME = re.compile(
    _QUOTED.pattern
    + r"|\b(?P<argument>[a-z]+)(?=\s*=(?!=))"
    + r"|(?P<function>\b[A-Za-z_]\w*(?:-\w+)+)(?=\s*\()"
)


def ends_in_string(code: str) -> bool:
    """True if the last line opens a string and does not close it: the fence behind it is the string's."""
    rest = _TRIPLE.sub("", code)
    if '"""' in rest or "'''" in rest:
        return True
    rest = _QUOTED.sub("", rest.rpartition("\n")[2])
    return '"' in rest or "'" in rest


def python_calls(
    code: str, parameters: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[str, str]]:
    """Names and arguments of the calls in an expression: one, or a list of them, perhaps printed.

    `parameters` are the names of each tool's, in order: for arguments without a name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statements = ast.parse(_with_plain_names(code)).body
        calls = [call for statement in statements for call in _calls_of(statement)]
        if not calls:
            raise MalformedCallError("it calls nothing")
        return [_python_call(call, parameters or {}) for call in calls]
    except PYTHON_ERRORS as error:
        raise MalformedCallError("its code is not a call with plain values") from error


def python_object(code: str) -> tuple[str, str]:
    """Name and arguments of a call that is an object in Python's spelling."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = python_value(ast.parse(code.strip(), mode="eval").body)
        arguments = value.get("arguments", value.get("parameters", {}))
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except PYTHON_ERRORS as error:
        raise MalformedCallError("it is no object with plain values") from error
    except AttributeError as error:
        raise MalformedCallError("it is no object") from error
    name = value.get("name")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise MalformedCallError("it has no name and arguments")
    return name, text


def _with_plain_names(code: str) -> str:
    """The code with names that Python does not take spelled so that it does."""

    def spelled(match: re.Match[str]) -> str:
        if match["argument"]:
            is_taken = keyword.iskeyword(match["argument"])
            return f"{TAKEN}{match[0]}" if is_taken else match[0]
        if match["function"]:
            return match["function"].replace("-", _DASH)
        return match[0]

    return _FREE_NAME.sub(spelled, code)


def _calls_of(statement: ast.stmt) -> list[ast.Call]:
    value = getattr(statement, "value", None)
    nodes = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    calls = []
    for node in nodes:
        call = _printed(node)
        if not isinstance(call, ast.Call):
            raise MalformedCallError("it holds code that is no call")
        calls.append(call)
    return calls


def _printed(node: ast.AST | None) -> ast.AST | None:
    """What `print(...)` prints; anything else as it is."""
    is_named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if not is_named:
        return node
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return node.args[0] if node.func.id == "print" and node.args else node


def _python_call(
    call: ast.Call, parameters: Mapping[str, Sequence[str]]
) -> tuple[str, str]:
    name = ast.unparse(call.func).removeprefix("default_api.").replace(_DASH, "-")
    if not _NAME.fullmatch(name):
        raise MalformedCallError("the call has no plain name")
    names = parameters.get(name, ())
    arguments = {}
    has_unnamed = any(each.arg is None for each in call.keywords)
    if has_unnamed or len(call.args) > len(names):
        raise MalformedCallError("its arguments have no names")
    for key, value in zip(names, call.args, strict=False):
        arguments[key] = python_value(value)
    for each in call.keywords:
        key = str(each.arg).removeprefix(TAKEN)
        if key in arguments:
            raise MalformedCallError("it gives an argument twice")
        arguments[key] = python_value(each.value)
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
