"""The Markdown parser of the chat: CommonMark, tables, strikethrough, and math that is
kept from Markdown.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"))
_DOLLARS = re.compile(r"\$(?=[^\s$])([^$\n]*[^\s$\\])\$(?!\d)")
_FOOTNOTE = re.compile(r"^\[\^([\w-]+)\]:", re.MULTILINE)
_REFERENCE = re.compile(r"\[\^([\w-]+)\]")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
DEPTH = 100  # levels; the parser leaves out what is nested deeper
_SMALL = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@lru_cache(1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"maxNesting": DEPTH})
    parser.enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "math", _read_math)
    return parser


def parse_markdown(text: str) -> list[Token]:
    """The block tokens of a text."""
    if "[^" in text and not _FENCE.search(text):
        text = _FOOTNOTE.sub(lambda match: _note(match[1]), text)
        text = _REFERENCE.sub(lambda match: _note(match[1]), text)
    return _parser().parse(text)


def _note(name: str) -> str:
    return name.translate(_SMALL) if name.isdecimal() else f"({name})"


def _read_math(state: StateInline, silent: bool) -> bool:
    """A rule of the parser: a formula at this place becomes one token."""
    if state.src[state.pos] not in "\\$":
        return False
    ending = _formula_at(state.src, state.pos)
    if ending is None:
        return False
    formula, end = ending
    if not silent:
        token = state.push("math", "", 0)
        token.content = formula
    state.pos = end
    return True


def _formula_at(text: str, start: int) -> tuple[str, int] | None:
    """The formula that begins here, and where it ends."""
    for opening, closing in _DELIMITERS:
        if text.startswith(opening, start):
            begin = start + len(opening)
            end = text.find(closing, begin)
            if end <= begin:
                return None
            return text[begin:end], end + len(closing)
    match = _DOLLARS.match(text, start)
    return (match[1], match.end()) if match else None
