"""The one place where text from outside is made harmless to show.

Control characters become visible signs, so that no terminal escape is ever sent, and
bidirectional overrides lose their power. What is stored, exported and sent back stays
as it was.
"""

from __future__ import annotations

import re

SHOWN_LIMIT = 64_000  # characters of one message that the transcript lays out
LINE_LIMIT = 8_000  # characters of one line that are laid out
_MARKS_LIMIT = 6  # combining marks that may pile up on one letter

_C0 = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_C1 = {code: f"‹{code:02X}›" for code in range(0x80, 0xA0)}
_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HIDDEN = (
    0x00AD,
    0x180E,
    0x200B,
    0x2060,
    0xFEFF,
    0xFFF9,
    0xFFFA,
    0xFFFB,
    *range(0xE0000, 0xE0080),
)
_CONTROL = _C0 | {0x7F: "␡"} | _C1
_SEPARATORS = (0x2028, 0x2029)  # of lines and paragraphs
_UNSEEN = {code: f"‹{code:04X}›" for code in (*_BIDI, *_HIDDEN)}
_TABLE = _CONTROL | _UNSEEN | dict.fromkeys(_SEPARATORS, "\n")
_REPLACED = dict.fromkeys((0x7F, *_C1, *_UNSEEN), "\ufffd")
_IN_PLACE = _C0 | _REPLACED | dict.fromkeys(_SEPARATORS, " ")
_SURROGATES = re.compile("[\ud800-\udfff]")
_PILE = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{6})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_PLAIN = re.compile(r"[\n\t -~]*\Z")


def clean(text: str) -> str:
    """Text fit for a terminal, over several lines.

    A carriage return before a newline is dropped.
    """
    if _PLAIN.match(text):
        return text
    text = _SURROGATES.sub("\ufffd", text.replace("\r\n", "\n"))
    return _PILE.sub(r"\1", text.translate(_TABLE))


def clean_line(text: object, limit: int = 200) -> str:
    """Text fit for one line of a terminal: titles, names and messages of errors."""
    line = " ".join(clean(str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def clean_pipe(text: str) -> str:
    """Text fit for a pipe: control characters are made visible, all else stays."""
    if _PLAIN.match(text):
        return text
    return _SURROGATES.sub("\ufffd", text.replace("\r\n", "\n")).translate(_CONTROL)


def clean_copy(text: str) -> str:
    """Text fit for the clipboard: it brings no control characters into a shell."""
    return _SURROGATES.sub("\ufffd", text).translate(dict.fromkeys(_CONTROL))


def clean_cells(text: str) -> str:
    """Text fit for a terminal, of the same length.

    It is for a text that is being edited, whose characters must keep their index.
    """
    if _PLAIN.match(text):
        return text
    return _SURROGATES.sub("\ufffd", text).translate(_IN_PLACE)


def grown(text: str, more: str) -> str:
    """`text` and what came after it.

    A character outside the first plane may have come in two halves.
    """
    if not _is_high_half(text[-1:]) or not _is_low_half(more[:1]):
        return text + more
    halves = text[-1] + more[0]
    pair = halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    return text[:-1] + pair + more[1:]


def whole(text: str) -> str:
    """A growing text without a last character whose other half may still come.

    That is a half of a pair, or of a line's end.
    """
    last = text[-1:]
    if last == "\r" or _is_high_half(last):
        return text[:-1]
    return text


def _is_high_half(character: str) -> bool:
    return "\ud800" <= character <= "\udbff"


def _is_low_half(character: str) -> bool:
    return "\udc00" <= character <= "\udfff"


def shorten(text: str) -> tuple[str, int]:
    """What is laid out of a very long text, and how many characters are left out."""
    shown = text[:SHOWN_LIMIT]
    lines = shown.split("\n")
    if max(map(len, lines)) > LINE_LIMIT:
        shown = "\n".join(line[:LINE_LIMIT] for line in lines)
    return shown, len(text) - len(shown)
