"""Trains small SentencePiece models for the tests, with everything that real ones have."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator

import sentencepiece

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "and",
    "ran",
    "to",
    "house",
    "blue",
    "sky",
    "is",
    "why",
    "because",
    "light",
    "scatters",
    "in",
    "air",
    "small",
    "models",
    "too",
]
USER_DEFINED = ("<tool>", "\n\n")
CONTROL = ("<|turn|>",)


def _lines() -> Iterator[str]:
    for index in range(600):
        yield (
            " ".join(WORDS[(index * step) % len(WORDS)] for step in range(1, 9))
            + f" {index} é日本."
        )


@functools.cache
def trained(
    kind: str = "bpe", *, byte_fallback: bool = True, like_llama: bool = True
) -> bytes:
    """A serialized model of 400 pieces; `like_llama` keeps every space and changes no character."""
    target = io.BytesIO()
    settings = (
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        if like_llama
        else {}
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(),
        model_writer=target,
        model_type=kind,
        vocab_size=400,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        user_defined_symbols=list(USER_DEFINED),
        control_symbols=list(CONTROL),
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    return target.getvalue()
