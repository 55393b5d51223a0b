"""A download is paused, goes on and is cancelled, where it is shown."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.keeper import _end
from rvllm_local.tui.launcher import Report, ServerLauncher
from rvllm_local.tui.screens.dialogs import Confirm
from rvllm_local.tui.state import ConnectionState, ModelInfo
from rvllm_local.tui.status import status_content
from tests.tui.fake_endpoint import FakeEndpoint
from tests.tui.test_beside import Fetching
from tests.tui.test_parts import session


class Slow(Fetching):
    """Its downloads come as far as a half, until they may go on."""

    def __init__(self, fake: FakeEndpoint) -> None:
        super().__init__(fake)
        self.may_end = asyncio.Event()

    async def fetch(self, model: ModelInfo, report: Report) -> None:
        report(f"fetching {model.id} · 50%")
        self.fetched.append(model.id)
        await self.may_end.wait()
        self.fake.models.append({"id": model.id})


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of which what had come was deleted."""
    names: list[str] = []

    def forget(name: str) -> int:
        names.append(name)
        return 5_000_000

    monkeypatch.setattr("rvllm_local.tui.download_actions.forget_download", forget)
    return names


def test_a_download_is_paused_and_goes_on(play, forgotten: list[str]) -> None:
    fake = FakeEndpoint()

    async def scenario(chat) -> None:
        await chat.say("/model late")
        await chat.until(lambda: "fetching late  50%  Esc pauses" in chat.screen())
        await chat.press("escape")
        await chat.until(lambda: "paused: late" in chat.screen())
        await chat.until(lambda: "late is here in part" in chat.screen())
        await chat.press("f4")
        await chat.until(lambda: chat.app.server.fetched == ["late", "late"])
        await chat.say("/pause")
        await chat.until(lambda: "paused: late" in chat.screen())
        await chat.say("/pause")
        chat.app.server.may_end.set()
        await chat.until(lambda: chat.session.model == "late")
        await chat.until(lambda: "paused: late" not in chat.screen())
        assert forgotten == []

    play(scenario, fake, server=Slow(fake))


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_download_is_cancelled(play, forgotten: list[str], is_paused: bool) -> None:
    fake = FakeEndpoint()

    async def scenario(chat) -> None:
        await chat.say("/cancel")
        await chat.told("nothing is being fetched")
        await chat.say("/model late")
        await chat.until(lambda: "fetching late" in chat.screen())
        if is_paused:
            await chat.press("escape")
            await chat.until(lambda: "paused: late" in chat.screen())
        await chat.say("/cancel")
        await chat.until(lambda: isinstance(chat.app.screen, Confirm))
        await chat.press("n")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert forgotten == []
        await chat.say("/cancel")
        await chat.until(lambda: isinstance(chat.app.screen, Confirm))
        await chat.press("y")
        await chat.told("cancelled late; 5 MB were removed")
        assert forgotten == ["late"]
        await chat.until(lambda: "late" not in last_lines(chat))
        assert chat.session.model == "small"

    play(scenario, fake, server=Slow(fake))


def last_lines(chat: Any) -> str:
    """The status line and what is below it."""
    return "\n".join(chat.screen().splitlines()[-5:])


class FetchingFirst(ServerLauncher):
    """A server that fetches its first model, until it is ended."""

    is_fetching = True

    def __init__(self, url: str) -> None:
        super().__init__(url, None)
        self.lease: Any = SimpleNamespace(count=1, is_over=False)
        self.starts = 0
        self.is_ended = False

    async def connect(self, report: Report) -> ChatEndpoint:
        self.starts += 1
        if self.starts > 1:
            return ChatEndpoint(self.url)
        report("fetching first · 33% · for 2 s")
        await asyncio.Event().wait()
        raise AssertionError

    async def end(self) -> None:
        self.is_ended = True
        self.lease = None


def test_the_first_download_is_paused_and_the_prompt_waits(play) -> None:
    fake = FakeEndpoint()

    async def scenario(chat) -> None:
        server = chat.app.server
        await chat.until(lambda: "fetching first  33%" in chat.screen())
        await chat.type("hi")
        await chat.press("enter")
        server.lease.count = 2
        await chat.press("escape")
        await chat.told("another chat waits for this download, too")
        server.lease.count = 1
        await chat.press("escape")
        await chat.until(lambda: "the download is paused; F4 goes on" in chat.screen())
        assert server.is_ended and server.starts == 1
        assert chat.session.connection is ConnectionState.LOST
        await chat.press("f4")
        await chat.until(lambda: chat.texts == ["hi", "Hello there."])

    play(scenario, fake, server=FetchingFirst(fake.url), ready=False)


def test_a_narrow_line_keeps_how_far_the_download_is() -> None:
    download = "fetching late · ███ 50% · 2 min left · 1.1 of 2.3 GB · 11.0 MB/s"
    wide = status_content(session(), 100, download=download).plain
    assert wide.endswith("2 min left  1.1 of 2.3 GB  11.0 MB/s  Esc pauses")
    small = status_content(session(), 40, download=download).plain
    assert small == "qwen3-8b 4bit  fetching late  ███ 50%"
    least = status_content(session(), 26, download=download).plain
    assert least == "fetching late"


def test_what_a_server_ran_ends_with_it() -> None:
    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            "sleep 600 & echo $!; wait",
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        await process.stdout.readline()
        await _end(process)
        # The pipe is closed once the sleeper is gone, too.
        assert await asyncio.wait_for(process.stdout.read(), 60) == b""

    asyncio.run(scenario())
