"""The Markdown parser of the chat: CommonMark, tables, strikethrough, and math that is
kept from Markdown.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"))
_DOLLARS = re.compile(r"\$(?=[^\s$])([^$\n]*[^\s$\\])\$(?!\d)")
_FOOTNOTE = re.compile(r"^\[\^([\w-]+)\]:", re.MULTILINE)
_REFERENCE = re.compile(r"\[\^([\w-]+)\]")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
# The rule below a table's head, in lists and quotes as well.
_TABLE_RULE = re.compile(r"^[\s>*+-]*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
_FENCE_LINE = re.compile(r"^[\s>*+-]*(`{3,}|~{3,})")
_WHOLE_IN_CELL = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|\\\(.+?\\\)")
_PIPE = re.compile(r"(?<!\\)\|")
DEPTH = 100  # levels; the parser leaves out what is nested deeper
_SMALL = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@lru_cache(2)
def _parser(is_inline: bool) -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"maxNesting": DEPTH})
    parser.enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "math", _read_math)
    if not is_inline:
        parser.core.ruler.disable(["inline", "text_join"])
    return parser


def parse_markdown(text: str) -> list[Token]:
    """The block tokens of a text.

    Their inline tokens have children only where the text has link references: without
    them, what is inside a block depends on the block alone, see `parse_inline`.
    """
    if "[^" in text and not _FENCE.search(text):
        text = _FOOTNOTE.sub(lambda match: _note(match[1]), text)
        text = _REFERENCE.sub(lambda match: _note(match[1]), text)
    if "|" in text and ("`" in text or "\\(" in text):
        text = _keep_pipes(text)
    environment: dict[str, Any] = {}
    tokens = _parser(False).parse(text, environment)
    for token in tokens:
        if token.type == "inline":
            token.children = None
            if environment.get("references"):
                token.children = parse_inline(token.content, environment)
    return tokens


def parse_inline(
    text: str,
    environment: dict[str, Any] | None = None,
) -> list[Token]:
    """The tokens inside a block. `environment` has the text's link references."""
    (token,) = _parser(True).parseInline(text, environment or {})
    return token.children or []


def _keep_pipes(text: str) -> str:
    """Pipes in the code and formulas of a table's rows end no cell.

    A parser that is strict would cut the cell there and drop the last of its row.
    """
    lines = text.split("\n")
    is_in_table = is_in_fence = False
    for index, line in enumerate(lines):
        if _FENCE_LINE.match(line):
            is_in_fence, is_in_table = not is_in_fence, False
        elif is_in_fence or "|" not in line:
            is_in_table = False
        elif is_in_table:
            lines[index] = _escape_pipes(line)
        elif _TABLE_RULE.match(line) and index > 0:
            is_in_table = True
            lines[index - 1] = _escape_pipes(lines[index - 1])
    return "\n".join(lines)


def _escape_pipes(line: str) -> str:
    def escape(match: re.Match[str]) -> str:
        return _PIPE.sub(r"\\|", match[0])

    return _WHOLE_IN_CELL.sub(escape, line)


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
