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
# Texts of tokens that end a turn, for files that name no end but that of a text. These
# can be nothing else, whatever type a file gives them.
CERTAIN_ENDS = frozenset(
    (
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        tags.END_MESSAGE,
        "<|end_of_turn|>",
        "<end_of_turn>",
        "<turn|>",
        "<|eot|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<|END_OF_TURN_TOKEN|>",
        tags.RETURN,
        tags.CALL,
        "<｜end▁of▁sentence｜>",
    )
)
# Two that part the messages of one turn, in which the last ends with another.
_FLUSH, _CALLS = "<|flush|>", "<|calls|>"
# Behind a call it is the user's turn; in such a vocabulary `</s>` is a tag of HTML.
_TOOL_RESPONSE, _TEXT_END = "<|tool_response>", "</s>"
# These end a turn where the file calls them control tokens.
KNOWN_ENDS = (
    *sorted(CERTAIN_ENDS),
    _TEXT_END,
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<seed:eos>",
    _FLUSH,
    _CALLS,
    _TOOL_RESPONSE,
    # What comes behind a middle that was filled in.
    "<|fim_pad|>",
    "<fim_pad>",
    "<fim-pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<reponame>",
    "<|file_sep|>",
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
    ends = {}
    for text in KNOWN_ENDS:
        token = tokenizer.special_token_id(text)
        if token is not None:
            ends[text] = token
    is_harmony = tokenizer.special_token_id(tags.CHANNEL) is not None
    if is_harmony or {_FLUSH, _CALLS} <= ends.keys():
        ends.pop(tags.END_MESSAGE, None)
    if _TOOL_RESPONSE in ends:
        ends.pop(_TEXT_END, None)
    return frozenset(ends.values())


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
