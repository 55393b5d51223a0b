"""Which tokens end a turn, as the tokenizer and the chat template tell.

A model that was trained on turns writes the token that its template puts after them, even
where its configuration names only the end of a text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from rvllm_local.errors import RvllmError
from rvllm_local.text import tags

_ANSWER = "Q7zAnswerq7"  # a text that no template writes itself
_QUESTION = "Q7zQuestionq7"
# Texts of tokens that end a turn, for files that name no end but that of a text.
KNOWN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|eot|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<seed:eos>",
)


class RendersTurns(Protocol):
    """What is asked of a tokenizer."""

    eos_token: str | None
    chat_template: str | None

    @property
    def special_texts(self) -> Collection[str]:
        """Texts of the special tokens."""

    def special_token_id(self, text: str) -> int | None:
        """The special token whose whole text is `text`."""

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], **template: Any
    ) -> str:
        """The text that the chat template makes."""


def turn_ends(tokenizer: RendersTurns) -> frozenset[int]:
    """Token ids that end an answer: the tokenizer's end, and that of the template's turns."""
    ends = set()
    template = tokenizer.chat_template or ""
    is_harmony = tags.CHANNEL in template and tags.MESSAGE in template
    texts = [tokenizer.eos_token]
    if is_harmony:  # <|end|> stands between its messages
        texts += [tags.RETURN, tags.CALL]
    elif template:
        texts.append(_after_answer(tokenizer, asks_again=False))
        if texts[-1] is None:
            texts.append(_after_answer(tokenizer, asks_again=True))
    for text in texts:
        token = None if text is None else tokenizer.special_token_id(text)
        if token is not None:
            ends.add(token)
    return frozenset(ends)


def known_ends(tokenizer: RendersTurns) -> frozenset[int]:
    """Special tokens that are known to end turns, for files that may name none."""
    texts = set(KNOWN_ENDS)
    is_harmony = tokenizer.special_token_id(tags.CHANNEL) is not None
    if is_harmony:
        texts -= {tags.END_MESSAGE}
    tokens = [tokenizer.special_token_id(text) for text in texts]
    return frozenset(token for token in tokens if token is not None)


def _after_answer(tokenizer: RendersTurns, *, asks_again: bool) -> str | None:
    """The special token that the template writes after an answer; None if it has none."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    if asks_again:
        messages.append({"role": "user", "content": _QUESTION})
    try:
        text = tokenizer.render_chat(messages, add_generation_prompt=False)
    except RvllmError:
        return None
    _, answer, rest = text.rpartition(_ANSWER)
    rest = rest.lstrip()
    if not answer or not rest:
        return None
    beginnings = [special for special in tokenizer.special_texts if special]
    pattern = "|".join(map(re.escape, sorted(beginnings, key=len, reverse=True)))
    match = re.match(pattern, rest) if pattern else None
    return None if match is None else match[0]
