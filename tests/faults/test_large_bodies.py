"""Large bodies wait for each other, hold up nobody else, and give their memory back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local.errors import ParameterError
from rvllm_local.param_values import MAX_STOP_LENGTH
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.types import SamplingParams
from tests.support.api import CHAT, PacedClient, Running, served

KB = 2**10
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)


@pytest.fixture(scope="module")
def running(tiny: Path) -> Iterator[Running]:
    settings = ServerSettings(port=0, body_timeout_s=2.0)
    with served(
        {"tiny": tiny}, settings, opener=lambda files, options: PacedClient()
    ) as running:
        running.post(CHAT)
        yield running


def run_in_order(budget: ByteBudget, sizes: list[int]) -> list[int]:
    """Sizes in the order in which they got their turn, all asked for at once."""
    turns: list[int] = []

    async def use(size: int) -> None:
        async with budget.held(size):
            turns.append(size)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(*(use(size) for size in sizes))

    asyncio.run(all_of_them())
    return turns


def test_small_ones_pass_and_large_ones_come_in_order_of_size() -> None:
    budget = ByteBudget([(1000 * KB, 300 * KB)])
    sizes = [size * KB for size in (250, 900, 200, 1, 100)]
    # The largest has room for itself alone, when nothing else is held.
    assert run_in_order(budget, sizes) == [
        size * KB for size in (250, 1, 100, 200, 900)
    ]


def test_classes_do_not_wait_for_each_other() -> None:
    budget = ByteBudget([(200 * KB, 200 * KB), (10**6 * KB, 10**6 * KB)])

    async def medium_beside_large() -> None:
        async with budget.held(10**6 * KB), budget.held(150 * KB):
            pass

    asyncio.run(medium_beside_large())


def test_one_that_goes_away_while_it_waits_holds_nothing() -> None:
    budget = ByteBudget([(10**6 * KB, 100 * KB)])

    async def leave() -> None:
        first, second, third = budget.hold(), budget.hold(), budget.hold()
        await first.take(90 * KB)
        waiting = asyncio.ensure_future(second.take(80 * KB))
        await asyncio.sleep(0)
        waiting.cancel()
        first.release()
        first.release()
        await third.take(100 * KB)
        third.release()

    asyncio.run(leave())


def announced(running: Running, num_bytes: int) -> socket.socket:
    """A client that announces a body and sends none of it."""
    connection = running.connect()
    connection.sendall(HEAD.format(num_bytes).encode())
    return connection


def test_slow_large_bodies_hold_up_no_other_size(running: Running) -> None:
    slow = [announced(running, 15 * 2**20) for _ in range(3)]
    medium = "x" * 300 * KB
    answer = running.post({**CHAT, "messages": [{"role": "user", "content": medium}]})
    assert answer.status_code in (200, 400)  # before the slow ones' two seconds
    assert running.post(CHAT).status_code == 200
    ends = []
    for connection in slow:
        with connection:
            ends.append(connection.recv(65536).split(b"\r\n")[0])
    assert {end.split()[1] for end in ends} <= {b"408", b"503"}


def test_a_body_without_a_length_is_weighed_as_it_comes(running: Running) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "x" * 200 * KB}]}
    chunks = iter([str(body).replace("'", '"').encode()])
    answer = running.client.post(
        "/v1/chat/completions",
        content=chunks,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code in (200, 400)
    assert answer.json()


def test_a_giant_stop_string_is_refused_with_words(running: Running) -> None:
    with pytest.raises(ParameterError, match="has 1025 characters; at most 1024"):
        SamplingParams(stop="x" * (MAX_STOP_LENGTH + 1))
    answer = running.post({**CHAT, "stop": ["x" * 10**6] * 4})
    assert answer.status_code == 400
    assert "1000000 characters" in answer.json()["error"]["message"]
