"""Texts, and pairs of texts, as token ids for a model that reads them alone.

The tokens that the model's makers put around a text or between two come from the
tokenizer's own settings. As in their own libraries, special tokens that are written in a
text count as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from rvllm_local.errors import ParameterError, UnsupportedModelError
from rvllm_local.text.tokenizer import Tokenizer

# One text, two, or one between two that are kept whole.
Input = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """Token ids of a text or a pair; `second_at` is where the second text begins."""

    token_ids: tuple[int, ...]
    second_at: int = 0


def encode_inputs(
    tokenizer: Tokenizer,
    inputs: Sequence[Input],
    most_tokens: int | None = None,
) -> list[EncodedInput]:
    """The inputs as tokens; with `most_tokens`, long ones are cut to as many.

    Of a pair the second text is cut, of three the middle one. Raises `ParameterError` for what is no text and
    `UnsupportedModelError` for a tokenizer without tokenizer.json.
    """
    backend = tokenizer.backend
    if not isinstance(backend, Backend):
        raise UnsupportedModelError(
            "a model that is pooled needs a tokenizer.json, which this one lacks"
        )
    texts: list[str] = []
    for texts_of_one in inputs:
        texts.extend(texts_of_one)
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ParameterError(
                "input", "a text holds half a surrogate pair; it is not Unicode"
            )
    encodings = iter(backend.encode_batch(texts, add_special_tokens=False))
    encoded = []
    for texts_of_one in inputs:
        parts = [next(encodings) for _ in texts_of_one]
        if most_tokens is not None:
            _cut(backend, parts, most_tokens)
        if len(parts) == 3:
            encoded.append(_framed(parts))
            continue
        second = parts[1] if len(parts) == 2 else None
        joined = backend.post_process(parts[0], second)
        encoded.append(_encoded(joined))
    return encoded


def _cut(backend: Backend, parts: list[Encoding], most_tokens: int) -> None:
    """Cut a text, the second of a pair or the middle of three to `most_tokens` in all."""
    if len(parts) == 3:
        before, middle, behind = parts
        middle.truncate(max(most_tokens - len(before) - len(behind), 1))
        return
    added = backend.num_special_tokens_to_add(len(parts) == 2)
    room = max(most_tokens - added, 1)
    if len(parts) == 1:
        parts[0].truncate(room)
        return
    first, second = parts
    if len(first) > room // 2 and len(first) + len(second) > room:
        first.truncate(max(room // 2, 1))
    second.truncate(max(room - len(first), 1))


def _framed(parts: Sequence[Encoding]) -> EncodedInput:
    """Three texts in a row: whoever frames a text spells the special tokens himself."""
    token_ids: list[int] = []
    for part in parts:
        token_ids.extend(part.ids)
    return EncodedInput(tuple(token_ids))


def _encoded(encoding: Encoding) -> EncodedInput:
    kinds = encoding.type_ids
    second_at = kinds.index(1) if 1 in kinds else 0
    return EncodedInput(tuple(encoding.ids), second_at)
