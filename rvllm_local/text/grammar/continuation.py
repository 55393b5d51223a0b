"""How the text of a grammar is likely to go on, in tokens.

What the grammar without blanks forces is certain but for the blanks. They are guessed
from those that the document has had. Nothing here is relied upon: who takes a guess
checks it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rvllm_local.text.grammar.layout import Layout

if TYPE_CHECKING:
    import llguidance

_FAR = 64  # bytes that are laid out: more than are drafted
_REMEMBERED = 256  # texts: a string may end in the same way after each of its tokens
_QUOTE = ord('"')
Tokenize = Callable[[bytes], list[int]]


class Continuation(NamedTuple):
    """Tokens that may come next.

    num_seen: so many of them rest on blanks that the document has had, the others on
    what is usual.
    """

    token_ids: Sequence[int] = ()
    num_seen: int = 0


NOTHING = Continuation()


class TokenTexts:
    """A vocabulary, and how it writes a text."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        of_byte: Mapping[int, int],
        tokenize: Tokenize,
    ) -> None:
        """`of_byte` holds the tokens of single bytes."""
        self._tokens = tokens
        self.of_byte = of_byte
        self._tokenize = functools.lru_cache(_REMEMBERED)(tokenize)

    def after(self, before: bytes, text: bytes) -> list[int] | None:
        """The tokens of `text` behind `before`; None if a token would span both."""
        token_ids = self._tokenize(before + text)
        position = 0
        start: int | None = None
        for index, token in enumerate(token_ids):
            if position == len(before):
                start = index
            position += len(self._tokens[token])
        # A tokenizer may add a blank of its own.
        if start is None or position != len(before) + len(text):
            return None
        return token_ids[start:]

    def num_within(self, token_ids: Sequence[int], size: int) -> int:
        """How many of the tokens lie within the first `size` bytes of their text."""
        count = 0
        for token in token_ids:
            size -= len(self._tokens[token])
            if size < 0:
                break
            count += 1
        return count


def laid_out(
    compact: llguidance.LLMatcher,
    layout: Layout,
    texts: TokenTexts,
) -> Continuation:
    """What the grammar without blanks forces, with the blanks that are expected."""
    forced: bytes = compact.compute_ff_bytes()
    if compact.is_error():
        return NOTHING
    if not forced:
        return _blank_alone(compact, layout, texts)
    expected = layout.lay_out(forced[:_FAR])
    if expected.text:
        token_ids = texts.after(layout.gap, expected.text)
    else:
        token_ids = _joined(layout.gap, forced, texts)
    if token_ids is None:
        return NOTHING
    return Continuation(token_ids, texts.num_within(token_ids, expected.num_seen))


def _joined(gap: bytes, forced: bytes, texts: TokenTexts) -> list[int] | None:
    """The tokens behind blanks that are being written for the first time.

    Where a tokenizer joins the last blank to what follows, a token of blanks alone says
    that one more comes.
    """
    if not gap:
        return None
    token_ids = texts.after(gap, forced[:_FAR])
    if token_ids is None:
        token_ids = texts.after(gap, b" " + forced[:_FAR])
    return token_ids


def _blank_alone(
    compact: llguidance.LLMatcher,
    layout: Layout,
    texts: TokenTexts,
) -> Continuation:
    """The expected blanks, where the tokenizer joins them to nothing that may follow."""
    if layout.in_string:
        return NOTHING
    gap, is_seen = layout.expected(None)
    if not gap:
        return NOTHING
    alone = texts.after(layout.gap, gap)
    if not alone:
        return NOTHING
    for byte, token in texts.of_byte.items():
        if compact.validate_tokens([token]) != 1:
            continue
        with_next = texts.after(layout.gap, gap + bytes([byte]))
        if with_next is None or with_next[: len(alone)] != alone:
            return NOTHING
    return Continuation(alone, len(alone) if is_seen else 0)


def after_value(
    compact: llguidance.LLMatcher,
    layout: Layout,
    texts: TokenTexts,
) -> Continuation:
    """What comes next if the string or the number that is written ends here."""
    is_number = not layout.in_string and chr(layout.last).isdigit()
    is_string = layout.in_string and layout.last != _QUOTE
    if layout.gap or not (is_number or is_string):
        return NOTHING
    ahead = compact.deep_copy()
    text = b""
    if is_string:
        text = _take_one(ahead, b'"', texts)
        if not text:
            return NOTHING
    forced: bytes = ahead.compute_ff_bytes()
    if not forced:
        text += _take_one(ahead, b",}]", texts)
        forced = ahead.compute_ff_bytes()
    expected = layout.lay_out(text + forced[:_FAR])
    token_ids = texts.after(b"", expected.text)
    if ahead.is_error() or token_ids is None:
        return NOTHING
    return Continuation(token_ids, texts.num_within(token_ids, expected.num_seen))


def _take_one(matcher: llguidance.LLMatcher, bytes_: bytes, texts: TokenTexts) -> bytes:
    """Let the matcher take the first of these bytes that it allows."""
    for byte in bytes_:
        token = texts.of_byte.get(byte)
        if token is not None and matcher.validate_tokens([token]) == 1:
            matcher.consume_token(token)
            return bytes([byte])
    return b""
