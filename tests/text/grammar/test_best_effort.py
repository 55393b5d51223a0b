"""A schema that is not strict: the smallest part that cannot be enforced is left out.

What is enforced holds every document of a random model; what is left out is named.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rvllm_local.errors import ParameterError
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    grammar_for_tools,
    split_left_out,
)
from rvllm_local.text.grammar.json_schema import enforced
from rvllm_local.text.grammar.matcher import GrammarCompiler
from rvllm_local.text.tokenizer import Tokenizer
from tests.text.schema_corpus import sample

STRING = {"type": "string", "maxLength": 4}
CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat"}, "lives": {"enum": [7, 9]}},
    "required": ["kind", "lives"],
    "additionalProperties": False,
}
DOG = {
    "type": "object",
    "properties": {"kind": {"const": "dog"}, "good": {"const": True}},
    "required": ["kind", "good"],
    "additionalProperties": False,
}
PETS = {
    "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}},
    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    "$defs": {"Cat": CAT, "Dog": DOG},
}


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def documents(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: Any, count: int = 6
) -> list[Any]:
    """What a random model writes."""
    grammar, _ = split_left_out(grammar_for_format(form(schema)))
    matcher = compiler.compile(grammar or "")
    found = []
    for seed in range(count):
        text = sample(matcher.copy(), tokenizer, random.Random(seed))
        if text is not None:
            found.append(json.loads(text))
    assert found
    return found


@pytest.mark.parametrize(
    ("schema", "left_out"),
    [
        ({"type": "array", "uniqueItems": True, "items": STRING, "maxItems": 3}, ["# uses 'uniqueItems'"]),
        ({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}, ["#/properties/a uses 'not'"]),
        ({"anyOf": [STRING, {"type": "string", "pattern": "(?=a)b"}]}, ["#/anyOf/1/pattern has a pattern"]),
        ({"type": "string", "minLength": 20_000}, ["#/minLength is 20000"]),
        ({"type": "integer", "minimum": 10**20}, ["#/minimum is too large"]),
        ({"$ref": "https://example.com/x", "type": "boolean"}, ["#/$ref must be '#'"]),
        ({"$ref": "#/$defs/no", "type": "boolean"}, ["# refers to '#/$defs/no'"]),
        ({"allOf": [{"$ref": "#"}], "type": "boolean"}, ["refers to itself"]),
        ({"type": "string", "format": "iri", "maxLength": 3}, ["#/format is not one"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["#/oneOf is enforced as anyOf"]),
        ({"type": "object", "patternProperties": {"a": {}, "b": {}}}, ["#/patternProperties holds"]),
        ({"type": "object", "properties": {"a\nb": {"not": {}}}}, ["#/properties/a?b uses"]),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_left_out_and_named(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: Any, left_out: list[str]
) -> None:
    parts = enforced(schema, lenient=True).left_out
    assert len(parts) == len(left_out)
    for part, expected in zip(parts, left_out, strict=True):
        assert expected in part
    grammar, named = split_left_out(grammar_for_format(form(schema)))
    assert named == parts
    compiler.compile(grammar or "")


@pytest.mark.parametrize(
    "schema",
    [
        PETS,
        {"type": "string", "maxLength": 10**9, "pattern": "^a{1,3}$"},
        {"type": "integer", "minimum": -(10**30), "maximum": 5},
        {"type": "string", "format": "time"},
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 9},
        {"$schema": "https://example.com/mine", "type": "boolean"},
        {"type": "array", "items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": False, "minItems": 2},
        {"type": "boolean", "additionalItems": False, "x-order": 1, "example": 3},
        {"type": "array", "maxItems": 2, "items": {"type": "boolean"}, "additionalItems": False},
        {"oneOf": [{"type": "null"}, {"type": "boolean"}, {"const": "x"}]},
    ],
)  # fmt: skip
def test_these_need_nothing_left_out(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: Any
) -> None:
    assert enforced(schema, lenient=True).left_out == ()
    for document in documents(compiler, tokenizer, schema):
        is_newest = "$schema" not in schema and not isinstance(
            schema.get("items"), list
        )
        if is_newest:
            Draft202012Validator(schema).validate(document)


def test_a_tagged_union_holds_its_tag(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    kinds = {pet["kind"] for pet in documents(compiler, tokenizer, PETS, 12)}
    assert kinds == {"cat", "dog"}


def test_bounds_of_draft_4(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 4}
    assert set(documents(compiler, tokenizer, schema)) == {4}


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"properties": []}, {"required": "a"}, {"enum": []}, 7]
)
def test_what_is_no_schema_is_refused_all_the_same(schema: Any) -> None:
    with pytest.raises(ParameterError, match="the schema cannot be enforced"):
        grammar_for_format(form(schema))


def test_a_strict_schema_is_kept_to_the_letter_or_refused() -> None:
    strict = form({"type": "array", "uniqueItems": True})
    strict["json_schema"]["strict"] = True
    with pytest.raises(ParameterError, match="uniqueItems"):
        grammar_for_format(strict)


def test_one_keyword_beyond_a_limit_leaves_a_tool_the_rest_of_its_schema() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "a": {"enum": ["x"]},
            "b": {"type": "string", "minLength": 10**9},
        },
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    grammar, left_out = split_left_out(
        grammar_for_tools([tool], "required", "hermes", parallel=False)
    )
    assert left_out == (
        "tool f: #/properties/b/minLength is 1000000000; at most 10000 can be enforced",
    )
    assert '\\"enum\\": [\\"x\\"]' in (grammar or "")


@pytest.mark.parametrize(
    ("divisor", "is_enforced"),
    [
        (0.01, True),
        (0.25, True),
        (9973, True),
        (10**9, True),
        (0.0003, False),  # floats make 29999999999999996 of its digit
        (99.983, False),
        (3.141592653589793, False),
        (2**40, False),
        (99_991, False),  # a state for each rest would take a second
    ],
)
def test_divisors_of_many_digits_are_left_out(
    divisor: float, is_enforced: bool, compiler: GrammarCompiler
) -> None:
    schema = {"type": "number", "multipleOf": divisor}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    grammar, left_out = split_left_out(grammar_for_format(form))
    compiler.compile(grammar or "")
    told = [part for part in left_out if "too many digits" in part]
    assert (told == []) == is_enforced
