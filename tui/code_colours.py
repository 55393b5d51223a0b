"""The colours of code. Loads the highlighter: import it where there is code."""

from __future__ import annotations

from textual.content import Content
from textual.highlight import HighlightTheme, TokenType, highlight


def _without_lines() -> dict[TokenType, str]:
    """Textual's colours; only links have a line below them here."""
    styles = {}
    for token, style in HighlightTheme.STYLES.items():
        styles[token] = style.replace(" underline", "")
    return styles


class CodeColours(HighlightTheme):
    """The style of each kind of word."""

    STYLES = _without_lines()


def colour_code(code: str, language: str) -> Content:
    """The code with its colours; as it is where the language is not known."""
    return highlight(code, language=language, theme=CodeColours)
