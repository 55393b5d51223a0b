"""Arguments that a family writes one by one: each listed property once, in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text.grammar.called_tools import Tool
from rvllm_local.text.grammar.lark import Lark, quoted

_KEY = re.compile(r"[^<>\n\x00-\x1f\x7f]{1,64}")
_STRING_LIMITS = frozenset({"minLength", "maxLength", "pattern", "format"})
_SHARED = ("x-guidance", "$defs", "definitions")
_PLAIN = frozenset({*_SHARED, "type", "properties", "required", "additionalProperties"})
WriteValue = Callable[[Lark, Mapping[str, Any], str], str]


@dataclass(frozen=True, slots=True)
class ArgumentSyntax:
    """How a family writes one argument.

    `head` gives what stands before the value of a key, `value` the rule of the value and
    of `foot`, which ends it; KEY in it stands for the key. With a `separator` between arguments, required ones come
    first. `holds_text`: strings stand there as they are, so that no limits hold them.
    """

    head: Callable[[str], str]
    value: WriteValue
    foot: str
    separator: str = ""
    holds_text: bool = True


def arguments_in_order(lark: Lark, tool: Tool, syntax: ArgumentSyntax) -> str:
    """The rules of a tool's arguments; those that are not required may be left out.

    Raises `ParameterError` for a strict tool whose schema cannot be enforced so.
    """
    properties, required = _listed(tool)
    ordered = list(properties)
    if syntax.separator:
        ordered.sort(key=lambda key: key not in required)
    shared = {key: tool.schema[key] for key in _SHARED if key in tool.schema}
    parts = []
    for index, key in enumerate(ordered):
        schema = properties[key] if isinstance(properties[key], Mapping) else {}
        _check_limits(tool, key, schema, syntax)
        foot = syntax.foot.replace("KEY", key)
        value = syntax.value(lark, {**schema, **shared}, foot)
        argument = f"{lark.text(syntax.head(key))} {value}"
        if syntax.separator and index:
            argument = f"{quoted(syntax.separator)} {argument}"
        parts.append(argument if key in required else f"({argument})?")
    return " ".join(parts)


def _listed(tool: Tool) -> tuple[dict[str, Any], set[str]]:
    """The properties that can be written, and which of them must be."""
    properties = dict(tool.schema.get("properties", {}))
    required = set(tool.schema.get("required", ()))
    is_plain = set(tool.schema) <= _PLAIN and required <= set(properties)
    if is_plain and all(map(_fits, properties)):
        return properties, required
    if tool.strict:
        raise ParameterError(
            "tools",
            f"tool {tool.name!r}: only listed properties can be enforced in this syntax",
        )
    fitting = {key: value for key, value in properties.items() if _KEY.fullmatch(key)}
    return fitting, set()


def _fits(key: str) -> bool:
    """True for a key that its tag holds and its reader gives back."""
    return _KEY.fullmatch(key) is not None and key == key.strip()


def _check_limits(
    tool: Tool, key: str, schema: Mapping[str, Any], syntax: ArgumentSyntax
) -> None:
    is_text = syntax.holds_text and schema.get("type") == "string"
    if tool.strict and is_text and set(schema) & _STRING_LIMITS:
        raise ParameterError(
            "tools",
            f"tool {tool.name!r}: limits of the string {key!r} cannot be enforced",
        )


# Values.


def json_value(lark: Lark, schema: Mapping[str, Any], foot: str) -> str:
    """A value as JSON, and `foot`."""
    return f"{lark.json(schema)} {lark.text(foot)}"


def text_value(lark: Lark, schema: Mapping[str, Any], foot: str) -> str:
    """A value up to `foot`: strings as they are, all else as JSON."""
    choices = _texts_of(schema)
    if choices:
        literals = " | ".join(quoted(choice) or '""' for choice in choices)
        return f"({literals}) {lark.text(foot)}"
    if schema.get("type") != "string":
        return json_value(lark, schema, foot)
    end = foot.rstrip("\n")
    return f"{lark.until(end)} {quoted(foot[len(end) :])}"


def tagged_value(quote: str) -> WriteValue:
    """A value in which strings stand between two tags `quote`, all else is JSON."""

    def write(lark: Lark, schema: Mapping[str, Any], foot: str) -> str:
        choices = _texts_of(schema)
        if choices:
            literals = " | ".join(lark.text(quote + text + quote) for text in choices)
            return f"({literals})"
        if schema.get("type") == "string":
            return f"{lark.tag(quote)} {lark.until(quote)}"
        return json_value(lark, schema, foot)

    return write


def typed_value(text: str, other: str, end: str) -> WriteValue:
    """A value after the word for its type: `text` before a string, `other` before JSON.

    TYPE in `other` stands for the type. `end` is the tag in `foot` that ends a string.
    """

    def write(lark: Lark, schema: Mapping[str, Any], foot: str) -> str:
        if schema.get("type") == "string" and not _texts_of(schema):
            rest = lark.text(foot.partition(end)[2])
            return f"{lark.text(text)} {lark.until(end)} {rest}"
        choices = _texts_of(schema)
        if choices:
            literals = " | ".join(quoted(choice) or '""' for choice in choices)
            return f"{lark.text(text)} ({literals}) {lark.text(foot)}"
        kind = schema.get("type")
        word = other.replace("TYPE", kind if isinstance(kind, str) else "object")
        return f"{lark.text(word)} {json_value(lark, schema, foot)}"

    return write


def _texts_of(schema: Mapping[str, Any]) -> list[str]:
    """The texts that an enumeration allows, if it allows nothing else."""
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if all(isinstance(choice, str) for choice in choices):
        return list(choices)
    return []
