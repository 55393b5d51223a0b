"""A model that loves blanks fills no document with them, and breaks none."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema.validators import validator_for
from tokenizers import AddedToken

from rvllm_local.text.grammar.blank_budget import MAX_BLANKS
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    grammar_for_tools,
    split_left_out,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tools import ToolCallDelta, ToolCallEnd, parser_for
from tests.support.tiny import tiny_tokenizer
from tests.text.outputs import run
from tests.text.schema_corpus import EOS, VOCAB_SIZE, allowed_tokens

ROW = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z ]{2,12}$"},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 90},
            "minItems": 3,
            "maxItems": 3,
        },
        "kind": {"enum": ["a b", "c", None, 1.5]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
}
TABLE: dict[str, Any] = {
    "type": "array",
    "items": ROW,
    "minItems": 12,
    "maxItems": 12,
}
# Tokens in which blanks stand beside what is written, as real vocabularies have them.
JOINED = ("  ", '"  ', '": "', '",\n  "', "},\n", " {", " [", " 1", "] ", "\t\t\t\t")


@pytest.fixture(scope="module", params=["bytes", "joined"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A vocabulary of bytes, and one with tokens of blanks and more."""
    backend = tiny_tokenizer()
    if request.param == "joined":
        added = [AddedToken(text, normalized=False) for text in JOINED]
        backend.add_tokens(added)
    return Tokenizer(backend, eos_token="<|endoftext|>")


def written(matcher: Matcher, tokenizer: Tokenizer, chance: random.Random) -> str:
    """What a model writes that takes a blank wherever it can, outside of words too."""
    token_ids: list[int] = []
    while not matcher.is_stopped:
        allowed = [token for token in allowed_tokens(matcher) if token not in EOS]
        if not allowed:
            break
        blank = []
        for token in allowed:
            text = tokenizer.id_to_bytes(token) or b"x"
            if text[:1].isspace() or text[-1:].isspace():
                blank.append(token)
        token = chance.choice(allowed)
        if blank and chance.random() < 0.99:
            token = chance.choice(blank)
        matcher.advance(token)
        token_ids.append(token)
        assert len(token_ids) < 20_000
    return tokenizer.decode(token_ids, skip_special=False)


def num_outside_strings(text: str) -> int:
    """Blanks between the values of a document."""
    in_string = is_escaped = False
    count = 0
    for char in text:
        if in_string:
            closes = char == '"' and not is_escaped
            in_string = not closes
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            in_string = True
        else:
            count += char.isspace()
    return count


@pytest.mark.parametrize("seed", range(2))
def test_a_document_has_so_many_blanks_at_most(tokenizer: Tokenizer, seed: int) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": TABLE}}
    grammar, _ = split_left_out(grammar_for_format(form))
    matcher = compiler.compile(grammar or "")
    chance = random.Random(seed)
    twin = matcher.copy()
    for each in (matcher, twin):
        text = written(each, tokenizer, chance)
        validator_for(TABLE)(TABLE).validate(json.loads(text))
        num_blanks = num_outside_strings(text)
        assert MAX_BLANKS // 2 < num_blanks <= MAX_BLANKS  # 12 rows have 200 gaps


@pytest.mark.parametrize("family", ["hermes", "llama3", "mistral"])
def test_so_have_the_arguments_of_a_call(tokenizer: Tokenizer, family: str) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)
    parameters = {
        "type": "object",
        "properties": {"rows": TABLE},
        "required": ["rows"],
        "additionalProperties": False,
    }
    tools = [
        {"type": "function", "function": {"name": "put", "parameters": parameters}}
    ]
    grammar, _ = split_left_out(grammar_for_tools(tools, "required", family, False))
    matcher = compiler.compile(grammar or "")
    text = written(matcher, tokenizer, random.Random(7))
    pieces = run(parser_for(family, tools), [text])
    assert any(isinstance(piece, ToolCallEnd) for piece in pieces)
    arguments = "".join(p.arguments for p in pieces if isinstance(p, ToolCallDelta))
    validator_for(parameters)(parameters).validate(json.loads(arguments))
    assert num_outside_strings(arguments) <= MAX_BLANKS


def test_blanks_in_strings_are_not_counted(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)
    schema = {"type": "array", "items": {"type": "string"}, "maxItems": 2}
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
    matcher = compiler.compile(grammar_for_format(form) or "")
    text = '["' + " " * (MAX_BLANKS + 50) + '", "a b"' + " \n" * 10 + "]"
    for token in tokenizer.encode(text):
        assert token in allowed_tokens(matcher)
        matcher.advance(token)
    assert matcher.is_accepting
