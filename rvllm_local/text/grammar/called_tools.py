"""The tools of a request: their names, their arguments' schemas, and which may be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text.grammar.json_schema import EnforcedSchema, enforced

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called. `schema` is its parameters', fit to be compiled.

    `left_out` names the parts of the parameters' schema that are not enforced.
    """

    name: str
    schema: Mapping[str, Any]
    strict: bool
    left_out: tuple[str, ...] = ()


def read_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Checked tools, in OpenAI's shape. Raises `ParameterError`."""
    if len(tools) > MAX_TOOLS:
        raise ParameterError(
            "tools", f"there are {len(tools)} tools; at most {MAX_TOOLS} are taken"
        )
    read: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            function = {}
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ParameterError(
                "tools",
                f"tool {index} must be a function with a name of 1 to 128 letters, "
                "digits, '_', '.' or '-'",
            )
        if name in read:
            raise ParameterError("tools", f"two tools have the name {name!r}")
        strict = function.get("strict") is True
        arguments = _arguments_schema(function.get("parameters"), name, strict)
        left_out = tuple(f"tool {name}: {part}" for part in arguments.left_out)
        read[name] = Tool(name, arguments.schema, strict, left_out)
    return list(read.values())


def callable_tools(
    tools: Sequence[Tool], choice: str | Mapping[str, Any]
) -> Sequence[Tool]:
    """The tools that a `tool_choice` leaves. Raises `ParameterError`."""
    if choice == "none" or (choice == "auto" and not tools):
        return []
    if choice in ("auto", "required"):
        if not tools:
            raise ParameterError(
                "tool_choice", "tool_choice is 'required', but there are no tools"
            )
        return tools
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ParameterError(
            "tool_choice",
            'tool_choice must be "none", "auto", "required" or name a function',
        )
    named = [tool for tool in tools if tool.name == name]
    if not named:
        raise ParameterError(
            "tool_choice",
            f"tool_choice names {name[:64]!r}, which is not among the tools",
        )
    return named


def _arguments_schema(parameters: Any, name: str, strict: bool) -> EnforcedSchema:
    """The schema of a tool's arguments.

    What cannot be enforced is refused if the tool is `strict`, else left out.
    """
    if parameters is None or parameters == {}:
        return enforced({"type": "object"}, "tools")
    try:
        is_object = isinstance(parameters, Mapping)
        if is_object and parameters.get("type", "object") != "object":
            raise ParameterError(
                "tools", "the schema of parameters must be of type object"
            )
        arguments = enforced(parameters, "tools", lenient=not strict)
    except ParameterError as error:
        if strict:
            raise ParameterError("tools", f"tool {name!r}: {error}") from error
        arguments = EnforcedSchema(enforced({}, "tools").schema, (str(error),))
    return replace(arguments, schema={**arguments.schema, "type": "object"})
