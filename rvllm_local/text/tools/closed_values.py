"""Values between tags that may speak of such tags: which closing tag ends one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.reader import (
    END,
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)


class ClosedValueReader(JSONReader):
    """Base: reads a value up to the tag that closes it."""

    def _closed_value(
        self, opening: re.Pattern[str], closing: str, followers: Sequence[str]
    ) -> Reading[tuple[str, str]]:
        """A value and the tag that ended it, which is `END` where none came.

        A closing tag counts if one of `followers` comes behind it, or the end. One
        that closes an opening tag in the value does not, unless no other one comes.
        """
        value, tag = yield from self._text_until((closing,), MAX_CALL_CHARS, True)
        fallback: int | None = None
        while tag != END:
            ends = yield from self._is_followed_by(followers)
            num_open = len(opening.findall(value)) - value.count(closing)
            if ends and num_open <= 0:
                return _without_doubled(value, closing, num_open), tag
            if ends and fallback is None:
                fallback = len(value)
            more, tag = yield from self._text_until((closing,), MAX_CALL_CHARS, True)
            value += closing + more
            if tag == END and fallback is None:
                raise MalformedCallError(
                    "it holds a tag that is neither a parameter nor the end"
                )
            if tag == END:
                self._put_back(value[fallback:].removeprefix(closing))
                return value[:fallback], closing
        return value, tag

    def _is_followed_by(self, followers: Sequence[str]) -> Reading[bool]:
        """True if one of the tags comes next, or the end; nothing is taken."""
        text = ""
        while (char := (yield from self._next())).isspace():
            text += char
        tag = char
        while char != END and any(each.startswith(tag) for each in followers):
            if tag in followers:
                break
            char = yield from self._next()
            tag += char
        self._put_back(text + tag)
        return char == END or tag in followers


def _without_doubled(value: str, closing: str, num_open: int) -> str:
    """A value without closing tags at its end that were written once too often."""
    while num_open < 0 and value.rstrip().endswith(closing):
        value = value.rstrip().removesuffix(closing).rstrip()
        num_open += 1
    return value
