"""Text comes out whole: no split UTF-8, no piece of a stop string, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.types import FinishReason


class Bytes:
    """Token i is the byte i; 256 is special."""

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return None if token_id == 256 else bytes([token_id])


def stream(
    data: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], StreamingDetokenizer]:
    detokenizer = StreamingDetokenizer(Bytes(), stop)
    pieces = [detokenizer.push(token) for token in data]
    return [*pieces, detokenizer.finish()], detokenizer


@given(st.lists(st.integers(0, 256), max_size=60))
def test_any_bytes_come_out_as_one_decode_would_give_them(data: list[int]) -> None:
    pieces, _ = stream(data)
    assert "".join(pieces) == bytes(token for token in data if token != 256).decode(
        errors="replace"
    )


@given(st.text(max_size=30))
def test_no_piece_holds_half_a_character(text: str) -> None:
    pieces, _ = stream(list(text.encode("utf-8", errors="ignore")))
    whole = text.encode("utf-8", errors="ignore").decode()
    assert "".join(pieces) == whole
    assert "\ufffd" in whole or all("\ufffd" not in piece for piece in pieces)


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, detokenizer = stream(list(text.encode()), tuple(stops))
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    assert detokenizer.stopped == bool(ends)
    if not ends:
        assert "".join(pieces) == text
        return
    shown = "".join(pieces)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)


def test_a_limit_within_a_stop_shows_nothing_of_it() -> None:
    for reason, shown in ((FinishReason.LENGTH, "one "), (FinishReason.STOP, "one ST")):
        detokenizer = StreamingDetokenizer(Bytes(), ("STOP",))
        text = "".join(map(detokenizer.push, b"one ST"))
        assert text + detokenizer.finish(reason) == shown


def test_a_stop_across_tokens_is_never_shown() -> None:
    pieces, detokenizer = stream(list(b"one STOP two"), ("STOP",))
    assert "".join(pieces) == "one "
    assert detokenizer.stop_string == "STOP"


@given(
    st.text("ab", min_size=33, max_size=80),
    st.text("ab", max_size=60),
    st.integers(0, 80),
)
def test_long_stops_are_held_back_as_short_ones_are(
    stop: str, before: str, cut: int
) -> None:
    text = before + stop[:cut]
    detokenizer = StreamingDetokenizer(Bytes(), (stop,))
    shown = "".join(detokenizer.push(token) for token in text.encode())
    if stop in text:
        assert shown == text[: text.index(stop)]
        return
    held = max(length for length in range(len(stop)) if text.endswith(stop[:length]))
    assert shown == text[: len(text) - held]
