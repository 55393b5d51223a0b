"""Writes a model's tokens into grammars, in which tags have only numbers.

A tag that is a token of the vocabulary becomes a reference to it; any other is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rvllm_local.text.tokenizer import Tokenizer

# A tag, as `lark` writes it: alone, or with what has to read the text before it.
_TAG = re.compile(r"<\[\[(?:(free) |until (\w+) )?([0-9]+)\]\]>")
_ANY_TEXT = "/(?s:.*)/"


def with_tokens(
    parts: Mapping[str, Any],
    tokenizer: Tokenizer,
    eos_token_ids: Collection[int],
) -> str:
    """The grammars of `parts` as llguidance reads them."""
    tags: list[str] = parts.get("tags", [])
    writer = _TagWriter(tags, tokenizer, eos_token_ids)
    grammars = []
    for grammar in parts["grammars"]:
        if not tags or "lark_grammar" not in grammar:
            grammars.append(grammar)
            continue
        rules = _TAG.sub(writer.write, grammar["lark_grammar"])
        grammars.append({**grammar, "lark_grammar": rules})
    return json.dumps({"grammars": grammars})


class _TagWriter:
    """Writes one grammar's tags for one vocabulary."""

    def __init__(
        self,
        tags: Sequence[str],
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
    ) -> None:
        self._tags = tags
        self._tokenizer = tokenizer
        self._eos = eos_token_ids

    def write(self, match: re.Match[str]) -> str:
        """A tag's reference, or the rules that read free text up to it."""
        is_free, rule, number = match.groups()
        tag = self._tags[int(number)]
        token = self._tokenizer.control_token_id(tag)
        reference = self._reference(tag, token)
        if is_free:
            text = _ANY_TEXT
            if token is not None:
                text = "FREE_TEXT"
            without_tag = f"~/(?s:.*){_escaped(tag)}(?s:.*)/"
            rules = f"free_text: FREE_TEXT\nFREE_TEXT: {_ANY_TEXT} & {without_tag}\n"
            return rules + _up_to("free_text_to_tag", reference, text)
        if rule:
            return _up_to(rule, reference, _ANY_TEXT)
        return reference

    def _reference(self, tag: str, token: int | None) -> str:
        if token is None:
            return json.dumps(tag, ensure_ascii=False)
        if token in self._eos:
            return '""'
        return f"<[{token}]>"


def _up_to(name: str, reference: str, text: str) -> str:
    """A rule for `text` and then a tag.

    A tag that is text ends it lazily: greedily, it would be taken for text.
    """
    if reference.startswith("<"):
        return f"{name}: {text} {reference}"
    return f"{name}[suffix={reference}]: {text}"


def _escaped(text: str) -> str:
    """A text as a pattern that matches just this."""
    escaped = ""
    for char in text:
        if char.isalnum():
            escaped += char
        else:
            escaped += f"\\u{{{ord(char):x}}}"
    return escaped
