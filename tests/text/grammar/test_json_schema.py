"""Structured output keeps its promise: a schema is refused with a reason, or every document validates."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from rvllm_local.errors import ParameterError
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler
from rvllm_local.text.tokenizer import Tokenizer
from tests.support.peak_memory import growth
from tests.text.hostile_schemas import HOSTILE
from tests.text.schema_corpus import (
    BY_KEYWORD,
    VOCAB_SIZE,
    corpus,
    judge,
)


def schema_format(schema: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": schema, "strict": True},
    }


def test_every_schema_is_refused_or_kept(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    schemas = corpus()
    assert len(schemas) >= 300
    verdicts = [
        (schema, *judge(schema, compiler, tokenizer, documents=4)) for schema in schemas
    ]
    assert [row for row in verdicts if row[1] in ("invalid", "unfinished")] == []
    assert sum(row[1] == "valid" for row in verdicts) > len(verdicts) / 2
    assert len(BY_KEYWORD) > 200


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"uniqueItems": True, "type": "array"}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "if"),
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
        ({"contains": {"type": "string"}}, "contains"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"$dynamicRef": "#a"}, r"\$dynamicRef"),
        ({"$ref": "https://example.com/a"}, "nothing outside the schema"),
        ({"type": "string", "format": "iri"}, "formats that are enforced"),
        ({"type": "number", "multipleOf": 0.1}, "binary fraction"),
        (
            {"type": "object", "properties": {"a": {"items": {"nullable": True}}}},
            "#/properties/a/items uses 'nullable'",
        ),
        ({"type": "string", "pattern": "(?=a)"}, "lookaround"),
        ({"propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "title": 5}, "title"),
        (
            {
                "type": "object",
                "patternProperties": {"a*": {}, "a*?": {"type": "null"}},
            },
            "two patterns",
        ),
        (
            {
                "patternProperties": {"^\\d": {}},
                "additionalProperties": {"type": "null"},
            },
            "take differently",
        ),
    ],
)
def test_a_refusal_names_what_cannot_be_enforced(
    compiler: GrammarCompiler, schema: Any, named: str
) -> None:
    with pytest.raises(ParameterError, match=named) as caught:
        compiler.validate(grammar_for_format(schema_format(schema)) or "")
    assert caught.value.parameter == "response_format"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_in_time(
    compiler: GrammarCompiler, tokenizer: Tokenizer, name: str
) -> None:
    row = np.zeros(-(-VOCAB_SIZE // 32), np.int32)
    began = time.process_time()
    with growth() as memory:
        try:
            grammar = grammar_for_format(schema_format(HOSTILE[name])) or ""
            compiler.compile(grammar).mask_into(row)
        except ParameterError as error:
            assert len(str(error)) < 1000
    # Far more than it takes: without limits some of these take hours.
    assert time.process_time() - began < 60
    assert memory.peak < 500 << 20
