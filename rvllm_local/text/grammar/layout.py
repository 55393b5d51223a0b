"""How a JSON document is laid out: its blanks so far, and those that are to be expected.

Reads a document's bytes and knows neither tokens nor grammars. What it expects is a
guess: who writes a line for each item goes on so, with the same indent a level.
"""

from __future__ import annotations

from typing import NamedTuple

BLANKS = b" \t\n\r"
_QUOTE, _BACKSLASH = b'"\\'
_OPENING, _CLOSING, _COMMA, _COLON = b"{[", b"}]", ord(","), ord(":")
_NEWLINE = b"\n"
_ITEMS = ("first", "next", "end")  # places where each item may have a line


class LaidOut(NamedTuple):
    """Text with the blanks that are expected in it.

    num_seen: so many bytes of it rest on what the document shows, the others on what is
    usual.
    """

    text: bytes
    num_seen: int


class Layout:
    """Follows a document byte by byte."""

    def __init__(self) -> None:
        self.gap = b""  # the blanks since the last other byte
        self.last = 0  # that byte
        self.in_string = False
        self._is_escaped = False
        self._open = b""  # the brackets that are open
        self._gaps: dict[str, bytes] = {}  # by name, the latest
        self._indent: bytes | None = None  # of a level, where items have their lines

    def copy(self) -> Layout:
        """One that goes its own way from here."""
        twin = Layout()
        twin.__dict__.update(self.__dict__)
        twin._gaps = dict(self._gaps)
        return twin

    def take(self, text: bytes) -> None:
        """Read on."""
        for byte in text:
            if self.in_string:
                self._take_in_string(byte)
            elif byte in BLANKS:
                self.gap += bytes([byte])
            else:
                self._take_outside(byte)

    def leave_string(self) -> None:
        """The next byte is outside of strings, whatever quotes were before it."""
        self.in_string = False
        self._is_escaped = False

    def _take_in_string(self, byte: int) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif byte == _BACKSLASH:
            self._is_escaped = True
        elif byte == _QUOTE:
            self.in_string = False
        self.last = byte

    def _take_outside(self, byte: int) -> None:
        if byte in _CLOSING:
            self._open = self._open[:-1]
        gap_name = self._gap_name(byte)
        if gap_name:
            self._note(gap_name)
        if byte in _OPENING:
            self._open += bytes([byte])
        self.in_string = byte == _QUOTE
        self.gap = b""
        self.last = byte

    def _gap_name(self, byte: int | None) -> str:
        """What a gap before this byte is called; empty where none is expected.

        A closing bracket is no longer among the open ones.
        """
        if self.last == _COLON:
            return "value"
        if byte == _COLON:
            return "colon"
        if byte == _COMMA:
            return "comma"
        if self.last in _OPENING:
            return "" if byte is not None and byte in _CLOSING else "first"
        if self.last == _COMMA:
            return "next"
        return "end" if byte is not None and byte in _CLOSING else ""

    def _note(self, gap_name: str) -> None:
        self._gaps[gap_name] = self.gap
        if gap_name not in _ITEMS:
            return
        lines, newline, indent = self.gap.rpartition(_NEWLINE)
        depth = len(self._open)
        if newline and depth and not len(indent) % depth and not lines:
            self._indent = indent[: len(indent) // depth]
        elif not newline and gap_name != "end":
            self._indent = None

    def expected(self, byte: int | None) -> tuple[bytes | None, bool]:
        """The blanks still to come before a byte, and whether the document shows it.

        `byte` is None for one that is not known, which closes no bracket. None for
        blanks that nothing can be said of.
        """
        gap, is_seen = self._whole_gap(byte)
        if gap is None or not gap.startswith(self.gap):
            return None, False
        return gap[len(self.gap) :], is_seen

    def _whole_gap(self, byte: int | None) -> tuple[bytes | None, bool]:
        gap_name = self._gap_name(byte)
        if not gap_name:
            return b"", True
        if gap_name in _ITEMS and self._indent is not None:
            depth = len(self._open)
            if byte is not None and byte in _CLOSING:
                depth -= 1
            return _NEWLINE + self._indent * depth, True
        seen = self._gaps.get(gap_name)
        if seen is not None and not (gap_name in _ITEMS and _NEWLINE in seen):
            return seen, True
        if gap_name in ("colon", "comma"):
            return b"", True
        return self._usual_gap(gap_name), False

    def _usual_gap(self, gap_name: str) -> bytes | None:
        """Of a gap that the document has not shown."""
        first = self._gaps.get("first")
        if first is None:
            return None
        if gap_name == "value":
            return b" "
        if gap_name == "next":
            return self._gaps.get("value", b"")
        return first

    def lay_out(self, text: bytes) -> LaidOut:
        """Text without blanks, that comes next, with those that are expected.

        It ends where they are not known.
        """
        ahead = self.copy()
        result = b""
        num_seen: int | None = None
        for byte in text:
            gap = b""
            if not ahead.in_string:
                expected, is_seen = ahead.expected(byte)
                if expected is None:
                    break
                if not is_seen and num_seen is None:
                    num_seen = len(result)
                gap = expected
            piece = gap + bytes([byte])
            ahead.take(piece)
            result += piece
        if num_seen is None:
            num_seen = len(result)
        return LaidOut(result, num_seen)
