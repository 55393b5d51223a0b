"""Blanks are expected as the document has had them, or as most documents have them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rvllm_local.text.grammar.layout import Layout

DOCUMENT = {
    "name": "J",
    "sizes": [1, 2],
    "box": {"of": {"b": 1}, "none": [], "text": 'x, y: {" '},
    "last": True,
}
STYLES: tuple[dict[str, Any], ...] = (
    {"indent": 4},
    {"indent": 2},
    {"indent": "\t"},
    {},
    {"separators": (",", ":")},
    {"indent": 1, "separators": (" ,", " : ")},
)


@pytest.mark.parametrize("style", STYLES)
def test_a_document_goes_on_in_the_style_that_it_began_in(
    style: dict[str, Any],
) -> None:
    whole = json.dumps(DOCUMENT, **style)
    compact = json.dumps(DOCUMENT, separators=(",", ":"))
    begun = whole.index('"sizes"')
    layout = Layout()
    layout.take(whole[:begun].encode())
    rest = compact[compact.index('"sizes"') :].encode()
    assert layout.lay_out(rest).text.decode() == whole[begun:]


def test_nothing_is_said_of_the_first_blanks() -> None:
    layout = Layout()
    assert layout.lay_out(b'{"a":1}').text == b"{"
    layout.take(b"{\n ")
    assert layout.lay_out(b'"a":1}').text == b""


def test_what_the_document_has_not_shown_is_told_apart() -> None:
    layout = Layout()
    layout.take(b'{"a"')
    expected = layout.lay_out(b':1,"b":2}')
    assert expected.text == b': 1, "b": 2}'
    assert expected.num_seen == 1
    layout.take(b': 1, "b": "x')
    expected = layout.lay_out(b'","c":2,"d":3')
    assert expected.text == b'", "c": 2, "d": 3'
    assert expected.num_seen == len(expected.text)


def test_blanks_that_were_begun_are_completed() -> None:
    layout = Layout()
    layout.take(b'{\n    "a": 1,\n  ')
    assert layout.lay_out(b'"b":2}').text == b'  "b": 2\n}'
    layout.take(b"   ")  # more than before
    assert layout.lay_out(b'"b":2}').text == b""


def test_a_copy_goes_its_own_way() -> None:
    layout = Layout()
    layout.take(b'{\n  "a": ')
    twin = layout.copy()
    twin.take(b'1, "b": ')
    assert layout.lay_out(b'1,"b":').text == b'1,\n  "b":'
    assert twin.lay_out(b'2,"c":').text == b'2, "c":'
