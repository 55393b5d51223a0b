"""Where a Markdown text that is still growing can be cut.

What has settled is rendered once, and only the end again and again. Each part renders
alone as it would in its place. Plain text in, plain values out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_MARKER = re.compile(r"(?:(\d{1,9})([.)])|([-*+]))(?=\s)")
# Ends a list without a blank line.
_RULE_OR_TITLE = re.compile(
    r"#{1,6}\s|[<>]|(?:-\s*){3,}\Z|(?:\*\s*){3,}\Z|(?:_\s*){3,}\Z"
)
_FENCE = re.compile(r"\s*(`{3,}|~{3,})([^`]*)\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply. `is_joined` says that no blank line stands before it.

    A piece that goes on inside a fence repeats the fence's first line, and `is_in_code`
    says that its language was told before; `number` is the first number of an ordered
    list that goes on.
    """

    text: str
    is_joined: bool = False
    is_in_code: bool = False
    number: int | None = None


def cut(piece: Piece) -> tuple[Piece, Piece] | None:
    """The piece in two at the last place where that can be done, or None.

    Cuts are made before a block that follows a blank line, between the items of a list,
    and between the lines of a fence. The last line never counts: it may not be whole.
    """
    scan = _Scan(number=piece.number)
    rest: Piece | None = None
    cut_at = offset = 0
    previous = None
    for line in piece.text.split("\n")[:-1]:
        beginning = scan.take(line, previous)
        if beginning is not None and previous is not None:
            rest = beginning
            cut_at = offset
        offset += len(line) + 1
        previous = line
    if rest is None:
        return None
    head = piece.text[:cut_at]
    tail = piece.text[cut_at:]
    return replace(piece, text=head), replace(rest, text=f"{rest.text}{tail}")


@dataclass(slots=True)
class _Scan:
    """What is known at the beginning of a line.

    `fence` is the mark that opened the fence around it, and `opener` that fence's first
    line, empty for one inside a list, which is not cut. `number` is that of the present
    list item, None among bullets; `mark` is that of the list's items, empty outside.
    """

    fence: str = ""
    opener: str = ""
    number: int | None = None
    mark: str = ""

    def take(
        self,
        line: str,
        previous: str | None,
    ) -> Piece | None:
        """How a piece would begin at this line, without its text; None if it cannot.

        The scan moves past the line.
        """
        fence = _FENCE.match(line)
        if self.fence:
            return self._in_fence(fence, line, previous)
        marker = self._marker(line)
        is_apart = _is_apart(line, previous)
        if marker is not None and not is_apart and not self._may_begin_list(marker):
            return None
        beginning = self._item(marker, is_apart, previous)
        if fence is not None:
            self._open_fence(fence, line)
        return beginning

    def _in_fence(
        self,
        fence: re.Match[str] | None,
        line: str,
        previous: str | None,
    ) -> Piece | None:
        is_mark = fence is not None and fence[1].startswith(self.fence)
        if fence is not None and is_mark and not fence[2].strip():
            self.fence = ""
            return None
        is_blank = not line.strip() or not (previous or "").strip()
        if not self.opener or is_blank or previous == self.opener:
            return None
        return Piece(self.opener + "\n", is_joined=True, is_in_code=True)

    def _open_fence(
        self,
        fence: re.Match[str],
        line: str,
    ) -> None:
        self.fence = fence[1]
        if line[0].isspace():
            self.opener = ""
        else:
            self.opener = line
            self.mark = ""

    def _marker(self, line: str) -> re.Match[str] | None:
        """The list marker of the line; a rule or a title ends the list instead."""
        if _RULE_OR_TITLE.match(line):
            self.mark = ""
            return None
        return _MARKER.match(line)

    def _may_begin_list(self, marker: re.Match[str]) -> bool:
        """Within a paragraph a list begins with a bullet or with 1."""
        return bool(self.mark) or marker[1] in (None, "1")

    def _item(
        self,
        marker: re.Match[str] | None,
        is_apart: bool,
        previous: str | None,
    ) -> Piece | None:
        mark = ""
        if marker is not None:
            mark = marker[2] or marker[3]
            if mark == self.mark:
                return self._next_item()
        elif not is_apart:
            return None
        can_begin = is_apart or bool(self.mark)
        if previous is not None or self.number is None:
            self.number = None
            if marker is not None and marker[1]:
                self.number = int(marker[1])
        self.mark = mark
        return Piece("") if can_begin else None

    def _next_item(self) -> Piece:
        if self.number is not None:
            self.number += 1
        return Piece("", is_joined=True, number=self.number)


def _is_apart(line: str, previous: str | None) -> bool:
    """Whether the line begins a block after a blank line."""
    is_after_blank = not (previous or "").strip()
    return is_after_blank and line.strip() != "" and not line[0].isspace()
