"""Where a Markdown text that is still growing can be cut, so that what has settled is rendered once and only its end
again and again. Each part renders alone as it would in its place. Plain text in, plain values out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_MARKER = re.compile(r"(?:(\d{1,9})([.)])|([-*+]))(?=\s)")
_RULE_OR_TITLE = re.compile(
    r"#{1,6}\s|[<>]|(?:-\s*){3,}\Z|(?:\*\s*){3,}\Z|(?:_\s*){3,}\Z"
)  # ends a list without a blank line
_FENCE = re.compile(r"\s*(`{3,}|~{3,})([^`]*)\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply. `is_joined` says that no blank line stands before it.

    A piece that goes on inside a fence repeats the fence's first line, and `is_in_code` says that its language was
    told before; `number` is the first number of an ordered list that goes on.
    """

    text: str
    is_joined: bool = False
    is_in_code: bool = False
    number: int | None = None


@dataclass(slots=True)
class _Place:
    """What the scan knows at the beginning of a line."""

    fence: str = ""  # the mark that opened the fence around this line
    opener: str = (
        ""  # the fence's first line; empty for one inside a list, which is not cut
    )
    number: int | None = None  # of the present list item; None in a list of bullets
    mark: str = ""  # of the present list's items; empty outside lists


def cut(piece: Piece) -> tuple[Piece, Piece] | None:
    """The piece in two at the last place where that can be done, or None.

    Cuts are made before a block that follows a blank line, between the items of a list, and between the lines of a
    fence. The last line never counts: it may not be whole.
    """
    place = _Place(number=piece.number)
    found: tuple[int, Piece] | None = None
    offset, previous = 0, None
    for line in piece.text.split("\n")[:-1]:
        rest = _at(place, line, previous)
        if rest is not None and previous is not None:
            found = (offset, rest)
        offset += len(line) + 1
        previous = line
    if found is None:
        return None
    offset, rest = found
    head, text = piece.text[:offset], piece.text[offset:]
    return replace(piece, text=head), replace(rest, text=f"{rest.text}{text}")


def _at(place: _Place, line: str, previous: str | None) -> Piece | None:
    """How a piece would begin at this line, without its text; None where it cannot. `place` moves past the line."""
    fence = _FENCE.match(line)
    if place.fence:
        if fence and fence[1].startswith(place.fence) and not fence[2].strip():
            place.fence = ""
            return None
        is_between = bool(
            place.opener
            and line.strip()
            and previous
            and previous.strip()
            and previous != place.opener
        )
        return Piece(place.opener + "\n", True, True) if is_between else None
    if _RULE_OR_TITLE.match(line):
        place.mark = ""
    marker = None if _RULE_OR_TITLE.match(line) else _MARKER.match(line)
    mark = (marker[2] or marker[3]) if marker else ""
    is_apart = (
        not (previous or "").strip() and line.strip() != "" and not line[0].isspace()
    )
    begin: Piece | None = None
    if marker and not is_apart and not place.mark and marker[1] not in (None, "1"):
        return None  # such a list begins in no paragraph
    if marker and mark == place.mark:
        place.number = None if place.number is None else place.number + 1
        begin = Piece("", True, number=place.number)
    elif is_apart or marker:
        begin = Piece("") if is_apart or place.mark else None
        if previous is not None or place.number is None:
            place.number = int(marker[1]) if marker and marker[1] else None
        place.mark = mark
    if fence:
        is_inside = line[0].isspace()
        place.fence, place.opener = fence[1], "" if is_inside else line
        place.mark = place.mark if is_inside else ""
    return begin
