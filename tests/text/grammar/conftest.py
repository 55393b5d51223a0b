"""A tokenizer of bytes and a compiler over it, once for each file."""

from __future__ import annotations

import pytest

from rvllm_local.text.grammar.matcher import GrammarCompiler
from rvllm_local.text.tokenizer import Tokenizer
from tests.text.schema_corpus import EOS, VOCAB_SIZE, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)
