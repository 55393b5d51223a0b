"""Markdown's blocks as one piece of styled text, for a given width.

Lists, quotes, code and tables are wrapped here, under their own indent; plain
paragraphs are left to the widget, so that marking them with the mouse copies them as
they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content

from rvllm_local.tui.growing import Piece
from rvllm_local.tui.inline import render_inline
from rvllm_local.tui.table import Alignment, Table, render_table

if TYPE_CHECKING:
    from markdown_it.token import Token

HIGHLIGHT_LIMIT = 20_000  # characters of one code block
LEAST_WIDTH = 8  # cells that wrapped text gets at least, however deep its indent
_MUTED = "$muted"
_QUOTE = "▎ "
_CODE = "▏ "
_DIFF_STYLES = {"+": "$success", "-": "$error", "@": "$accent"}
_TASKS = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}
_HEADINGS = {"h1": "bold underline $primary", "h2": "bold $primary", "h3": "bold"}


@dataclass(slots=True)
class _List:
    """A list that is open. `number` is the next item's; None for bullets."""

    number: int | None


class BlockRenderer:
    """One pass over the block tokens.

    `_indents` are those of the open lists and quotes. `_bullets` are the markers in
    their place that the next block carries; empty where they were shown.
    """

    def __init__(
        self,
        piece: Piece,
        width: int | None,
    ) -> None:
        # Of the first list, if it goes on from the piece before.
        self._first_number = piece.number
        self._is_in_code = piece.is_in_code
        self._width = width
        self._blocks: list[Content] = []
        self._indents: list[str] = []
        self._lists: list[_List] = []
        self._bullets: list[str] = []
        self._follows_item = False  # whether the block before belongs to the list
        self._new_quote: int | None = None  # the indent of a quote that begins

    def render(self, tokens: Sequence[Token]) -> Content:
        """The whole text."""
        index = 0
        while index < len(tokens):
            if tokens[index].type == "table_open":
                index = self._table(tokens, index)
            else:
                self._block(tokens, index)
                index += 1
        return Content("").join(self._blocks)

    def _block(
        self,
        tokens: Sequence[Token],
        index: int,
    ) -> None:
        token = tokens[index]
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                self._open_list(token)
            case "bullet_list_close" | "ordered_list_close":
                self._lists.pop()
                self._follows_item = self._follows_item and bool(self._lists)
            case "list_item_open":
                self._open_item()
            case "list_item_close" | "blockquote_close":
                self._close_indent()
            case "blockquote_open":
                if self._new_quote is None:
                    self._new_quote = len(self._indents)
                self._open_indent(_QUOTE, "")
            case "inline":
                self._inline(token, tokens[index - 1])
            case "fence" | "code_block":
                self._code(token)
            case "hr":
                self._add(Content.styled("─" * 24, _MUTED))
            case "html_block":
                self._add(Content(token.content.rstrip("\n")))

    def _open_list(self, token: Token) -> None:
        number = None
        if token.type == "ordered_list_open":
            number = int(token.attrs.get("start", 1))
            if self._first_number is not None:
                number = self._first_number
        self._first_number = None
        self._lists.append(_List(number))

    def _open_item(self) -> None:
        present = self._lists[-1]
        bullet = "• "
        if present.number is not None:
            bullet = f"{present.number}. "
            present.number += 1
        self._open_indent(" " * len(bullet), bullet)

    def _open_indent(
        self,
        indent: str,
        bullet: str,
    ) -> None:
        self._indents.append(indent)
        self._bullets.append(bullet)

    def _close_indent(self) -> None:
        if self._bullets[-1]:
            self._add(Content(""))  # an item that is empty
        self._indents.pop()
        self._bullets.pop()

    def _inline(
        self,
        token: Token,
        opener: Token,
    ) -> None:
        content = render_inline(token)
        if opener.type == "heading_open":
            content = content.stylize(_HEADINGS.get(opener.tag, "italic"))
        task = _TASKS.get(content.plain[:4])
        if task is not None and self._bullets and self._bullets[-1] == "• ":
            self._bullets[-1] = task
            content = content[4:]
        self._add(content)

    def _table(
        self,
        tokens: Sequence[Token],
        start: int,
    ) -> int:
        """Add the table that begins here; returns the index behind it."""
        rows: list[list[Content]] = []
        alignments: list[Alignment] = []
        index = start
        while tokens[index].type != "table_close":
            token = tokens[index]
            if token.type == "tr_open":
                rows.append([])
            elif token.type == "th_open":
                alignments.append(_alignment(token))
            elif token.type == "inline":
                rows[-1].append(render_inline(token))
            index += 1
        table = Table(rows, alignments)
        self._add(render_table(table, self._room()))
        return index + 1

    def _code(self, token: Token) -> None:
        language = token.info.split()[0] if token.info.split() else ""
        lines = []
        if language and not self._is_in_code:
            lines.append(Content.styled(language, f"italic {_MUTED}"))
        room = self._room(len(_CODE))
        for line in _code_lines(token.content, language):
            lines += _wrapped_code(line, room)
        prefix = Content.styled(_CODE, _MUTED)
        shown = []
        for line in lines:
            space = 0 if room is None else room - line.cell_length
            whole = Content.assemble(prefix, line.pad_right(space))
            shown.append(whole.stylize_before("on $surface"))
        self._is_in_code = False
        self._add(Content("\n").join(shown))

    def _room(self, taken: int = 0) -> int | None:
        """Cells beside the indents; None where the width is not known."""
        if self._width is None:
            return None
        indent = sum(len(indent) for indent in self._indents)
        return max(self._width - indent - taken, LEAST_WIDTH)

    def _add(self, content: Content) -> None:
        """Append a block, with a blank line before it unless it is in a list."""
        if self._blocks:
            self._blocks.append(self._gap())
        self._new_quote = None
        prefix = "".join(self._indents)
        if prefix:
            first = ""
            for indent, bullet in zip(self._indents, self._bullets, strict=True):
                first += bullet or indent
            content = self._indented(content, first, prefix)
        self._blocks.append(content)
        self._follows_item = bool(self._lists)
        self._bullets = [""] * len(self._indents)

    def _indented(
        self,
        content: Content,
        first: str,
        prefix: str,
    ) -> Content:
        lines: list[Content] = []
        for line in content.split("\n", allow_blank=True):
            for part in _wrapped(line, self._room()):
                indent = prefix if lines else first
                lines.append(Content.assemble((indent, _MUTED), part))
        return Content("\n").join(lines)

    def _gap(self) -> Content:
        """What stands between two blocks: inside a quote, its bar goes on."""
        if any(self._bullets) and self._follows_item:
            return Content("\n")
        prefix = "".join(self._indents[: self._new_quote])
        end = prefix.rfind(_QUOTE)
        if end < 0:
            return Content("\n\n")
        bar = prefix[: end + len(_QUOTE)].rstrip()
        return Content.assemble("\n", (bar, _MUTED), "\n")


