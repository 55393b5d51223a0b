"""Tokenizers that put a space before a text: it comes once, and nobody gets to see it."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rvllm_local.text.backends import adds_prefix_space
from rvllm_local.text.chat_templates import ChatTemplates
from rvllm_local.text.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz<>|_.\n"
TAG = "<end>"
TEMPLATE = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"


def backend(**parts: Any) -> Backend:
    """A vocabulary of letters and the space as SentencePiece spells it."""
    vocab = {text: rank for rank, text in enumerate(["<unk>", "▁", *LETTERS])}
    made = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    for name, part in parts.items():
        setattr(made, name, part)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([TAG])
    return made


SPACED = {
    "prepended": {
        "normalizer": normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    },
    "metaspace": {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
}


@pytest.fixture(params=SPACED)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    parts = SPACED[request.param]
    return Tokenizer(backend(**parts), templates=ChatTemplates(TEMPLATE))


def test_a_text_decodes_without_the_space_that_nobody_wrote(
    tokenizer: Tokenizer,
) -> None:
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_a_tag_in_a_message_brings_no_space_of_its_own(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": f"a{TAG}b"}])
    assert tokenizer.decode(ids, skip_special=False) == f"a{TAG}b{TAG}"
    assert ids.count(tokenizer.special_token_id(TAG)) == 1


def test_only_tokenizers_that_add_a_space_are_taken_for_such() -> None:
    assert not adds_prefix_space(backend())
    never = pre_tokenizers.Metaspace(prepend_scheme="never")
    assert not adds_prefix_space(backend(pre_tokenizer=never))
