"""Rank 0 lets in each rank of its job once; nobody else learns or changes anything."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rvllm_local.distributed import frames
from rvllm_local.distributed.agreement import versions
from rvllm_local.distributed.gathering import Gathered, Gathering
from rvllm_local.distributed.handshake import enter
from rvllm_local.distributed.hosts import control_address
from rvllm_local.distributed.joining import LeaderLink, told_job
from rvllm_local.distributed.link import Link
from rvllm_local.errors import ConfigError, EngineError
from rvllm_local.framing import receive_exactly
from rvllm_local.options import EngineOptions, RankHosts
from tests.support.ranks import free_hosts

SECRET = b"s" * 32


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is sent away because this machine is busy."""
    for module in ("door", "handshake"):
        monkeypatch.setattr(f"rvllm_local.distributed.{module}._DEADLINE_S", 3600.0)


@contextlib.contextmanager
def gathered_by(gathering: Gathering) -> Iterator[Future[Gathered]]:
    """What it will have gathered. Whatever happens, it ends with the block."""
    with ThreadPoolExecutor(1) as threads:
        try:
            yield threads.submit(gathering.gather)
        finally:
            gathering.abandon()


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    """A job of three ranks on free ports of this machine."""
    path = tmp_path / "hosts.secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    addresses = []
    for address in free_hosts(3):
        host, _, port = address.partition(":")
        addresses.append((host, int(port)))
    return EngineOptions(ranks=3, hosts=RankHosts(tuple(addresses), str(path)))


@contextlib.contextmanager
def linked(
    options: EngineOptions,
    rank: int,
    secret: bytes = SECRET,
    ranks: int = 3,
    **other: str,
) -> Iterator[LeaderLink]:
    """A rank that has proven itself and said hello, with `other` versions."""
    assert options.hosts is not None
    connection = socket.create_connection(control_address(options.hosts), 60)
    with connection:
        enter(connection, secret, rank)
        link: LeaderLink = Link(connection, frames.FROM_LEADER, "rank 0")
        link.send(frames.Hello(os.getpid(), {**versions(), **other}, ranks))
        yield link


def test_the_ranks_of_a_job_and_nobody_else(options: EngineOptions) -> None:
    said: list[str] = []
    gathering = Gathering(options, "model", said.append)
    assert options.hosts is not None
    stranger = socket.create_connection(control_address(options.hosts), 60)
    with gathered_by(gathering) as job, stranger:
        stranger.sendall(b"\x00" * 200)
        with pytest.raises(EngineError, match="secret"), linked(options, 1, b"t" * 32):
            pass
        with linked(options, 1, mlx="0.1") as old, pytest.raises(EngineError) as error:
            told_job(old)
        assert "mlx 0.1 there" in str(error.value)
        with linked(options, 3) as extra, pytest.raises(EngineError, match="no rank 3"):
            told_job(extra)
        with (
            linked(options, 1, ranks=4) as larger,
            pytest.raises(EngineError, match="a file of 4 hosts, and rank 0 one of 3"),
        ):
            told_job(larger)
        with linked(options, 1) as first:
            with (
                linked(options, 1) as twin,
                pytest.raises(EngineError, match="there already"),
            ):
                told_job(twin)
            with linked(options, 2) as second:
                gathered = job.result(60)
                told = [told_job(link) for link in (first, second)]
    expected = frames.Job(os.getpid(), gathered.meeting, options)
    assert told == [expected, expected]
    assert gathered.meeting.addresses == tuple(
        f"{host}:{port}" for host, port in told_hosts(options)
    )


def told_hosts(options: EngineOptions) -> tuple[tuple[str, int], ...]:
    assert options.hosts is not None
    return options.hosts.addresses


def test_who_is_missing_is_named(options: EngineOptions) -> None:
    gathering = Gathering(options, "model", lambda _: None)
    with pytest.raises(EngineError, match=r"rank 1 at 127\.0\.0\.1, rank 2 at"):
        gathering.gather(deadline_s=0)


def test_a_port_in_use_is_refused_in_one_line(options: EngineOptions) -> None:
    assert options.hosts is not None
    with (
        socket.create_server(control_address(options.hosts)),
        pytest.raises(ConfigError, match="cannot listen at 127"),
    ):
        Gathering(options, "model", lambda _: None)


def test_a_job_that_runs_here_is_refused_in_one_line(options: EngineOptions) -> None:
    gathering = Gathering(options, "model", lambda _: None)
    with pytest.raises(ConfigError, match="runs here already, as process"):
        Gathering(options, "model", lambda _: None)
    gathering.abandon()
    Gathering(options, "model", lambda _: None).abandon()


def test_strangers_keep_no_rank_waiting(options: EngineOptions) -> None:
    """A hundred that say nothing, one that sends noise, and a hello from another day."""
    assert options.hosts is not None
    address = control_address(options.hosts)
    gathering = Gathering(options, "model", lambda _: None)
    with gathered_by(gathering) as job, contextlib.ExitStack() as connections:
        for _ in range(100):
            silent = socket.create_connection(address, 60)
            connections.enter_context(silent)
        noisy = connections.enter_context(socket.create_connection(address, 60))
        noisy.sendall(os.urandom(4096))
        connections.enter_context(linked(options, 1))
        recorded = connections.enter_context(socket.create_connection(address, 60))
        assert replayed(recorded) == b""
        assert not job.done()
        connections.enter_context(linked(options, 2))
        assert len(job.result(60).links) == 2


def replayed(connection: socket.socket) -> bytes:
    """What rank 0 says after its challenge to a proof that was right for another."""
    mine, other = socket.socketpair()
    with mine, other, ThreadPoolExecutor(1) as threads:
        other.sendall(b"rvllm ranks 3\n" + b"c" * 32)
        entering = threads.submit(enter, mine, SECRET, 2)
        proof = receive_exactly(other, 32 + 2 + 32)
        other.close()
        assert entering.exception(60) is not None
    assert proof is not None
    receive_exactly(connection, 14 + 32)
    connection.sendall(proof)
    with contextlib.suppress(ConnectionError):
        return connection.recv(100)
    return b""
