"""A chat on a scripted server, in a terminal of fixed size, with everything that moves held still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet

from rvllm_local.tui.app import ChatApp
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.state import ConnectionState
from tests.tui.fake_endpoint import FakeEndpoint


class Chat:
    """An app under test: press keys, and wait for what must come."""

    def __init__(
        self, app: ChatApp, pilot: Any, fake: FakeEndpoint, notices: list[str]
    ) -> None:
        self.app, self.pilot, self.fake = app, pilot, fake
        self.notices = notices

    @property
    def session(self):
        return self.app.driver.session

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.session.messages]

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until it is so: keys, messages and frames take as long as they take."""
        ends_at = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < ends_at, self.screen()
            await asyncio.sleep(0.01)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        self.app.composer.insert(text)
        await self.pilot.pause()

    async def say(self, text: str) -> None:
        """Send a prompt and wait for the whole reply."""
        await self.type(text)
        await self.press("enter")
        await self.until(
            lambda: self.session.live is None and not self.app.composer.text
        )
        await self.app.driver.drain()

    async def told(self, words: str) -> None:
        """Wait until it was told; a busy machine may see it when it has gone again."""
        await self.until(lambda: any(words in notice for notice in self.notices))

    def screen(self) -> str:
        """What the terminal shows, as text."""
        from tests.tui.screens import screen_text

        return screen_text(self.app)


@pytest.fixture(autouse=True, scope="session")
def sheets_read_once() -> Iterator[None]:
    """Each app would parse the same style sheets anew, for a fifth of a test's time.

    Parsed rules hang on a sheet's text, its place and the theme's variables alone, and
    Textual changes none afterwards: it keeps them itself while a theme stays.
    """
    parse = Stylesheet._parse_rules
    known: dict[Any, list[RuleSet]] = {}

    def parse_once(sheet: Stylesheet, css: str, *place: Any, **more: Any) -> Any:
        variables = frozenset(sheet._variables.items())
        key = (css, variables, place, *sorted(more.items()))
        if key not in known:
            known[key] = parse(sheet, css, *place, **more)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stylesheet, "_parse_rules", parse_once)
        yield


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys may lie far apart, and writing takes long, where others work as well."""
    monkeypatch.setattr("rvllm_local.tui.app.INTERRUPT_S", 600.0)
    monkeypatch.setattr("rvllm_local.tui.effect_worker.CLOSING_S", 60.0)


@asynccontextmanager
async def opened(
    fake: FakeEndpoint,
    history: Path | None = None,
    size: tuple[int, int] = (80, 24),
    ready: bool = True,
    server: Any = None,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[Chat]:
    app = ChatApp(
        ChatOptions(history=history, **options),
        server or ServerLauncher(fake.url, None),
        clock or time.monotonic,
    )
    app.animation_level = "none"
    notices: list[str] = []
    notify = app.notify

    def noted(message: str, **options: Any) -> None:
        notices.append(message)
        notify(message, **options)

    app.notify = noted  # type: ignore[method-assign,assignment]
    async with app.run_test(size=size, notifications=True) as pilot:
        chat = Chat(app, pilot, fake, notices)
        if ready:
            await chat.until(lambda: chat.session.connection is ConnectionState.READY)
        try:
            yield chat
        finally:
            if app.is_running:
                await app.shut()


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run an async scenario on an open chat: `play(scenario, fake=..., size=...)`."""

    def run(
        scenario: Callable[[Chat], Any],
        fake: FakeEndpoint | None = None,
        keep: bool = True,
        **options: Any,
    ) -> None:
        async def main() -> None:
            path = tmp_path / "history.db" if keep else None
            async with opened(fake or FakeEndpoint(), path, **options) as chat:
                await scenario(chat)

        with (fake := fake or FakeEndpoint()):
            asyncio.run(main())

    return run
