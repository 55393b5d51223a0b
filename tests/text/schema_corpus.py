"""300 schemas: some for every keyword of JSON Schema, and generated ones; and documents sampled under their grammars.

A schema counts as right if it is refused with a reason, or if every document that a random model finishes under
its mask validates under the jsonschema library.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from jsonschema.validators import validator_for

from rvllm_local.errors import GrammarError, ParameterError
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher
from rvllm_local.text.tokenizer import Tokenizer

S: dict[str, Any] = {"type": "string"}
I: dict[str, Any] = {"type": "integer"}  # noqa: E741
_D7 = "http://json-schema.org/draft-07/schema#"


def obj(required: bool = True, extra: Any = False, **properties: Any) -> dict[str, Any]:
    """An object schema of these properties."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(properties)
    if extra is not True:
        schema["additionalProperties"] = extra
    return schema


BY_KEYWORD: list[Any] = [
    # types
    {}, True, False, {"type": "null"}, {"type": "boolean"}, I, {"type": "number"}, S, {"type": "array"},
    {"type": "object"}, {"type": ["string", "null"]}, {"type": ["integer", "boolean", "null"]}, {"type": []},
    {"type": "any"}, {"type": ["string", "string"]}, {"type": 5},
    # enum and const
    {"enum": ["a", "b"]}, {"enum": [1, 2.5, None, True, "x", [1], {"a": 1}]}, {"enum": []}, {"enum": "a"},
    {"const": None}, {"const": "é\n\"\\😀"}, {"const": 1.0}, {"const": 2e3}, {"const": -0.5}, {"const": {"a": [1, {"b": None}]}},
    {"const": "\x01"}, {"const": 1e300}, {"const": 10**25}, {"enum": [0, False]}, {"enum": ["a", 1], "type": "string"},
    {"enum": ["a", "abc"], "maxLength": 1}, {"enum": ["ab", "cd"], "pattern": "^a"}, {"enum": [1, 5], "minimum": 3},
    {"enum": [[1], [1, 2]], "minItems": 2}, {"type": "string", "const": 1}, {"enum": [{"a": 1}, {"b": 1}], "required": ["a"]},
    {"const": 0.1}, {"const": 1e-7}, {"const": ""}, {"const": "a/b"}, {"const": 123456789012345678},
    # strings
    {"type": "string", "minLength": 3}, {"type": "string", "maxLength": 3}, {"type": "string", "minLength": 2, "maxLength": 2},
    {"type": "string", "maxLength": 0}, {"type": "string", "minLength": 5, "maxLength": 2}, {"type": "string", "minLength": -1},
    {"type": "string", "minLength": 10**6}, {"maxLength": 2}, {"type": "string", "maxLength": 2.5},
    *({"type": "string", "pattern": pattern} for pattern in (
        "^a+$", "b", "^[a-c]{2,4}$", "^\\d{3}-\\d{4}$", "\\D", "^\\W+$", "^\\S\\s\\w$", "^[^a-z]$", "^[^\\d]$", "^[^\\w\\s]{2}$",
        "^.$", "^a|b$", "^(foo|bar)+$", "(?=a)b", "(?<!a)b", "(a)\\1", "\\bfoo\\b", "(?i)abc", "(?P<x>a)", "(?<x>a)", "^\\p{L}$",
        "a++", "[[:alpha:]]", "[a&&b]", "^\\u00e9$", "^\\x41$", "[", "a{2", "a{1001}", "^\"$", "^/$", "", "^$", "x*?y", "^[\\b]x?$", "^[-a]$",
        "^\\.\\*$", "\\<a", "^[a\\]]$", "^\\0$", "\\Aa\\Z", "^\\S+@\\S+$", "^#[0-9a-f]{6}$", "$a", "a^", "^(a|)$", "^[\\s\\S]$", "^[^\\S]$",
        '^[^"]+$', "^[^\\\\]+$", '^[^"\\\\\n]*$', "^[\\x00-!]+$", "^.+$", "^\\D+x$",
    )),
    {"type": "string", "pattern": "^a+", "maxLength": 4}, {"type": "string", "pattern": 5}, {"pattern": "^a$"},
    *({"type": "string", "format": name} for name in (
        "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "iri", "regex", "zzz",
        "uri-reference", "json-pointer", "idn-email",
    )),
    {"format": "date"}, {"type": "string", "format": "date", "pattern": "^2"}, {"type": "string", "format": "uuid", "maxLength": 3},
    {"type": "string", "contentEncoding": "base64"}, {"type": "string", "contentMediaType": "application/json"},
    # numbers
    {"type": "integer", "minimum": 3}, {"type": "integer", "maximum": -3}, {"type": "integer", "minimum": -7, "maximum": 11},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
    {"type": "integer", "minimum": 5, "maximum": 3}, {"type": "integer", "minimum": 0.5, "maximum": 2.5},
    {"type": "integer", "minimum": 10**30}, {"type": "number", "minimum": 0.25, "maximum": 0.75}, {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "exclusiveMaximum": 1, "minimum": 0}, {"type": "number", "minimum": 3, "exclusiveMinimum": True},
    {"minimum": 3}, {"exclusiveMaximum": 0}, {"type": "number", "minimum": "3"}, {"type": "number", "maximum": 1e-30},
    {"type": "integer", "multipleOf": 7}, {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 30}, {"type": "number", "multipleOf": 0.1},
    {"type": "number", "multipleOf": 0.25}, {"type": "number", "multipleOf": 5}, {"type": "integer", "multipleOf": 2.5},
    {"multipleOf": 3}, {"type": "integer", "multipleOf": 0}, {"type": "integer", "multipleOf": -2},
    {"type": ["integer", "string"], "minimum": 2, "maxLength": 1}, {"type": "integer", "multipleOf": 6, "allOf": [{"multipleOf": 4}]},
    # arrays
    {"type": "array", "items": I}, {"type": "array", "items": I, "minItems": 2, "maxItems": 4}, {"type": "array", "items": False},
    {"type": "array", "items": True, "maxItems": 1}, {"type": "array", "prefixItems": [S, I]}, {"type": "array", "prefixItems": [S, I], "items": False},
    {"type": "array", "prefixItems": [S], "items": I, "minItems": 3}, {"type": "array", "prefixItems": [S, I], "maxItems": 1},
    {"type": "array", "items": [S]}, {"$schema": _D7, "type": "array", "items": [S, I], "additionalItems": False},
    {"$schema": _D7, "type": "array", "items": [S], "additionalItems": I}, {"$schema": _D7, "prefixItems": [S]},
    {"type": "array", "additionalItems": False}, {"type": "array", "uniqueItems": True}, {"type": "array", "items": I, "uniqueItems": False},
    {"type": "array", "contains": I}, {"type": "array", "minContains": 1}, {"type": "array", "maxContains": 1},
    {"type": "array", "unevaluatedItems": False}, {"type": "array", "minItems": 3, "maxItems": 1}, {"minItems": 1},
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "minItems": 1}, {"type": "array", "minItems": 10**9},
    # objects
    obj(a=S, b=I), obj(False, a=S, b=I), obj(True, True, a=S), obj(True, I, a=S), obj(True, {"type": "null"}, a=S), obj(**{"": I, "é\n": S, "a\"b": I}),
    {"type": "object", "required": ["z"]}, {"type": "object", "required": ["z"], "additionalProperties": False}, {"required": ["a"]},
    {"type": "object", "required": ["a", "a"]}, {"type": "object", "required": "a"}, {"properties": {"a": S}}, {"type": "object", "properties": {"a": False}},
    {"type": "object", "properties": {"a": True}, "required": ["a"]}, {"type": "object", "properties": []}, {"type": "object", "additionalProperties": I},
    {"type": "object", "additionalProperties": False}, {"type": "object", "patternProperties": {"^a": I}}, {"type": "object", "patternProperties": {"^a": I}, "additionalProperties": False},
    {"type": "object", "patternProperties": {"^a": I, "b$": S}}, {"type": "object", "patternProperties": {"^a": I, "^b": S}, "additionalProperties": {"type": "null"}},
    {"type": "object", "properties": {"ab": I}, "patternProperties": {"^a": {"minimum": 3}}}, {"type": "object", "patternProperties": {"(?=a)": I}},
    {"type": "object", "minProperties": 1}, {"type": "object", "minProperties": 2}, {"type": "object", "maxProperties": 2}, {"type": "object", "maxProperties": 0},
    {"type": "object", "minProperties": 2, "required": ["a", "b"]}, {**obj(False, a=I, b=I), "minProperties": 1}, {**obj(False, a=I, b=I), "maxProperties": 1},
    {**obj(False, a=I, b=I), "minProperties": 2}, {"type": "object", "additionalProperties": I, "minProperties": 1, "maxProperties": 3},
    {"type": "object", "propertyNames": {"pattern": "^a"}}, {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, {"type": "object", "dependencies": {"a": ["b"]}}, {"type": "object", "unevaluatedProperties": False},
    # applicators
    {"anyOf": [S, I]}, {"anyOf": [obj(a=S), obj(b=I)]}, {"anyOf": []}, {"anyOf": [S, I], "maxLength": 2}, {"anyOf": [{"minimum": 3}, {"maxLength": 1}]},
    {**obj(False, a=I, b=I), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"oneOf": [S, I]}, {"oneOf": [I, {"type": "number"}]},
    {"oneOf": [I, {"type": "integer", "minimum": 3}]}, {"oneOf": [obj(k={"const": "a"}), obj(k={"const": "b"}, v=I)]}, {"oneOf": [obj(False, k={"const": "a"}), obj(False, k={"const": "b"})]},
    {"oneOf": [{"const": 1}, {"const": 1.0}]}, {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 2}]}, {"oneOf": [{"type": "integer", "maximum": 2}, {"type": "integer", "minimum": 3}]},
    {"allOf": [I, {"minimum": 3}]}, {"allOf": [obj(True, True, a=S), obj(True, True, b=I)]}, {"allOf": [obj(a=S), obj(True, True, b=I)]}, {"allOf": [S, I]}, {"allOf": []},
    {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}]}, {"allOf": [{"anyOf": [S, I]}, {"anyOf": [I, {"type": "null"}]}]}, {"type": "integer", "allOf": [{"multipleOf": 2}, {"multipleOf": 3}, {"minimum": 1}]},
    {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}, {"allOf": [{"type": "array", "items": I}, {"items": {"minimum": 3}, "minItems": 1}]},
    {"not": S}, {"not": {}}, {"if": S, "then": {"maxLength": 3}}, {"if": S, "else": {"const": 1}}, {"then": {"maxLength": 3}},
    # references
    {"$defs": {"a": I}, "$ref": "#/$defs/a"}, {"definitions": {"a": S}, "type": "array", "items": {"$ref": "#/definitions/a"}},
    {"$defs": {"a": S}, "$ref": "#/$defs/a", "maxLength": 3}, {"$schema": _D7, "definitions": {"a": S}, "$ref": "#/definitions/a", "maxLength": 3},
    obj(False, value=I, next={"$ref": "#"}), obj(True, name=S, children={"type": "array", "items": {"$ref": "#"}}), {"$ref": "#"}, {"$ref": "#/$defs/none"},
    {"$ref": "https://example.com/schema.json"}, {"$ref": "other.json"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"anyOf": [{"$ref": "#"}, S]}, {"$defs": {"a/b": I, "c~d": S, "e f": I}, "anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}, {"$ref": "#/$defs/e%20f"}]},
    {"$defs": {"a": {"$anchor": "x"}}, "$ref": "#x"}, {"$dynamicRef": "#a"}, {"$dynamicAnchor": "a"}, {"$recursiveRef": "#"}, {"$id": "http://example.com/a", "type": "string"},
    {"type": "object", "properties": {"a": {"$id": "http://example.com/b", "type": "string"}}}, {"$ref": 5}, {"properties": {"a": I}, "type": "array", "items": {"$ref": "#/properties/a"}},
    {"$defs": {"n": {"anyOf": [{"type": "null"}, obj(v=I, n={"$ref": "#/$defs/n"})]}}, "$ref": "#/$defs/n"}, {"$defs": {"unused": {"not": {}}}, "type": "string"},
    # the rest
    {"$schema": "https://json-schema.org/draft/2020-12/schema", **obj(a=S)}, {"$schema": "http://json-schema.org/draft-04/schema#", "type": "string"}, {"$schema": "http://example.com/mine"},
    {"title": "T", "description": "D", "default": 1, "examples": [1], "$comment": "c", "readOnly": True, "deprecated": False, **I},
    {"type": "string", "nullable": True}, {"discriminator": {"propertyName": "a"}}, {"x-guidance": {"lenient": True}, "not": {}}, {"zzz": 1},
    {"type": "object", "properties": {"a": {"x-guidance": {}, "type": "string"}}}, "string", 5, None, [S], {"type": "string", "minLength": None},
    {"type": "object", "properties": {"a": 5}}, {"items": {"items": {"items": {"not": {}}}}}, {"extends": S}, {"divisibleBy": 2}, {"disallow": "string"},
    {"type": "object", "properties": {"$ref": S}, "required": ["$ref"], "additionalProperties": False}, {"type": "object", "properties": {"not": S, "if": I}, "additionalProperties": False},
]  # fmt: skip


