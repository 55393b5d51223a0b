"""Regular expressions of JSON Schema, brought to one dialect: what Python's, ECMAScript's and Rust's readers agree on.

A pattern either means the same to all three, or is narrowed to what all three match, or is refused by name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

MAX_REPEAT = 1000
MAX_PATTERN_CHARS = 4096
MAX_SIZE = 5000
# A negated class must leave out what any dialect counts in: Python's \d, \w and \s are wider than ECMAScript's.
_WIDE = {"d": r"\p{Nd}", "w": r"\p{L}\p{N}\p{M}_", "s": r"\s\x1c-\x1f\u{85}\u{feff}"}
_NARROW = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": r"\t\n\x0b\x0c\r\x20\u{a0}\u{2028}\u{2029}",
}
_CONTROLS = {
    "t": r"\t",
    "n": r"\n",
    "r": r"\r",
    "f": r"\x0c",
    "v": r"\x0b",
    "0": r"\x00",
}
_NOT_DOT, _WIDE_DOT = r"[^\n\r\u{2028}\u{2029}]", r"[^\n]"
# What JSON can write only as \uXXXX, which the grammars leave out. Where a class holds some of it but no quote or no
# backslash, llguidance 1.9.1 lets the escaped quote or backslash pass all the same.
_UNWRITTEN = r"\x00-\x07\x0b\x0e-\x1f"
_PUNCTUATION = frozenset("^$\\.*+?()[]{}|/-\"'!#%&,:;<=>@`~_ ")
_MAY_HOLD_CONTROLS = re.compile(r"\[\^|\\x[01]|\\u\{[01]?[0-9a-f]\}")
# An anchored pattern's literal beginning, without a character that may be repeated.
_ANCHORED = re.compile(r"\^([A-Za-z0-9]+)(?![*?{|])(?!.*\|)")
_REPEAT = re.compile(r"\{([0-9]+)(,?)([0-9]*)\}")


class PatternError(ValueError):
    """The pattern cannot be enforced; the message says which part of it."""


def portable(pattern: str, *, in_json: bool = False, wide: bool = False) -> str:
    """`pattern` in Rust's syntax, unanchored as JSON Schema reads it. Raises `PatternError`.

    `in_json`: for the value of a JSON string, whose classes are narrowed to what is written without \\uXXXX. `wide`: what any
    of the readers matches, instead of what all do.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError(
            f"it has {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are taken"
        )
    translated = _Translation(pattern, in_json, wide).run()
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"it is not a sound regular expression ({error})") from error
    return translated


def are_apart(patterns: Sequence[str]) -> bool:
    """True if no two of the patterns can match the same text: their beginnings differ."""
    beginnings = []
    for pattern in patterns:
        match = _ANCHORED.match(pattern)
        if match is None:
            return len(patterns) < 2
        beginnings.append(match[1])
    beginnings.sort()
    pairs = itertools.pairwise(beginnings)
    return not any(second.startswith(first) for first, second in pairs)


