"""Arguments that are written as text become what the tool's schema takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rvllm_local.text.tools.parameters import json_text

OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("12", {"type": "string"}, "12"),
        ("12", {"type": "integer"}, 12),
        ("12", {}, 12),
        ("12", OPTIONAL, "12"),
        ("null", OPTIONAL, None),
        ("None", OPTIONAL, None),
        ('{"a": 1}', OPTIONAL, '{"a": 1}'),
        ("true", {"type": ["string", "boolean"]}, True),
        ("true", {"type": ["string", "integer"]}, "true"),
        ("12", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, 12),
        ("12", {"enum": ["12", "13"]}, "12"),
        ("12", {"enum": [12, 13]}, 12),
        ("x", {"type": "integer"}, "x"),
        ('"x"', {"type": ["string", "null"]}, '"x"'),
        ("{'a': True, 'b': [None]}", {"type": "object"}, {"a": True, "b": [None]}),
        ("['a', 'b']", {"type": "array"}, ["a", "b"]),
        ("['a', 'b']", {"type": "string"}, "['a', 'b']"),
        ("[open('x')]", {"type": "array"}, "[open('x')]"),
        ("x", {"anyOf": [{}, {"type": "null"}]}, "x"),
        ("12", {"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}, 12),
    ],
)
def test_a_text_is_what_the_schema_takes(
    text: str, schema: dict[str, Any], value: Any
) -> None:
    assert json.loads(json_text(text, schema)) == value
