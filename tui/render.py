"""Settled messages as one piece of selectable text: Markdown becomes styled `Content`, nothing becomes a widget.

Model text is never parsed as Textual markup. Text that cannot be rendered is shown as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from textual.content import Content, Span

from rvllm_local.history.types import ChatMessage, MessageState, ToolCall
from rvllm_local.tui.growing import Piece
from rvllm_local.tui.payload import shown_text
from rvllm_local.tui.sanitise import clean, clean_line, shorten

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

HIGHLIGHT_LIMIT = 20_000  # characters of one code block
_MUTED = "$muted"
_INLINE = {"strong_open": "bold", "em_open": "italic", "s_open": "strike"}


@lru_cache(1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def render_markdown(text: str) -> Content:
    """Markdown, already cleaned, as styled text."""
    return render_piece(Piece(text))


def render_piece(piece: Piece) -> Content:
    """A part of a text that is still growing, as it will look in its place."""
    if not piece.text.strip():
        return Content("")
    try:
        return _Renderer(piece).render(_parser().parse(piece.text))
    except Exception:  # a parser's bug or limit must not hide a reply
        return Content(piece.text)


class _Renderer:
    """One pass over the block tokens. `indents` are the prefixes of the enclosing lists and quotes."""

    def __init__(self, piece: Piece) -> None:
        self.first_number = (
            piece.number
        )  # of the first list, if it goes on from the piece before
        self.is_in_code = piece.is_in_code
        self.blocks: list[Content] = []
        self.indents: list[str] = []
        self.counters: list[int | None] = []
        self.bullet = ""  # the list marker that the next block carries
        self.follows_item = False  # whether the block before belongs to the list

    def render(self, tokens: Sequence[Token]) -> Content:
        place = 0
        while place < len(tokens):
            place = self._block(tokens, place)
        return Content("").join(self.blocks)

    def _block(self, tokens: Sequence[Token], place: int) -> int:
        token = tokens[place]
        kind = token.type
        if kind == "table_open":
            end = next(
                at
                for at in range(place, len(tokens))
                if tokens[at].type == "table_close"
            )
            self._add(_table(tokens[place:end]))
            return end + 1
        if kind in ("bullet_list_open", "ordered_list_open"):
            start = (
                int(token.attrs.get("start", 1))
                if self.first_number is None
                else self.first_number
            )
            self.counters.append(start if kind[0] == "o" else None)
            self.first_number = None
        elif kind in ("bullet_list_close", "ordered_list_close"):
            self.counters.pop()
            self.follows_item = self.follows_item and bool(self.counters)
        elif kind == "list_item_open":
            self._item()
        elif kind in ("list_item_close", "blockquote_close"):
            self.indents.pop()
        elif kind == "blockquote_open":
            self.indents.append("▎ ")
        elif kind == "inline":
            self._inline(token, tokens[place - 1])
        elif kind in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.split() else ""
            self._add(_code(token.content, language, is_named=not self.is_in_code))
            self.is_in_code = False
        elif kind == "hr":
            self._add(Content.styled("─" * 24, _MUTED))
        elif kind == "html_block":
            self._add(Content(token.content.rstrip("\n")))
        return place + 1

    def _item(self) -> None:
        number = self.counters[-1]
        self.bullet = "• " if number is None else f"{number}. "
        if number is not None:
            self.counters[-1] = number + 1
        self.indents.append(" " * len(self.bullet))

    def _inline(self, token: Token, opener: Token) -> None:
        content = _inline(token.children or ())
        if opener.type == "heading_open":
            content = content.stylize(
                "bold $primary" if opener.tag in ("h1", "h2") else "bold"
            )
        self._add(content)

    def _add(self, content: Content) -> None:
        """Append a block, with a blank line before it unless it is in a list."""
        prefix = "".join(self.indents)
        first = prefix
        if self.bullet:
            first = prefix[: -len(self.bullet)] + self.bullet
        lines = (
            content.split("\n", allow_blank=True)
            if prefix or self.bullet
            else [content]
        )
        styled = [
            Content.assemble((first if number == 0 else prefix, _MUTED), line)
            for number, line in enumerate(lines)
        ]
        if self.blocks:
            self.blocks.append(
                Content("\n" if self.bullet and self.follows_item else "\n\n")
            )
        self.blocks.append(Content("\n").join(styled) if len(styled) > 1 else styled[0])
        self.follows_item = bool(self.counters)
        self.bullet = ""


def _inline(children: Sequence[Token]) -> Content:
    text: list[str] = []
    spans: list[Span] = []
    opened: list[tuple[int, str]] = []
    size = 0
    for child in children:
        piece = ""
        if child.type in _INLINE:
            opened.append((size, _INLINE[child.type]))
        elif child.type == "link_open":
            opened.append((size, "underline $primary"))
            text.append("")
        elif child.type in ("strong_close", "em_close", "s_close", "link_close"):
            start, style = opened.pop()
            spans.append(Span(start, size, style))
        elif child.type in ("softbreak", "hardbreak"):
            piece = "\n"
        elif child.type == "image":
            piece = f"[image: {child.content}]"
        else:
            piece = child.content
            if child.type == "code_inline":
                spans.append(Span(size, size + len(piece), "$text-accent"))
        text.append(piece)
        size += len(piece)
        if child.type == "link_close":
            size += _target(children, child, text, spans, size)
    return Content("".join(text), spans)


def _target(
    children: Sequence[Token],
    close: Token,
    text: list[str],
    spans: list[Span],
    size: int,
) -> int:
    """Show where a link goes, unless its text says so: a link that lies must not look honest."""
    opener = next(
        one
        for one in reversed(children[: list(children).index(close)])
        if one.type == "link_open" and one.level == close.level
    )
    target = str(opener.attrs.get("href", ""))
    if not target or "".join(text).endswith(target):
        return 0
    shown = f" ({clean_line(target, 120)})"
    text.append(shown)
    spans.append(Span(size, size + len(shown), _MUTED))
    return len(shown)


def _code(code: str, language: str, is_named: bool) -> Content:
    code = code.rstrip("\n").expandtabs(4)
    content = Content(code)
    if language and len(code) <= HIGHLIGHT_LIMIT:
        from textual.highlight import highlight

        content = highlight(code, language=language)
    lines = content.split("\n", allow_blank=True)
    body = Content("\n").join(Content.assemble(("  ", ""), line) for line in lines)
    return (
        Content.assemble((f"  {language}\n", f"italic {_MUTED}"), body)
        if language and is_named
        else body
    )


def _table(tokens: Sequence[Token]) -> Content:
    rows: list[list[Content]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_inline(token.children or ()))
    columns = max(len(row) for row in rows)
    widths = [
        max((row[at].cell_length for row in rows if at < len(row)), default=1)
        for at in range(columns)
    ]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.pad_right(widths[at] - cell.cell_length) for at, cell in enumerate(row)
        ]
        line = Content(" │ ").join(cells)
        lines.append(line.stylize("bold") if number == 0 else line)
        if number == 0:
            lines.append(
                Content.styled("─┼─".join("─" * width for width in widths), _MUTED)
            )
    return Content("\n").join(lines)


def render_tool_call(call: ToolCall) -> Content:
    """A tool call on a line or two."""
    arguments = clean_line(call.arguments, 400)
    return Content.assemble(
        ("⚙ ", _MUTED), (clean_line(call.name, 80), "bold"), (f"({arguments})", _MUTED)
    )


def render_message(
    message: ChatMessage, place: tuple[int, int] = (0, 1), show_reasoning: bool = False
) -> Content:
    """A settled message: reasoning (folded or not), tool calls, text, and a line of what is to be known about it."""
    parts: list[Content] = []
    if message.reasoning:
        parts.append(_reasoning(message, show_reasoning))
    parts += [render_tool_call(call) for call in message.tool_calls]
    text = shown_text(message) if message.role == "user" else message.text
    shown, left_out = shorten(text)
    shown = clean(shown)
    if shown.strip():
        parts.append(
            Content(shown.rstrip())
            if message.role == "user" or left_out
            else render_markdown(shown)
        )
    if left_out:
        parts.append(
            Content.styled(
                f"… {left_out:,} more characters; copy or export to have them", _MUTED
            )
        )
    if foot := _foot(message, place):
        parts.append(foot)
    return Content("\n\n").join(parts) if parts else Content.styled("(empty)", _MUTED)


def _reasoning(message: ChatMessage, show: bool) -> Content:
    seconds = message.figures.get("thought_s")
    label = (
        f"thought for {seconds:.1f} s"
        if isinstance(seconds, int | float)
        else "thoughts"
    )
    head = Content.styled(f"{'▾' if show else '▸'} {label}", _MUTED)
    if not show:
        return head
    body = clean(shorten(message.reasoning)[0]).strip()
    return Content.assemble(head, "\n", (body, f"italic {_MUTED}"))


def _foot(message: ChatMessage, place: tuple[int, int]) -> Content | None:
    parts: list[tuple[str, str]] = []
    if message.state is MessageState.FAILED:
        parts.append(
            (
                f"✗ {clean_line(message.figures.get('error', 'this reply broke off'))}  /regenerate tries again",
                "$text-error",
            )
        )
    elif message.state is MessageState.STOPPED:
        parts.append(("■ stopped", _MUTED))
    elif message.state is MessageState.PARTIAL:
        parts.append(("■ interrupted", _MUTED))
    if place[1] > 1:
        parts.append(
            (f"{'  ' if parts else ''}‹ {place[0] + 1}/{place[1]} ›", "$text-accent")
        )
    return Content.assemble(*parts) if parts else None


def code_blocks(text: str) -> list[str]:
    """The code of the fenced blocks of a message, in order; a fence that is half open counts."""
    return [
        token.content
        for token in _parser().parse(text)
        if token.type in ("fence", "code_block")
    ]
