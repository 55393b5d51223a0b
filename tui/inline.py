"""The text inside a block: emphasis, code, links, formulas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from textual.content import Content, Span

from rvllm_local.tui.markdown import parse_inline
from rvllm_local.tui.math_text import math_text
from rvllm_local.tui.sanitise import clean_line

if TYPE_CHECKING:
    from markdown_it.token import Token

_STYLES = {
    "strong_open": "bold",
    "em_open": "italic",
    "s_open": "strike",
    "link_open": "underline $primary",
}
_CLOSINGS = ("strong_close", "em_close", "s_close", "link_close")
_BREAKS = ("<br>", "<br/>", "<br />")


_KEPT_LENGTH = 500  # characters of a longer text are not kept


def render_inline(token: Token) -> Content:
    """What is inside a block as styled text.

    The end of a reply that grows is rendered again and again: most of its blocks and
    cells are the same, and kept.
    """
    if token.children is not None:
        return _render_tokens(token.children)
    if len(token.content) > _KEPT_LENGTH:
        return _render_tokens(parse_inline(token.content))
    return _render_text(token.content)


@lru_cache(512)
def _render_text(text: str) -> Content:
    return _render_tokens(parse_inline(text))


def _render_tokens(tokens: Sequence[Token]) -> Content:
    writer = _Writer()
    targets: list[str] = []
    for token in tokens:
        if token.type in _STYLES:
            writer.open(_STYLES[token.type])
        if token.type == "link_open":
            targets.append(str(token.attrs.get("href", "")))
        elif token.type in _CLOSINGS:
            writer.close()
            if token.type == "link_close":
                writer.write_target(targets.pop())
        elif token.type == "code_inline":
            writer.write(token.content, "$text-accent")
        elif token.type == "math":
            writer.write(math_text(token.content), "italic")
        else:
            writer.write(_plain(token))
    return writer.content()


def _plain(token: Token) -> str:
    if token.type in ("softbreak", "hardbreak"):
        return "\n"
    if token.type == "image":
        return f"[image: {token.content}]"
    if token.type == "html_inline" and token.content.lower() in _BREAKS:
        return "\n"
    return token.content


class _Writer:
    """Gathers text and the spans of its styles."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._spans: list[Span] = []
        self._opened: list[tuple[int, str]] = []
        self._size = 0

    def open(self, style: str) -> None:
        self._opened.append((self._size, style))

    def close(self) -> None:
        start, style = self._opened.pop()
        self._spans.append(Span(start, self._size, style))

    def write(
        self,
        text: str,
        style: str = "",
    ) -> None:
        if style:
            self._spans.append(Span(self._size, self._size + len(text), style))
        self._pieces.append(text)
        self._size += len(text)

    def write_target(self, target: str) -> None:
        """Show where a link goes, unless its text says so.

        A link that lies must not look honest.
        """
        if target and not "".join(self._pieces).endswith(target):
            self.write(f" ({clean_line(target, 120)})", "$muted")

    def content(self) -> Content:
        return Content("".join(self._pieces), self._spans)
