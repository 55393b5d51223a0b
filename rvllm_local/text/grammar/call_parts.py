"""What the syntaxes of calls are made of: an object, a frame, a list of arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from rvllm_local.text.grammar.argument_lists import (
    ArgumentSyntax,
    arguments_in_order,
    json_value,
)
from rvllm_local.text.grammar.called_tools import Tool
from rvllm_local.text.grammar.lark import Lark, quoted

WriteCall = Callable[[Lark, Tool], str]


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How one family writes calls.

    `trigger` is the tag that begins them, None if a call looks like text. `call` gives
    the body of one call; `first` comes before the first call after the trigger, `between`
    two calls, `last` after all. Where `repeats`, every call begins with the trigger.
    """

    call: WriteCall
    trigger: str | None
    first: str = ""
    between: str = ""
    last: str = ""
    repeats: bool = True
    can_repeat: bool = True


def object_call(key: str) -> WriteCall:
    """`{"name": ..., KEY: {...}}`"""

    def call(lark: Lark, tool: Tool) -> str:
        head = f'{{"name": {json.dumps(tool.name)}, "{key}": '
        return f"{quoted(head)} {lark.json(tool.schema)} {quoted('}')}"

    return call


def framed_call(head: str, foot: str) -> WriteCall:
    """The arguments as JSON between texts; NAME in `head` stands for the tool's name."""

    def call(lark: Lark, tool: Tool) -> str:
        opening = lark.text(head.replace("NAME", tool.name))
        return f"{opening} {lark.json(tool.schema)} {lark.text(foot)}"

    return call


def listed_call(head: str, syntax: ArgumentSyntax, foot: str) -> WriteCall:
    """The arguments one by one between texts."""

    def call(lark: Lark, tool: Tool) -> str:
        opening = lark.text(head.replace("NAME", tool.name))
        return f"{opening} {arguments_in_order(lark, tool, syntax)} {lark.text(foot)}"

    return call


_PYTHON_ARGUMENTS = ArgumentSyntax(
    lambda key: f"{key}=", json_value, "", ", ", holds_text=False
)


def python_call(lark: Lark, tool: Tool) -> str:
    arguments = arguments_in_order(lark, tool, _PYTHON_ARGUMENTS)
    return f"{quoted(tool.name + '(')} {arguments} {quoted(')')}"
