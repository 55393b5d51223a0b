"""Both sides of a link prove that they know the secret; strangers learn nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from rvllm_local.distributed.handshake import enter, let_in
from rvllm_local.errors import EngineError

SECRET = b"s" * 32


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is sent away because this machine is busy."""
    monkeypatch.setattr("rvllm_local.distributed.handshake._DEADLINE_S", 3600.0)


def met(theirs: Callable[[socket.socket], object]) -> tuple[Future[int], Exception]:
    """Rank 0's verdict on a peer, and the error that the peer met."""
    with ThreadPoolExecutor(1) as threads:
        ours, other = socket.socketpair()
        with ours, other:
            verdict = threads.submit(closing_after, ours)
            error: Exception = AssertionError("nothing was raised")
            try:
                theirs(other)
            except EngineError as refusal:
                error = refusal
            verdict.exception(60)  # both ends stay open until it is there
            return verdict, error


def closing_after(connection: socket.socket) -> int:
    try:
        return let_in(connection, SECRET)
    finally:
        connection.close()


def test_who_knows_the_secret_is_let_in_by_its_number() -> None:
    verdict, _ = met(lambda other: enter(other, SECRET, 3))
    assert verdict.result() == 3


def test_another_secret_is_turned_away_on_both_sides() -> None:
    verdict, error = met(lambda other: enter(other, b"t" * 32, 1))
    assert isinstance(verdict.exception(), EngineError)
    assert "secret" in str(error)


def test_a_stranger_gets_a_challenge_and_nothing_else() -> None:
    heard = []

    def listen(other: socket.socket) -> None:
        other.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100)
        with contextlib.suppress(ConnectionError):
            while part := other.recv(1000):
                heard.append(part)

    verdict, _ = met(listen)
    assert isinstance(verdict.exception(), EngineError)
    assert len(b"".join(heard)) == len(b"rvllm ranks 3\n") + 32


def test_who_hangs_up_is_turned_away() -> None:
    verdict, _ = met(lambda other: other.close())
    assert isinstance(verdict.exception(), (EngineError, OSError))


def test_a_listener_that_is_no_rank_0_is_not_told_the_proof() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        ours.sendall(b"x" * 46)
        with pytest.raises(EngineError, match="no rank 0"):
            enter(other, SECRET, 1)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
