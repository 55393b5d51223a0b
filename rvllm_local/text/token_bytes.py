"""The bytes that each token of a vocabulary stands for, however it spells them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from rvllm_local.text.sentencepiece import SentencePieceBackend

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_decoder(backend: Backend | SentencePieceBackend) -> Callable[[int], bytes]:
    """How this tokenizer spells bytes: GPT-2's alphabet, or words with a lower one eighth block for a space."""
    if isinstance(backend, SentencePieceBackend):
        return backend.id_to_bytes
    if '"ByteLevel"' in json.dumps(
        [_describe(part) for part in (backend.pre_tokenizer, backend.decoder)]
    ):
        spell: Callable[[str], bytes] = functools.partial(_byte_level, _byte_alphabet())
    else:
        spell = _piece

    def to_bytes(token_id: int) -> bytes:
        token = backend.id_to_token(token_id)
        return b"" if token is None else spell(token)

    return to_bytes


def _describe(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _byte_level(alphabet: Mapping[str, int], token: str) -> bytes:
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()  # an added token, spelled as it is


def _piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + rank): byte for rank, byte in enumerate(others)
    }