def _wrapped(line: Content, width: int | None) -> list[Content]:
    """The line in parts of at most `width` cells."""
    if width is None or line.cell_length <= width:
        return [line]
    return line.wrap(width)


def _wrapped_code(line: Content, width: int | None) -> list[Content]:
    """The line in parts, the later ones under its own indent."""
    if width is None or line.cell_length <= width:
        return [line]
    indent = min(len(line.plain) - len(line.plain.lstrip(" ")), width // 2)
    first, *rest = line[indent:].wrap(width - indent)
    space = Content(" " * indent)
    return [Content.assemble(line[:indent], first), *(space + part for part in rest)]


def _alignment(token: Token) -> Alignment:
    style = str(token.attrs.get("style", ""))
    if style.endswith("right"):
        return "right"
    return "center" if style.endswith("center") else "left"


def _code_lines(code: str, language: str) -> list[Content]:
    code = code.rstrip("\n").expandtabs(4)
    if language == "diff":
        return [_diff_line(line) for line in code.split("\n")]
    if language and len(code) <= HIGHLIGHT_LIMIT:
        from rvllm_local.tui.code_colours import colour_code

        return list(colour_code(code, language).split("\n", allow_blank=True))
    return [Content(line) for line in code.split("\n")]


def _diff_line(line: str) -> Content:
    return Content.styled(line, _DIFF_STYLES.get(line[:1], ""))
