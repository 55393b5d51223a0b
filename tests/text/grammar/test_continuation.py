"""How a document is guessed to go on, in the tokens that its tokenizer has for it."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Backend

from rvllm_local.text.grammar.continuation import Continuation
from rvllm_local.text.grammar.formats import grammar_for_format
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher
from rvllm_local.text.tokenizer import Tokenizer
from tests.support.scenarios import FORMAT
from tests.support.tiny import tiny_tokenizer
from tests.text.schema_corpus import EOS, VOCAB_SIZE

# As real vocabularies have them: the last blank of a gap is part of what follows.
MERGES = (("Ċ", "Ġ"), ("ĊĠ", "Ġ"), ("ĊĠĠ", "Ġ"), ("Ġ", '"'), ('"', ":"), ('"', ","))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    parts = json.loads(tiny_tokenizer().to_str())
    for left, right in MERGES:
        parts["model"]["merges"].append([left, right])
        parts["model"]["vocab"][left + right] = len(parts["model"]["vocab"])
    backend = Backend.from_str(json.dumps(parts))
    return Tokenizer(backend, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)


def after(compiler: GrammarCompiler, tokenizer: Tokenizer, text: str) -> Matcher:
    matcher = compiler.compile(grammar_for_format(FORMAT))
    for token in tokenizer.encode(text, bos=False):
        matcher.advance(token)
    return matcher


def pieces(tokenizer: Tokenizer, continuation: Continuation) -> list[str]:
    return [tokenizer.decode([token]) for token in continuation.token_ids]


def test_the_last_blank_of_the_first_gap_is_joined_to_the_name(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """A token of blanks alone says that one more comes, since one more is joined."""
    matcher = after(compiler, tokenizer, "{\n   ")
    continuation = matcher.laid_out()
    assert pieces(tokenizer, continuation)[:6] == [' "', *"name", '":']
    assert continuation.num_seen == 0


def test_the_blanks_of_a_document_come_again(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = after(compiler, tokenizer, '{\n    "name": "ab')
    continuation = matcher.after_value()
    expected = ['",', "\n   ", ' "', "k", "in", "d", '":', ' "']
    assert pieces(tokenizer, continuation) == expected
    assert continuation.num_seen == len(expected)
    # No string is thought to end that has not begun.
    begun = after(compiler, tokenizer, '{\n    "name": "')
    assert begun.after_value() == Continuation()


def test_a_blank_is_guessed_alone_where_nothing_joins_it(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    text = '{\n    "name": "ab",\n    "kind": "round",\n    "size":'
    matcher = after(compiler, tokenizer, text)
    assert pieces(tokenizer, matcher.laid_out()) == [" "]


def test_a_number_may_end(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    text = '{\n    "name": "ab",\n    "kind": "round",\n    "size": 3'
    matcher = after(compiler, tokenizer, text)
    assert pieces(tokenizer, matcher.after_value()) == ["\n", "}"]


def test_a_matcher_stays_where_it_was(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = after(compiler, tokenizer, '{\n    "name": "ab')
    assert matcher.after_value() == matcher.after_value()
    twin = matcher.copy()
    for token in matcher.after_value().token_ids:
        twin.advance(token)
    assert matcher.after_value().token_ids
