"""The fewest tokens that a text can have, as far as a backend's settings tell.

A text that can never fit a context is refused before it is encoded. Where a step may
drop text, or one token may stand for anything, nothing is known: what fits must never
be refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.errors import ContextOverflowError
from rvllm_local.text.backends import AnyBackend
from rvllm_local.text.sentencepiece import SentencePieceBackend
from rvllm_local.text.token_bytes import byte_alphabet

_COMPOSED = 3  # bytes of UTF-8 that NFC makes one of, at most
_KEEPS_ALL = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """`longest` is the most bytes of a text that a token stands for, None if unknown.

    `dropped` are bytes that may stand in a text without a token.
    """

    longest: int | None = None
    dropped: bytes = b""

    @classmethod
    def of(cls, backend: AnyBackend) -> TokenSpans:
        """What is known of a backend."""
        if isinstance(backend, SentencePieceBackend):
            return cls()  # its own normalizer may drop text
        if backend.truncation is not None:
            return cls()
        normalizers = _steps(backend.normalizer, "normalizers")
        cuts = _steps(backend.pre_tokenizer, "pretokenizers")
        shrinking = _shrinking(normalizers)
        if shrinking is None or not all(_keeps_all(step) for step in cuts):
            return cls()
        added = 0
        for token in backend.get_added_tokens_decoder().values():
            if token.lstrip or token.rstrip:
                return cls()  # it takes any number of blanks with it
            added = max(added, _COMPOSED * len(token.content.encode()))
        vocabulary = backend.get_vocab(with_added_tokens=False)
        kinds = [step.get("type") for step in (*normalizers, *cuts)]
        dropped = b""
        if "ByteLevel" in kinds and type(backend.model).__name__ == "BPE":
            lengths = [len(token) for token in vocabulary]  # a letter is a byte
            alphabet = byte_alphabet().items()
            dropped = bytes(
                byte for letter, byte in alphabet if letter not in vocabulary
            )
        elif _has_every_byte(backend, vocabulary):
            lengths = [len(token.encode()) for token in vocabulary]
        else:
            return cls()
        longest = max(1, added, *lengths) * shrinking
        return cls(longest, dropped)

    def fewest_tokens(self, text: str) -> int:
        """No fewer tokens than these make up a text; 0 where nothing is known."""
        if self.longest is None:
            return 0
        data = text.encode(errors="surrogatepass").translate(None, self.dropped)
        return -(-len(data) // self.longest)

    def check_length(self, text: str, most_tokens: int, field: str) -> None:
        """Raise `ContextOverflowError` for a text that must have more tokens.

        It is not encoded, which could take seconds.
        """
        fewest = self.fewest_tokens(text)
        if fewest > most_tokens:
            raise ContextOverflowError(
                field,
                f"the prompt has {len(text)} characters, which are {fewest} tokens at "
                f"least; {most_tokens} fit the context: shorten it",
                (fewest, most_tokens),
            )


def _steps(part: Any, key: str) -> list[_Settings]:
    """The settings of a part's steps; of one that is no sequence, its own."""
    if part is None:
        return []
    settings = json.loads(part.__getstate__())
    return list(settings.get(key, [settings]))


def _shrinking(steps: Iterable[_Settings]) -> int | None:
    """Bytes that normalizing makes one byte of, at most; None if nothing bounds them."""
    shrinking = 1
    for step in steps:
        kind = step.get("type")
        if kind == "NFC":
            shrinking *= _COMPOSED
        elif kind == "Replace":
            replaced = step.get("pattern", {}).get("String")
            content = step.get("content")
            if not replaced or not content:
                return None
            shrinking *= -(-len(replaced.encode()) // len(content.encode()))
        elif kind not in ("Prepend", "ByteLevel"):
            return None
    return shrinking


def _keeps_all(step: _Settings) -> bool:
    """Whether a pre-tokenizer leaves nothing of a text out."""
    kind = step.get("type")
    if kind in ("Split", "Punctuation"):
        return bool(step.get("behavior") != "Removed")
    return kind in _KEEPS_ALL


def _has_every_byte(backend: Any, vocabulary: Mapping[str, int]) -> bool:
    """Whether letters that the vocabulary lacks become tokens of their bytes."""
    if not getattr(backend.model, "byte_fallback", False):
        return False
    return all(token in vocabulary for token in _BYTES)
