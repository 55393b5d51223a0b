"""The bytes that each token of a vocabulary stands for, however it spells them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping

from tokenizers import Tokenizer as Backend

from rvllm_local.text.sentencepiece import SentencePieceBackend

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_decoder(backend: Backend | SentencePieceBackend) -> Callable[[int], bytes]:
    """What gives a token's bytes, however this tokenizer spells them.

    It has GPT-2's alphabet, or words with a lower one eighth block for a space.
    """
    if isinstance(backend, SentencePieceBackend):
        return backend.id_to_bytes
    spell: Callable[[str], bytes] = _piece
    if _uses_byte_alphabet(backend):
        spell = functools.partial(_byte_level, _latin_letters())

    def to_bytes(token_id: int) -> bytes:
        token = backend.id_to_token(token_id)
        if token is None:
            return b""
        return spell(token)

    return to_bytes


def _uses_byte_alphabet(backend: Backend) -> bool:
    for part in (backend.pre_tokenizer, backend.decoder):
        if part is None:
            continue
        settings = json.loads(part.__getstate__())
        if '"ByteLevel"' in json.dumps(settings):
            return True
    return False


def _byte_level(letters: Mapping[int, str], token: str) -> bytes:
    try:
        return token.translate(letters).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()  # an added token, spelled as it is


def _latin_letters() -> dict[int, str]:
    """For each letter of the alphabet the character whose number its byte is.

    What is below 256 and no letter becomes a character that is no byte.
    """
    letters = dict.fromkeys(range(256), "\uffff")
    for letter, byte in byte_alphabet().items():
        letters[ord(letter)] = chr(byte)
    return letters


def _piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes.

    A printable byte is its own character; the others are those from 256 on, in order.
    """
    printable = [
        *range(33, 127),
        *range(161, 173),
        *range(174, 256),
    ]
    alphabet = {}
    for byte in printable:
        alphabet[chr(byte)] = byte
    stand_in = 256
    for byte in range(256):
        if byte not in printable:
            alphabet[chr(stand_in)] = byte
            stand_in += 1
    return alphabet
