"""A link tells once why there will be no more frames, and hears a silence."""

from __future__ import annotations

import queue
import socket
import struct
from collections.abc import Iterator

import pytest

from rvllm_local.distributed import frames
from rvllm_local.distributed.link import Link
from rvllm_local.distributed.silence import SERVING_S, Silence


def started(
    connection: socket.socket,
) -> tuple[queue.SimpleQueue[frames.FromRank], queue.SimpleQueue[str]]:
    """What a link on this connection takes, and why it is lost."""
    taken: queue.SimpleQueue[frames.FromRank] = queue.SimpleQueue()
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    Link(connection, frames.FROM_RANK, "rank 1").start(taken.put, lost.put, None)
    return taken, lost


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def test_frames_come_in_order_and_beats_are_not_told(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    taken, lost = started(ours)
    other = Link(theirs, frames.FROM_RANK, "rank 0")
    sent = [frames.Ready((7,), "a"), frames.Beat(), frames.Failed("EngineError", "b")]
    for frame in sent:
        other.send(frame)
    assert [taken.get(timeout=60) for _ in range(2)] == [sent[0], sent[2]]
    theirs.shutdown(socket.SHUT_RDWR)
    assert lost.get(timeout=60) == "ended"


def test_a_process_that_ends_with_frames_unread_has_ended(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The system resets its connection."""
    ours, theirs = pair
    _, lost = started(ours)
    ours.sendall(b"nobody reads this")
    theirs.close()
    assert lost.get(timeout=60) == "ended"


@pytest.mark.parametrize(
    ("nonsense", "words"),
    [
        (struct.pack(">I", frames.MAX_FRAME + 1), "longer than"),
        (struct.pack(">I", 3) + b"abc", "does not decode"),
        (struct.pack(">I", 9) + b"abc", "inside a frame"),
    ],
)
def test_nonsense_ends_the_link(
    pair: tuple[socket.socket, socket.socket], nonsense: bytes, words: str
) -> None:
    ours, theirs = pair
    taken, lost = started(ours)
    theirs.sendall(nonsense)
    theirs.shutdown(socket.SHUT_WR)
    assert words in lost.get(timeout=60)
    assert taken.empty()


def test_a_short_silence_counts_only_once_all_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    silence = Silence(None)

    def passes(seconds: float) -> bool:
        verdict = False
        for _ in range(round(seconds / 0.25)):
            now[0] += 0.25
            verdict = silence.is_too_long()
        return verdict

    assert not passes(10 * SERVING_S)
    silence.note_sign()
    silence.limit_s = SERVING_S
    assert not passes(SERVING_S)
    assert passes(0.25)


def test_time_in_which_this_process_stood_still_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    silence = Silence(None)
    silence.limit_s = SERVING_S
    now[0] += 3600
    assert not silence.is_too_long()
