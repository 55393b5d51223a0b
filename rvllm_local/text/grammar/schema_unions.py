"""Whether the alternatives of a `oneOf` exclude one another, as far as can be told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text.grammar.schema_refs import target_of

_MOST_STEPS = 16  # of references that lead to references
_ANY_TYPE = frozenset({"null", "boolean", "number", "string", "array", "object"})


def are_exclusive(alternatives: Sequence[Any], root: Any) -> bool:
    """True if no value can fit two alternatives: types, literals or a tag differ.

    `root` is the outermost schema, in which references are followed.
    """
    schemas = [_resolved(part, root) for part in alternatives]
    if any(schema is None for schema in schemas):
        return False
    mappings = [schema for schema in schemas if schema is not None]
    pairs = itertools.combinations(mappings, 2)
    return all(_exclude_each_other(first, second, root) for first, second in pairs)


def _exclude_each_other(
    first: Mapping[str, Any], second: Mapping[str, Any], root: Any
) -> bool:
    if not _types(first) & _types(second):
        return True
    literals = _literals(first), _literals(second)
    if literals[0] is not None and literals[1] is not None:
        return not literals[0] & literals[1]
    return _have_different_tags(first, second, root)


def _have_different_tags(
    first: Mapping[str, Any], second: Mapping[str, Any], root: Any
) -> bool:
    """True if both are objects that require a property with different literals."""
    if _types(first) | _types(second) != {"object"}:
        return False
    names = set(_list(first, "required")) & set(_list(second, "required"))
    for name in names:
        tags = []
        for schema in (first, second):
            properties = schema.get("properties")
            part = properties.get(name) if isinstance(properties, Mapping) else None
            tags.append(_literals(_resolved(part, root) or {}))
        if tags[0] is not None and tags[1] is not None and not tags[0] & tags[1]:
            return True
    return False


def _resolved(schema: Any, root: Any) -> Mapping[str, Any] | None:
    """The schema that a chain of references leads to; None if it is no mapping."""
    for _ in range(_MOST_STEPS):
        if not isinstance(schema, Mapping):
            return None
        name = schema.get("$ref")
        if not isinstance(name, str) or len(schema) > 1:
            return schema
        schema = root
        for part in target_of(name):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return None


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a schema takes; integers are numbers."""
    literals = _literals(schema)
    named = schema.get("type")
    if isinstance(named, str):
        named = [named]
    if isinstance(named, list):
        return frozenset("number" if name == "integer" else name for name in named)
    if literals is not None and all(text.startswith('"') for text in literals):
        return frozenset({"string"})
    return _ANY_TYPE


def _literals(schema: Mapping[str, Any]) -> set[str] | None:
    """The values that a schema lists, as JSON; None if it lists none."""
    if "const" in schema:
        return {json.dumps(schema["const"], sort_keys=True)}
    if isinstance(schema.get("enum"), list):
        return {json.dumps(value, sort_keys=True) for value in schema["enum"]}
    return None


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
