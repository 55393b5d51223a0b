"""The chat's connection: kept, made again, and moved to another model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rvllm_local.tui.connection import ServerConnection
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.events import ConnectionChanged
from rvllm_local.tui.launcher import ServerLauncher, _next_line
from rvllm_local.tui.state import ConnectionState, ModelInfo
from tests.tui.fake_endpoint import FakeEndpoint
from tests.tui.test_connect import PULL, Starting, answers


class Fetching(Starting):
    """Starts a small server, and fetches by a small script."""

    def pull_command(self, name: str) -> list[str]:
        return [sys.executable, "-c", PULL, name]


@asynccontextmanager
async def connected(
    launcher: ServerLauncher,
) -> AsyncIterator[tuple[ServerConnection, Driver]]:
    driver = Driver(lambda session, event: None, lambda effect: None)
    driver.start()
    connection = ServerConnection(driver, launcher, None)
    try:
        assert await connection.connect() == ""
        yield connection, driver
    finally:
        await driver.close()
        await launcher.stop()


async def until(condition) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_model_is_fetched_and_takes_over() -> None:
    async def scenario() -> None:
        launcher = Fetching("one")
        async with connected(launcher) as (connection, driver):
            shown = []
            show = connection._show_download
            connection._show_download = lambda text: (shown.append(text), show(text))
            model = ModelInfo("two", size=400_000_000, installed=False)
            assert await connection.switch_model(model) == ""
            assert any("50%" in text for text in shown)
            assert connection.download == ""
            assert driver.session.model == "two"
            assert driver.session.connection is ConnectionState.READY

    asyncio.run(scenario())


def test_a_model_that_cannot_be_had_leaves_the_present_one() -> None:
    async def scenario() -> None:
        launcher = Fetching("one")
        async with connected(launcher) as (connection, driver):
            bad = ModelInfo("bad", installed=False)
            assert "no such model" in await connection.switch_model(bad)
            assert await answers(launcher.url)
            # One that is here but does not start: the one before comes back.
            problem = await connection.switch_model(ModelInfo("bad"))
            assert "bad cannot be fetched" in problem
            assert driver.session.connection is ConnectionState.READY
            assert (await driver.endpoint.models())[0].id == "one"

    asyncio.run(scenario())


def test_the_server_of_others_is_not_exchanged() -> None:
    async def scenario(fake: FakeEndpoint) -> None:
        async with connected(ServerLauncher(fake.url, None)) as (connection, _):
            problem = await connection.switch_model(ModelInfo("two"))
            assert "started by somebody else" in problem

    with FakeEndpoint() as fake:
        asyncio.run(scenario(fake))


def test_a_server_that_another_chat_uses_is_not_exchanged() -> None:
    async def scenario() -> None:
        first, second = Fetching("one"), Fetching("one")
        second.url = first.url
        async with connected(first) as (connection, _):
            await (await second.connect(lambda text: None)).close()
            await until(lambda: first.lease.count == 2)
            problem = await connection.switch_model(ModelInfo("two"))
            assert "two is here, but the server does not serve it" in problem
            assert await answers(first.url)  # it was not ended for that
            await second.stop()

    asyncio.run(scenario())


def test_what_a_ready_server_prints_does_not_end_the_connection() -> None:
    async def scenario() -> None:
        launcher = Fetching("one")
        async with connected(launcher) as (_, driver):
            endpoint = driver.endpoint
            launcher.lease.report("another model is ready")
            assert driver.session.connection is ConnectionState.READY
            assert driver.endpoint is endpoint

    asyncio.run(scenario())


def test_a_lost_server_is_told_and_started_again() -> None:
    async def scenario() -> None:
        launcher = Fetching("one")
        async with connected(launcher) as (connection, driver):
            keeping = asyncio.create_task(connection.keep())
            lease = launcher.lease
            await lease.end_server()
            await until(lambda: driver.session.connection is not ConnectionState.READY)
            await until(lambda: driver.session.connection is ConnectionState.READY)
            assert launcher.lease is not lease
            assert await answers(launcher.url)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")
def test_a_killed_keeper_leaves_no_server() -> None:
    async def scenario() -> None:
        launcher = Starting("one")
        await (await launcher.connect(lambda text: None)).close()
        door = launcher.lease._writer.get_extra_info("socket")
        size = struct.calcsize("3i")
        told = door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        keeper, _, _ = struct.unpack("3i", told)
        os.kill(keeper, signal.SIGKILL)
        async with asyncio.timeout(120):
            while await answers(launcher.url):
                await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):
            await launcher.stop()

    asyncio.run(scenario())


class EndingServer(ServerLauncher):
    """Its lease ends when told to, and nobody answers after that."""

    count = 1

    def __init__(self) -> None:
        super().__init__(None, None)
        self.lease = self
        self.over = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return self.over.is_set()

    async def ended(self) -> None:
        await self.over.wait()

    async def connect(self, report):
        await asyncio.Event().wait()


@pytest.mark.parametrize("turns", range(4))
def test_a_chat_that_quits_as_its_server_ends_has_quit(turns: int) -> None:
    async def scenario() -> None:
        launcher = EndingServer()
        driver = Driver(lambda session, event: None, lambda effect: None)
        driver.dispatch(ConnectionChanged(ConnectionState.READY, "", 0.0))
        connection = ServerConnection(driver, launcher, None)
        keeping = asyncio.create_task(connection.keep())
        for _ in range(5):
            await asyncio.sleep(0)
        launcher.over.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.wait([keeping], timeout=60)
        assert keeping.cancelled()

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(4))
def test_a_pause_that_comes_with_a_line_of_a_download_is_heard(turns: int) -> None:
    async def scenario() -> None:
        stream = asyncio.StreamReader()
        reading = asyncio.create_task(_next_line(stream))
        for _ in range(5):
            await asyncio.sleep(0)
        stream.feed_data(b"rvllm: fetched 45 MB\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        if reading.cancel():  # else the line was handed on before
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(scenario())
