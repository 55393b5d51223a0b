"""Text from outside, made harmless: no terminal escape is left, and ordinary text stays as it is."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvllm_local.tui.sanitise import clean, clean_copy, clean_line, clean_pipe, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("\x9b31m", "‹9B›31m"),
        ("a\x00b\x7f", "a␀b␡"),
        ("line\r\nnext\rover", "line\nnext␍over"),
        ("\u202eevil\u2066", "‹202E›evil‹2066›"),
        ("a\u2028b", "a\nb"),
        ("[/x] [bold]", "[/x] [bold]"),
        ("\ud800", "\ufffd"),
        ("tag\U000e0041", "tag‹E0041›"),
        ("née 日本 שלום 👩‍👩‍👧", "née 日本 שלום 👩‍👩‍👧"),
        ("a" + "\u0301" * 50, "a" + "\u0301" * 6),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text(st.characters()))
def test_no_control_character_is_left(text: str) -> None:
    for harmless in (clean(text), clean_pipe(text), clean_copy(text)):
        assert not [
            one
            for one in harmless
            if unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t"
        ]
    assert not [
        one
        for one in clean(text)
        if unicodedata.bidirectional(one) in ("RLO", "LRO", "RLE", "RLI", "PDF")
    ]
    assert clean(clean(text)) == clean(text)


def test_one_line() -> None:
    assert clean_line("a\n b\t\x1bc") == "a b ␛c"
    assert clean_line("x" * 500, 10) == "x" * 9 + "…"


def test_a_pipe_keeps_all_but_controls() -> None:
    assert clean_pipe("\u202ea\x1b") == "\u202ea␛"


def test_what_is_copied_can_be_pasted() -> None:
    assert clean_copy("rm\x1b[201~ x\n\u202e") == "rm[201~ x\n\u202e"


def test_a_huge_line_is_cut_quickly() -> None:
    began = time.process_time()
    shown, left_out = shorten(clean("é" * 1_000_000))
    # Far more than it takes: what grows with the square takes hours.
    assert time.process_time() - began < 60
    assert len(shown) + left_out == 1_000_000
    assert max(map(len, shown.split("\n"))) <= 8_000
