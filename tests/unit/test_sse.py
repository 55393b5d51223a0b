"""A stream of server-sent events is read the same, however it is cut in pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvllm_local.sse import EventSizeError, SseReader

STREAM = (
    b": hello\n\n"
    b"event: message\nid: 7\nretry: 5\ndata: one\n\n"
    b'data:{"a":\r\ndata: 1}\r\n\r\n'
    b"data: two\r\r"
    b"\n\ndata\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b"one", b'{"a":\n1}', b"two", b"", b"[DONE]"]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_pieces_of_any_size_give_the_same_events(cuts: list[int]) -> None:
    reader = SseReader()
    events = []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        events += reader.feed(STREAM[start:end])
    assert events == EVENTS
    assert reader.close() == []
    assert reader.stray_line is None


def test_an_event_comes_with_its_empty_line_and_not_later() -> None:
    reader = SseReader()
    assert reader.feed(b"data: one\n") == []
    assert reader.feed(b"\n") == [b"one"]
    assert reader.feed(b"data: two\r\n\r") == [b"two"]


def test_separators_of_unicode_end_no_line() -> None:
    text = "a\u2028b\u0085c\x0bd".encode()
    assert SseReader().feed(b"data: " + text + b"\n\n") == [text]


def test_the_last_event_may_lack_its_end() -> None:
    reader = SseReader()
    assert reader.feed(b"data: one\n\ndata: [DONE]") == [b"one"]
    assert reader.unfinished_line == b"data: [DONE]"
    assert reader.close() == [b"[DONE]"]


def test_the_first_stray_line_is_kept() -> None:
    reader = SseReader()
    assert reader.feed(b"<html>\n<body>\ndata: one\n\n") == [b"one"]
    assert reader.stray_line == b"<html>"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 200 + b"\n"],
        [b"data: ", *[b"x" * 10] * 20],
        [b"data: " + b"x" * 60 + b"\n"] * 2,
        [b": " + b"x" * 200],
        [b"data:\n" * 1001],
    ],
    ids=["a line", "a line in pieces", "several lines", "a comment", "empty lines"],
)
def test_an_event_above_the_limit_is_an_error(pieces: list[bytes]) -> None:
    reader = SseReader(limit=100)
    with pytest.raises(EventSizeError, match="100 bytes"):
        for piece in pieces:
            reader.feed(piece)


def test_many_small_events_are_within_the_limit() -> None:
    reader = SseReader(limit=100)
    for _ in range(100):
        assert reader.feed(b"data: " + b"x" * 80 + b"\n\n") == [b"x" * 80]
