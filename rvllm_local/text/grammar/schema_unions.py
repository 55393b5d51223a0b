"""Whether the alternatives of a `oneOf` exclude one another, as far as can be told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text.grammar.schema_errors import Path
from rvllm_local.text.grammar.schema_refs import target_of

Schema = Mapping[str, Any]
_MOST_STEPS = 16  # of references that lead to references
_ANY_TYPE = frozenset({"null", "boolean", "number", "string", "array", "object"})


def are_exclusive(alternatives: Sequence[Any], root: Any) -> bool:
    """True if no value can fit two alternatives: types, literals or a tag differ.

    `root` is the outermost schema, in which references are followed.
    """
    schemas = []
    for part in alternatives:
        schema = _resolved(part, root)
        if schema is None:
            return False
        schemas.append(schema)
    for first, second in itertools.combinations(schemas, 2):
        if not _exclude_each_other(first, second, root):
            return False
    return True


def _exclude_each_other(first: Schema, second: Schema, root: Any) -> bool:
    shared_types = _types(first) & _types(second)
    if not shared_types:
        return True
    literals = _literals(first)
    others = _literals(second)
    if literals is not None and others is not None:
        return literals.isdisjoint(others)
    return _have_different_tags(first, second, root)


def _have_different_tags(first: Schema, second: Schema, root: Any) -> bool:
    """True if both are objects that require a property with different literals."""
    if _types(first) | _types(second) != {"object"}:
        return False
    required = set(_list(first, "required"))
    required &= set(_list(second, "required"))
    for name in required:
        tags = _property_literals(first, name, root)
        others = _property_literals(second, name, root)
        if tags is None or others is None:
            continue
        if tags.isdisjoint(others):
            return True
    return False


def _property_literals(schema: Schema, name: Any, root: Any) -> set[str] | None:
    """The values that an object's property lists; None if it lists none."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return None
    resolved = _resolved(properties.get(name), root)
    if resolved is None:
        return None
    return _literals(resolved)


def _resolved(schema: Any, root: Any) -> Schema | None:
    """The schema that a chain of references leads to; None if it is no mapping."""
    for _ in range(_MOST_STEPS):
        if not isinstance(schema, Mapping):
            return None
        name = schema.get("$ref")
        if not isinstance(name, str) or len(schema) > 1:
            return schema
        schema = _schema_at(root, target_of(name))
    return None


def _schema_at(root: Any, path: Path) -> Any:
    """What stands at a path of mappings; None if they end before."""
    node = root
    for part in path:
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _types(schema: Schema) -> frozenset[str]:
    """The types that a schema takes; integers are numbers."""
    literals = _literals(schema)
    names = schema.get("type")
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        types = set(names)
        if "integer" in types:
            types.remove("integer")
            types.add("number")
        return frozenset(types)
    if literals is None:
        return _ANY_TYPE
    for literal in literals:
        if not literal.startswith('"'):
            return _ANY_TYPE
    return frozenset({"string"})


def _literals(schema: Schema) -> set[str] | None:
    """The values that a schema lists, as JSON; None if it lists none."""
    if "const" in schema:
        values = [schema["const"]]
    elif isinstance(schema.get("enum"), list):
        values = schema["enum"]
    else:
        return None
    literals = set()
    for value in values:
        literals.add(json.dumps(value, sort_keys=True))
    return literals


def _list(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    if isinstance(value, list):
        return value
    return []
