"""A growing text that is cut in pieces shows what the whole text would show, wherever it is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.tui.growing import Piece, cut
from rvllm_local.tui.render import render_markdown, render_piece

CODE = "```python\nx = [1]\n\ny = 2\n# a # b\nz = '''\n- no list\n'''\n```\n"
BLOCKS = (
    "A paragraph of **bold** words\nover two lines.\n",
    "# A title\n",
    "- one\n- two\n- three\n",
    "- one\n\n- two\n\n- three\n",
    "1. one\n2. two\n   - deep\n   - deeper\n3. three\n",
    "1. all\n1. numbered\n1. one\n",
    "7. seven\n\n   its second paragraph\n\n8. eight\n",
    CODE,
    "~~~~\n```\nfenced fence\n~~~\nstill\n~~~~\n",
    "- a list\n  ```py\n  - with code\n  ```\n- and more\n",
    "> a quote\n> - with a list\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "    indented code\n\n    more of it\n",
    "2024 was a year.\n",
)


def shown_in_pieces(text: str, step: int, keep: int) -> str:
    """What is shown when `step` characters come at a time and an end of more than `keep` is cut."""
    shown, piece = "", Piece("")
    for at in range(0, len(text), step):
        piece = replace(piece, text=piece.text + text[at : at + step])
        while len(piece.text) > keep and (parts := cut(piece)):
            shown += gap(shown, parts[0]) + render_piece(parts[0]).plain
            piece = parts[1]
    return shown + (
        gap(shown, piece) + render_piece(piece).plain if piece.text.strip() else ""
    )


def gap(before: str, piece: Piece) -> str:
    if not before:
        return ""
    return "\n" if piece.is_joined else "\n\n"


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(0, 60),
)
def test_pieces_look_like_the_whole(blocks: list[str], step: int, keep: int) -> None:
    text = "\n".join(blocks)
    assert shown_in_pieces(text, step, keep) == render_markdown(text).plain


@pytest.mark.parametrize(
    ("text", "head", "rest"),
    [
        ("a\n\nb\n", "a\n\n", Piece("b\n")),
        ("a\n\n- b\n- c\n", "a\n\n- b\n", Piece("- c\n", True)),
        ("1. a\n1. b\n", "1. a\n", Piece("1. b\n", True, number=2)),
        ("```py\na\nb\n", "```py\na\n", Piece("```py\nb\n", True, True)),
    ],
)
def test_where_a_growing_text_is_cut(text: str, head: str, rest: Piece) -> None:
    assert cut(Piece(text)) == (Piece(head), rest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a\nb\n",
        "a\n\n    code\n",
        "| a |\n|---|\n| b |\n",
        "a\n\nb",
        "```\na\n\nb",
    ],
)
def test_where_it_is_not_cut(text: str) -> None:
    assert cut(Piece(text)) is None
