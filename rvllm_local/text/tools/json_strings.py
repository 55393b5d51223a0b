"""Reads the strings of JSON as they come, and those that models write in their place.

Quotes that were not escaped, single and triple quotes, backslashes that escape nothing
and keys without quotes are put right.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from rvllm_local.text.tools.reader import (
    END,
    MAX_HELD_SPACE,
    MalformedCallError,
    PieceReader,
    Reading,
)

MAX_NAME = 256
QUOTES = ('"', "'")
# Of JSON, of the fence or the tag behind it, and the end.
_BEHIND_STRINGS = (",", ":", "}", "]", "<", "`", END)
_ESCAPES = frozenset('"\\/bfnrt')
Take = Callable[[str], None]


class JSONStringReader(PieceReader):
    """A `PieceReader` that can read JSON strings; their text goes to `take`, as JSON."""

    def _json_name(self, take: Take, first: str) -> Reading[None]:
        """A key; it may lack its quotes, as in JavaScript."""
        if first in QUOTES:
            yield from self._json_string(take, first)
            return
        if not (first.isalpha() or first in ("_", "$")):
            raise unexpected(first)
        name = ""
        char = first
        while char.isalnum() or char in ("_", "$", "-"):
            name += char
            if len(name) > MAX_NAME:
                raise unexpected(char)
            char = yield from self._next()
        self._put_back(char)
        take(json.dumps(name, ensure_ascii=False))

    def _json_string(self, take: Take, quote: str = '"') -> Reading[None]:
        """The rest of a string whose opening quote is read."""
        take('"')
        opening = yield from self._next()
        if opening == quote:
            opening += yield from self._next()
            if opening == 2 * quote:
                yield from self._triple_string(take, quote)
                return
        self._put_back(opening)
        while True:
            char = yield from self._next()
            if char == END:
                raise unexpected(char)
            if char == quote:
                if not (yield from self._ends_string(take, quote)):
                    continue
                take('"')
                return
            if char == "\\":
                yield from self._json_escape(take, quote)
            else:
                _take_plain(take, char)

    def _triple_string(self, take: Take, quote: str) -> Reading[None]:
        """The rest of a string behind three quotes, as Python has it."""
        num_quotes = 0
        while num_quotes < 3:
            char = yield from self._next()
            if char == quote:
                num_quotes += 1
                continue
            if char == END:
                raise unexpected(char)
            for held in num_quotes * quote:
                _take_plain(take, held)
            num_quotes = 0
            if char == "\\":
                yield from self._json_escape(take, quote)
            else:
                _take_plain(take, char)
        take('"')

    def _ends_string(self, take: Take, quote: str) -> Reading[bool]:
        """True if a quote ends its string; one that was not escaped is a part of it.

        What may follow a string tells.
        """
        blank = ""
        while (char := (yield from self._next())).isspace():
            if len(blank) >= MAX_HELD_SPACE:
                break
            blank += char
        self._put_back(char)
        if char in _BEHIND_STRINGS:
            return True
        for held in quote + blank:
            _take_plain(take, held)
        return False

    def _json_escape(self, take: Take, quote: str) -> Reading[None]:
        """An escape; a backslash that begins none is one that is meant: `\\d`, `C:\\x`."""
        char = yield from self._next()
        if char == END:
            raise unexpected(char)
        if char == "'" == quote:
            take(char)
        elif char in _ESCAPES:
            take("\\" + char)
        elif char == "u":
            yield from self._json_code_point(take)
        else:
            take("\\\\")
            self._put_back(char)

    def _json_code_point(self, take: Take) -> Reading[None]:
        """Four digits behind `\\u`; without them it is a backslash and a letter."""
        digits = ""
        while len(digits) < 4:
            digit = yield from self._next()
            if digit == END or digit not in "0123456789abcdefABCDEF":
                take("\\\\u" + digits)
                self._put_back(digit)
                return
            digits += digit
        take("\\u" + digits)


def _take_plain(take: Take, char: str) -> None:
    """A character of a string, escaped where JSON wants it."""
    if char == '"':
        take('\\"')
    else:
        take(f"\\u{ord(char):04x}" if char < " " else char)


def unexpected(char: str) -> MalformedCallError:
    return MalformedCallError("it was cut off" if char == END else "its JSON is broken")