def generated(count: int, seed: int = 7) -> Iterator[Any]:
    """Random schemas of the keywords above."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _random_schema(chance, 3)


def _random_schema(chance: random.Random, depth: int) -> Any:
    kinds = ["string", "number", "integer", "enum", "boolean", "null"]
    if depth > 0:
        kinds += ["array", "object", "object", "anyOf", "oneOf", "allOf"]
    kind = chance.choice(kinds)
    inner = [_random_schema(chance, depth - 1) for _ in range(3)] if depth > 0 else []
    low, high = sorted(chance.randint(-20, 40) for _ in range(2))
    few, many = sorted(chance.randint(0, 4) for _ in range(2))
    if kind == "string":
        return _random_string(chance, few, many)
    if kind in ("number", "integer"):
        return _random_number(chance, kind, low, high)
    if kind == "enum":
        values = ["a", "bb", 1, 2.5, None, True, [1, 2], {"k": "v"}]
        return {"enum": chance.sample(values, 3)}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "array":
        return _random_array(chance, inner, few, many)
    if kind == "object":
        return _random_object(chance, inner, few)
    return {kind: inner[: chance.randint(1, 3)]}


def _some(chance: random.Random, **options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if chance.random() < 0.4}


def _random_string(chance: random.Random, few: int, many: int) -> dict[str, Any]:
    patterns = ["^[a-f]+$", "^\\d+", "x", "^[^\\W_]{1,3}$", "\\s"]
    pattern = chance.choice(patterns)
    limits = _some(chance, minLength=few, maxLength=many, pattern=pattern)
    return {"type": "string", **limits}


def _random_number(
    chance: random.Random, kind: str, low: int, high: int
) -> dict[str, Any]:
    factor = chance.choice([2, 3, 0.5, 10])
    limits = _some(
        chance,
        minimum=low,
        maximum=high + 10,
        multipleOf=factor,
        exclusiveMaximum=high + 12,
    )
    return {"type": kind, **limits}


def _random_array(
    chance: random.Random, inner: list[Any], few: int, many: int
) -> dict[str, Any]:
    limits = _some(
        chance,
        items=inner[0],
        minItems=few,
        maxItems=many + 1,
        prefixItems=inner[1:],
        uniqueItems=True,
    )
    return {"type": "array", **limits}


def _random_object(chance: random.Random, inner: list[Any], few: int) -> dict[str, Any]:
    names = chance.sample(["a", "b", "long name", "é", 'x"y'], 3)
    extra = chance.choice([False, True, inner[2]])
    schema = {
        "type": "object",
        "properties": dict(zip(names, inner)),
        "required": chance.sample(names, chance.randint(0, 3)),
        "additionalProperties": extra,
    }
    if chance.random() < 0.3:
        schema |= _some(chance, minProperties=few)
    return schema


def corpus() -> list[Any]:
    """All schemas; at least 300."""
    return [*BY_KEYWORD, *generated(max(100, 300 - len(BY_KEYWORD)))]


def byte_tokenizer() -> Tokenizer:
    """A vocabulary of the 256 bytes and some longer pieces, with special tokens 0 to 2; the smallest that is whole."""
    from tests.support.tiny import SPECIAL_TOKENS, tiny_tokenizer

    return Tokenizer(
        tiny_tokenizer(), bos_token=SPECIAL_TOKENS[1], eos_token=SPECIAL_TOKENS[0]
    )


VOCAB_SIZE = 384  # wider than the tokenizer's vocabulary, as models' logits are
EOS = (0, 2)


def allowed_tokens(matcher: Matcher) -> list[int]:
    """The tokens that the matcher's mask allows, in order."""
    row = np.zeros(-(-VOCAB_SIZE // 32), np.int32)
    matcher.mask_into(row)
    found: list[int] = np.flatnonzero(
        np.unpackbits(row.view(np.uint8), bitorder="little")
    ).tolist()
    return found


def sample(
    matcher: Matcher,
    tokenizer: Tokenizer,
    chance: random.Random,
    hints: str = "",
    max_tokens: int = 500,
) -> str | None:
    """A document that a random model writes under the mask; None if it is not finished in time.

    As the document grows, what closes it is tried first, and then `hints`, the characters of the schema's patterns,
    which random text rarely satisfies.
    """
    ids: list[int] = []
    for step in range(max_tokens):
        allowed = allowed_tokens(matcher)
        assert allowed and allowed[-1] < tokenizer.vocab_size
        may_end = bool({*EOS} & {*allowed})
        assert may_end == matcher.is_accepting
        if may_end and (step > 40 or chance.random() < 0.3 or {*allowed} <= {*EOS}):
            matcher.advance(EOS[0])
            assert matcher.is_stopped
            return tokenizer.decode(ids)
        token = _choice(allowed, tokenizer, chance, hints, hurry=step > 40)
        assert token not in EOS and tokenizer.id_to_bytes(token)
        matcher.advance(token)
        ids.append(token)
    return None


@cache
def _pieces(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """The bytes of each token; none for a special one."""
    ids = range(tokenizer.vocab_size)
    return tuple(tokenizer.id_to_bytes(token) or b"" for token in ids)


@cache
def _tokens_of(tokenizer: Tokenizer, texts: str) -> frozenset[int]:
    """The tokens that are one of these characters."""
    pieces = enumerate(_pieces(tokenizer))
    return frozenset(
        id for id, piece in pieces if piece.decode(errors="replace") in {*texts}
    )


@cache
def _visible_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(id for id, piece in enumerate(_pieces(tokenizer)) if piece.strip())


def _choice(
    allowed: list[int],
    tokenizer: Tokenizer,
    chance: random.Random,
    hints: str,
    hurry: bool,
) -> int:
    solid = [token for token in allowed if token not in EOS]
    if hurry:
        closers = _tokens_of(tokenizer, '"}]0')
        closing = [token for token in solid if token in closers]
        if closing and chance.random() < 0.9:
            return chance.choice(closing)
        useful = _tokens_of(tokenizer, hints)
        hinted = [token for token in solid if token in useful]
        if hinted and chance.random() < 0.7:
            return chance.choice(hinted)
    visible = _visible_tokens(tokenizer)
    texts = [token for token in solid if token in visible]
    return chance.choice(texts if texts and chance.random() < 0.8 else solid)


def judge(
    schema: Any,
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
    documents: int,
    seed: int = 0,
) -> tuple[str, str]:
    """("refused", why), ("valid", how many documents) or ("invalid", a document and what is wrong with it)."""
    try:
        grammar = grammar_for_format(
            {
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": schema, "strict": True},
            }
        )
        assert grammar is not None
        matcher = compiler.compile(grammar)
    except ParameterError as error:
        assert error.parameter == "response_format" and str(error)
        return "refused", str(error)
    kind = validator_for(schema if isinstance(schema, dict) else {})
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    validator.check_schema(schema)
    hints = "".join(re.findall(r'"pattern": "([^"]*)"', json.dumps(schema)))
    finished = 0
    for number in range(documents):
        try:
            text = sample(
                matcher.copy(), tokenizer, random.Random(f"{seed} {number}"), hints
            )
        except GrammarError as error:
            return "invalid", f"stuck: {error}"
        if text is None:
            continue
        finished += 1
        try:
            problem = next(validator.iter_errors(json.loads(text)), None)
        except (
            Exception
        ) as error:  # whatever the library makes of the document counts against it
            return "invalid", f"{text!r}: {type(error).__name__} {error}"
        if problem is not None:
            return "invalid", f"{text!r}: {problem.message}"
    return (
        ("valid", str(finished))
        if finished
        else ("unfinished", "no document was finished")
    )