class _Translation:
    """One walk over a pattern."""

    def __init__(self, pattern: str, in_json: bool, wide: bool) -> None:
        self._pattern = pattern
        self._in_json = in_json
        self._wide = wide
        self._at = 0
        self._sizes = [
            0
        ]  # characters that each open group may match, repetitions counted out
        self._last = 0  # the last item's

    def run(self) -> str:
        parts = []
        while self._at < len(self._pattern):
            parts.append(self._item())
            if sum(self._sizes) > MAX_SIZE:
                raise PatternError(
                    f"its repetitions count out to more than {MAX_SIZE} characters"
                )
        return "".join(parts)

    def _count(self, size: int) -> None:
        self._sizes[-1] += size
        self._last = size

    def _take(self) -> str:
        if self._at >= len(self._pattern):
            raise PatternError("it ends too early")
        char = self._pattern[self._at]
        self._at += 1
        return char

    def _follows(self, text: str) -> bool:
        return self._pattern.startswith(text, self._at)

    def _item(self) -> str:
        char = self._take()
        if char == "(":
            self._sizes.append(0)
        elif char == ")" and len(self._sizes) > 1:
            self._count(self._sizes.pop())
        elif char not in "{*+?|^$":
            self._count(1)
        match char:
            case "\\":
                return self._escape()
            case "[":
                return self._class()
            case "(":
                return self._group()
            case ".":
                return self._writable(_WIDE_DOT if self._wide else _NOT_DOT)
            case "{":
                return self._repeat()
            case "*" | "+" | "?":
                return char + self._laziness()
            case "}" | "]":
                raise PatternError(f"{char!r} must be escaped")
            case (
                "^" | "$" | "|" | ")"
            ):  # Python's $ also stands before a line end that is the last character
                return r"\n?$" if char == "$" and self._wide else char
            case _:
                return _literal(char)

    def _group(self) -> str:
        if not self._follows("?"):
            return "(?:"
        if not self._follows("?:"):
            kind = self._pattern[self._at - 1 : self._at + 3]
            raise PatternError(
                f"groups that begin with {kind!r} (lookaround, names, flags) are not supported"
            )
        self._at += 2
        return "(?:"

    def _repeat(self) -> str:
        match = _REPEAT.match(self._pattern, self._at - 1)
        if match is None:
            raise PatternError(
                "'{' must be escaped where it does not begin a repetition"
            )
        self._at = match.end()
        low, comma, high = match.groups()
        if max(int(low), int(high or 0)) > MAX_REPEAT:
            raise PatternError(f"it repeats more than {MAX_REPEAT} times")
        self._count(self._last * max(int(low), int(high or 0), 1) - self._last)
        return f"{{{low}{comma}{high}}}" + self._laziness()

    def _laziness(self) -> str:
        """`*?` matches what `*` matches, where only yes or no counts; `*+` does not."""
        if self._follows("?"):
            self._at += 1
        if self._follows("+"):
            raise PatternError("possessive repetition is not supported")
        return ""

    def _escape(self) -> str:
        char = self._take()
        if char in "dws":
            return self._writable(f"[{self._class_of(char, self._wide)}]")
        if char in "DWS":
            return self._writable(f"[^{self._class_of(char, not self._wide)}]")
        return self._escaped_char(char)

    def _class_of(self, char: str, is_wide: bool) -> str:
        """The characters of \\d, \\w or \\s and their opposites.

        The widest reader has more of them than the narrowest.
        """
        classes = _NARROW
        if is_wide:
            classes = _WIDE
        return classes[char.lower()]

    def _escaped_char(self, char: str) -> str:
        if char in _CONTROLS:
            if char == "0" and self._pattern[self._at : self._at + 1].isdecimal():
                raise PatternError("octal escapes are not supported")
            return _CONTROLS[char]
        if char in "xu":
            digits = self._pattern[self._at : self._at + (2 if char == "x" else 4)]
            self._at += len(digits)
            if not re.fullmatch("[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}", digits):
                raise PatternError(f"the escape \\{char} lacks its digits")
            code = int(digits, 16)
            if 0xD800 <= code < 0xE000:
                raise PatternError("halves of surrogate pairs are not supported")
            return f"\\u{{{code:x}}}"
        if char in _PUNCTUATION:
            return _literal(char)
        raise PatternError(f"the escape \\{char} is not supported")

    def _class(self) -> str:
        negated = self._follows("^")
        self._at += negated
        if self._follows("]"):
            raise PatternError("an empty character class is not supported")
        parts = []
        while not self._follows("]"):
            parts.append(self._class_item(negated))
        self._at += 1
        return self._writable(f"[{'^' if negated else ''}{''.join(parts)}]")

    def _writable(self, characters: str) -> str:
        """A class, without what cannot be written; one that only names other characters stays as it is."""
        if not self._in_json or not _MAY_HOLD_CONTROLS.search(characters):
            return characters
        return f"[{characters}&&[^{_UNWRITTEN}]]"

    def _class_item(self, negated: bool) -> str:
        char = self._take()
        if char == "[":
            raise PatternError("'[' inside a character class must be escaped")
        if char == "\\":
            char = self._take()
            if char in "dws":
                return self._class_of(char, negated != self._wide)
            if char in "DWS":
                return f"[^{self._class_of(char, negated == self._wide)}]"
            return r"\x08" if char == "b" else self._escaped_char(char)
        if char == "-" and self._is_range():
            return "-"
        if char in "&~-" and self._follows(char):
            raise PatternError(
                f"{char * 2!r} inside a character class is not supported"
            )
        return _literal(char)

    def _is_range(self) -> bool:
        """True for a `-` between two characters of a class; first or last it is a character."""
        before = self._pattern[self._at - 2]
        opens = before == "[" or (before == "^" and self._pattern[self._at - 3] == "[")
        return not opens and not self._follows("]")


def _literal(char: str) -> str:
    return (
        char
        if (char.isascii() and char.isalnum()) or ord(char) > 0x7F
        else f"\\u{{{ord(char):x}}}"
    )
