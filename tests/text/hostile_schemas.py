"""24 schemas made to exhaust a grammar compiler: time, memory or recursion."""

from __future__ import annotations

import itertools
from typing import Any


def _nested(depth: int, key: str = "properties") -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = (
            {"type": "object", "properties": {"a": schema}}
            if key == "properties"
            else {key: [schema]}
        )
    return schema


def _anagrams(width: int) -> dict[str, Any]:
    return {
        "anyOf": [
            {"type": "string", "pattern": f"^{'.*'.join(p)}$"}
            for p in itertools.permutations("abcdef"[:width])
        ]
    }


HOSTILE: dict[str, Any] = {
    "deep objects": _nested(2000),
    "deep objects below the limit": _nested(60),
    "deep anyOf": _nested(400, "anyOf"),
    "deep allOf": _nested(60, "allOf"),
    "huge enum": {"enum": [f"value {i}" for i in range(100_000)]},
    "large enum": {"enum": [f"value {i} {'x' * 20}" for i in range(5000)]},
    "long enum value": {"enum": ["x" * 500_000]},
    "exponential regex": {"type": "string", "pattern": "^(a|aa|aaa)*(b|bb)*(a?){60}a{60}$"},
    "nested repeats": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "states of a repeat": {"type": "string", "pattern": "[ab]*a[ab]{200}"},
    "states of many repeats": {"type": "string", "pattern": "(x.{900}|y.{901}|z.{902})*w.{999}"},
    "giant minItems": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "large minItems": {"type": "array", "items": {"type": "integer"}, "minItems": 10_000},
    "giant maxLength": {"type": "string", "maxLength": 10**12},
    "large maxLength": {"type": "string", "minLength": 9999, "maxLength": 10_000},
    "recursive ref": {"$ref": "#"},
    "mutual refs": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "recursive intersection": {
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}},
        "allOf": [{"$ref": "#/$defs/n"}, {"properties": {"n": {"$ref": "#/$defs/n"}}}],
    },
    "doubling refs": {
        "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "null"}},
        "$ref": "#/$defs/d0",
    },
    "doubling intersections": {
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "null"}},
        "$ref": "#/$defs/d0",
    },
    "product of anyOf": {"allOf": [{"anyOf": [{"minimum": i * 10 + j} for j in range(8)]} for i in range(8)], "type": "integer"},
    "anagrams": _anagrams(6),
    "a megabyte": {"type": "object", "properties": {f"p{i}": {"type": "string", "title": "t" * 150} for i in range(4900)}},
    "many optional properties": {"type": "object", "properties": {f"p{i}": {"enum": [i, str(i)]} for i in range(1500)}},
}  # fmt: skip
