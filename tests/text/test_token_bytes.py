"""The bytes of tokens that are spelled in GPT-2's alphabet."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.models import BPE

from rvllm_local.text.token_bytes import byte_alphabet, byte_decoder

LETTERS = {byte: letter for letter, byte in byte_alphabet().items()}
NO_LETTERS = " \x00\x7f\x80\xad\xa0ń中\U0001f600"


def decoded(token: str) -> bytes:
    backend = Backend(BPE({token: 0}, []))
    backend.decoder = decoders.ByteLevel()
    return byte_decoder(backend)(0)


def test_every_byte_has_a_letter_that_stands_for_it() -> None:
    token = "".join(LETTERS[byte] for byte in range(256))
    assert decoded(token) == bytes(range(256))


@pytest.mark.parametrize("character", NO_LETTERS)
def test_a_token_with_another_character_is_spelled_as_it_is(character: str) -> None:
    token = f"Ġa{character}"
    assert decoded(token) == token.encode()
