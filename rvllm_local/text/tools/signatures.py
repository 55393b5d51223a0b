"""The tools of a request as calls need them: names, parameters, and what must be given.

It mends a call whose name or arguments came in another form than the tool's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.text.tools.parameters import mapping, schemas_of, types_of

Tools = Sequence[Mapping[str, Any]]
# Keys that models set around the arguments once more.
WRAPPERS = frozenset({"arguments", "parameters", "args", "input", "params", "kwargs"})
# Namespaces that models set before a tool's name.
_NAMESPACES = ("functions.", "function.", "default_api.", "tools.", "tool.")
_NUMBERED = re.compile(r"functions?[._:]?(.+?)[._:!#-]?\d+")  # Kimi's, gone wrong
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
# What shows that a text is broken syntax: an object, a fence, a control tag.
_IS_NO_TEXT = re.compile(r"^[{\[]|```|<[|｜]|[|｜]>")
_ID = re.compile(r"(?:call|toolu|chatcmpl-tool)?[_-]?[0-9a-f]*\d[0-9a-z]*", re.I)


@dataclass(frozen=True, slots=True)
class Signature:
    """A tool's parameters, and the names of those that must be given."""

    properties: Mapping[str, Any]
    required: frozenset[str]

    def takes(self, keys: frozenset[str]) -> bool:
        """True if arguments of these names would be a call."""
        return bool(keys) and self.required <= keys <= frozenset(self.properties)

    def plain(self, text: str) -> dict[str, str] | None:
        """A text as the one argument that it can only be, where that is a string."""
        keys = list(self.required if self.required else self.properties)
        is_text = _IS_NO_TEXT.search(text.strip()) is None
        if len(keys) != 1 or not text.strip() or not is_text:
            return None
        key = keys[0]
        if types_of(self.properties.get(key)) != {"string"}:
            return None
        return {key: text.strip()}


def signatures_of(tools: Tools) -> dict[str, Signature]:
    """The signatures by name; what is not in shape is left out."""
    signatures = {}
    for name, properties in schemas_of(tools).items():
        signatures[name] = Signature(properties, _required(tools, name))
    return signatures


def _required(tools: Tools, name: str) -> frozenset[str]:
    for tool in tools:
        function = mapping(mapping(tool).get("function"))
        required = mapping(function.get("parameters")).get("required")
        if function.get("name") == name and isinstance(required, list):
            return frozenset(key for key in required if isinstance(key, str))
    return frozenset()


def offered_names(tools: Tools) -> frozenset[str]:
    """The names by which calls are known."""
    return frozenset(schemas_of(tools))


def offered_name(name: str, names: frozenset[str]) -> str | None:
    """The tool that a name means; None if it is none.

    It may have a namespace, a number behind it, or dashes in place of underscores.
    """
    if name in names:
        return name
    spellings = [name]
    for namespace in _NAMESPACES:
        if name.startswith(namespace):
            spellings.append(name.removeprefix(namespace))
    for separator in ":.":
        spellings.append(name.rpartition(separator)[2])
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        spellings.append(numbered[1])
    for spelling in spellings:
        if spelling in names:
            return spelling
        alike = [each for each in names if _plain_name(each) == _plain_name(spelling)]
        if len(alike) == 1:
            return alike[0]
    return None


def _plain_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name.lower()).strip("_")


def is_call_id(name: str) -> bool:
    """True if a call's id stands where its name should."""
    return _ID.fullmatch(name) is not None


def tool_by_keys(
    arguments: Mapping[str, Any], signatures: Mapping[str, Signature]
) -> str | None:
    """The one tool that takes such arguments; None if it is none or several."""
    keys = frozenset(arguments)
    tools = [name for name, tool in signatures.items() if tool.takes(keys)]
    return tools[0] if len(tools) == 1 else None


def unwrapped(arguments: Mapping[str, Any], tool: Signature) -> Mapping[str, Any]:
    """The arguments without a key around them that is no parameter of the tool."""
    if len(arguments) != 1:
        return arguments
    key, inside = next(iter(arguments.items()))
    if key not in WRAPPERS or key in tool.properties or not tool.properties:
        return arguments
    if isinstance(inside, str):
        inside = _object_in(inside) or tool.plain(inside)
    if isinstance(inside, dict) and inside.keys() <= tool.properties.keys():
        return inside
    return arguments


def _object_in(text: str) -> dict[str, Any] | None:
    """The object that a JSON text holds."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
