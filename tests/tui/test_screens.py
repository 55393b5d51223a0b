"""What the screens look like: some twenty of them, at a fixed size, with a still clock and a scripted session."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, TextArea

from rvllm_local.history.types import Chat as KeptChat
from rvllm_local.history.types import ChatMessage, MessageState, ToolCall
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.events import (
    ChatChanged,
    ConnectionChanged,
    EngineSeen,
    PromptSubmitted,
    ReplyFinished,
    ReplyGrew,
    ReplyRegenerated,
    ReplyStopped,
    UsageReceived,
)
from rvllm_local.tui.first_start import BestModel
from rvllm_local.tui.screens.chats import ChatsScreen
from rvllm_local.tui.server_answers import read_engine
from rvllm_local.tui.state import ConnectionState, EngineView, ModelInfo, RunningRequest
from rvllm_local.tui.widgets.answers import compare_screen
from tests.tui.conftest import Chat, opened
from tests.tui.fake_endpoint import ENGINE
from tests.tui.screens import check_snapshot, kept_screen, snapshot

NOW = 1_800_000_000.0
MODELS = (
    ModelInfo("qwen3-8b-4bit", 32_768, size=4_600_000_000, fits=True),
    ModelInfo("smollm2-135m", 8_192, size=98_000_000, fits=True),
    ModelInfo("llama-3.3-70b-4bit", 131_072, size=39_700_000_000, fits=False),
    ModelInfo(
        "gemma-3-4b-4bit",
        131_072,
        served=False,
        installed=False,
        size=2_600_000_000,
        fits=True,
    ),
)
REPLY = """## Why the sky is blue

Sunlight is scattered by air, and **blue light** most of all:

1. short waves scatter more (`~ 1/λ⁴`)
2. the eye sees *less* violet

```python
def scattered(wavelength):
    return wavelength ** -4
```

| colour | nm |
|--------|----|
| blue | 450 |
| red | 700 |
"""


class StillServer:
    """A server that is there, says nothing, and shows an engine."""

    is_child = False
    lease = None
    is_fetching = False
    models_told = MODELS

    async def connect(self, _report: Any) -> StillServer:
        return self

    async def models(self) -> tuple[ModelInfo, ...]:
        return self.models_told

    async def engine(self, model: str | None = None) -> EngineView:
        return read_engine(ENGINE, None)

    async def chat(self, *_: Any) -> AsyncGenerator[dict[str, Any], None]:
        await asyncio.Event().wait()
        yield {}

    def offers(self, _served: Any) -> tuple[ModelInfo, ...]:
        return ()

    async def health(self) -> tuple[bool, str]:
        return True, ""

    async def close(self) -> None: ...

    async def stop(self) -> None: ...


def fields(chat: Chat, kind: type[Input | TextArea]) -> list[Any]:
    """The fields of all screens: one behind a dialog has a cursor, too."""
    return [field for screen in chat.app.screen_stack for field in screen.query(kind)]


async def at_rest(chat: Chat) -> None:
    """Until the screen has stayed the same for a while."""
    shown, same = "", 0
    while same < 4:
        for kind in (Input, TextArea):
            for field in fields(chat, kind):
                field.cursor_blink = False
                field._cursor_visible = True
        await asyncio.sleep(0.03)
        await chat.pilot.pause()
        present = snapshot(chat.app)
        same = same + 1 if present == shown else 0
        shown = present


def ask(chat: Chat, text: str = "Why is the sky blue?", at: float = 0.0) -> None:
    chat.app.driver.dispatch(PromptSubmitted(text, f"p{at}", f"r{at}", at))


def answer(chat: Chat, text: str = REPLY, at: float = 0.0, **parts: Any) -> None:
    """A whole reply, at 50 tokens a second."""
    reply = f"r{at}"
    chat.app.driver.dispatch(ReplyGrew(reply, at + 0.21, text[:10], **parts))
    chat.app.driver.dispatch(ReplyGrew(reply, at + 2.21, text[10:], num_chunks=100))
    chat.app.driver.dispatch(UsageReceived(reply, 12_000, 101, 11_900))
    chat.app.driver.dispatch(ReplyFinished(reply, "stop", at + 2.3))


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Show a scene and compare the screen with the kept one."""
    monkeypatch.setattr("rvllm_local.tui.render.shown_time", lambda seconds: "14:02")

    def run(
        name: str,
        scene: Callable[[Chat], Any],
        size: tuple[int, int] = (80, 24),
        **options: Any,
    ) -> None:
        async def main() -> None:
            path = tmp_path / "history.db"
            async with opened(
                None, path, size, server=StillServer(), clock=lambda: 2.5, **options
            ) as chat:  # type: ignore[arg-type]
                await chat.until(lambda: chat.session.engine is not None)
                await scene(chat)
                await at_rest(chat)
                is_updated = "RVLLM_UPDATE_SCREENS" in os.environ
                # A machine full of other work may rest in the middle.
                for attempt in range(100):
                    is_kept = snapshot(chat.app) == kept_screen(name)
                    if is_kept or (is_updated and attempt == 2):
                        break
                    await asyncio.sleep(0.3)
                    await at_rest(chat)
                check_snapshot(chat.app, name, tmp_path)

        asyncio.run(main())

    return run


async def empty(_chat: Chat) -> None: ...


async def settled(chat: Chat) -> None:
    ask(chat)
    answer(chat)


async def streaming(chat: Chat) -> None:
    ask(chat)
    await streaming_words(chat)


async def streaming_words(chat: Chat) -> None:
    await chat.until(lambda: chat.app.transcript.live)
    chat.app.driver.dispatch(
        ReplyGrew(
            "r0.0",
            0.3,
            "Sunlight is *scattered*\n\n- by air\n- by `dust`\n\n```py\nx = 1\n```\n",
        )
    )
    await chat.until(lambda: "scattered" in chat.screen() and "x = 1" in chat.screen())


async def streaming_after_a_wait(chat: Chat) -> None:
    ask(chat)
    await chat.until(lambda: "waiting for the first word" in chat.screen())
    await streaming_words(chat)


async def prefill(chat: Chat) -> None:
    ask(chat)
    await chat.until(lambda: chat.app.transcript.live)
    running = (RunningRequest("1", "prefill", 8_000, 3_000, 0, 0),)
    chat.app.driver.dispatch(
        EngineSeen(replace(read_engine(ENGINE, None), requests=running))
    )
    chat.app._look = lambda: None
    await chat.app._tick()


async def thinking(chat: Chat) -> None:
    ask(chat)
    await chat.until(lambda: chat.app.transcript.live)
    chat.app.driver.dispatch(
        ReplyGrew(
            "r0.0", 0.3, reasoning="The question is about light. Rayleigh, surely."
        )
    )
    await chat.until(lambda: "Rayleigh" in chat.screen())


async def folded(chat: Chat) -> None:
    ask(chat)
    answer(
        chat,
        "Because of Rayleigh scattering.",
        reasoning="The question is about light.",
    )


async def unfolded(chat: Chat) -> None:
    await folded(chat)
    await at_rest(chat)
    await chat.press("alt+up", "t")


async def tools(chat: Chat) -> None:
    ask(chat, "What time is it?")
    answer(
        chat,
        "It is noon in Oslo.",
        tool_calls=(ToolCall("clock", '{"zone": "Europe/Oslo"}'),),
    )


async def failed(chat: Chat) -> None:
    ask(chat)
    chat.app.driver.dispatch(ReplyGrew("r0.0", 0.3, "Because"))
    live = chat.session.live
    chat.app.driver.sessions.present = replace(
        chat.session, live=None, messages=(*chat.session.messages, *broken())
    )
    assert live is not None
    chat.app.driver.dispatch(
        ConnectionChanged(
            ConnectionState.LOST, "no server answers at http://127.0.0.1:8473"
        )
    )


def broken() -> tuple[ChatMessage, ...]:
    error = {"error": "the server closed the connection in the middle of the reply"}
    return (
        ChatMessage(
            "x",
            "c",
            None,
            "assistant",
            "Because of",
            state=MessageState.FAILED,
            figures=error,
        ),
    )


async def versions(chat: Chat) -> None:
    ask(chat)
    answer(chat, "One answer.")
    await chat.app.driver.drain()
    chat.app.driver.dispatch(ReplyRegenerated("r0.0", "r5.0", 5.0))
    chat.app.driver.dispatch(ReplyGrew("r5.0", 5.2, "Another answer that was"))
    chat.app.driver.dispatch(ReplyStopped(5.5))
    await chat.app.driver.drain()
    await at_rest(chat)
    await chat.press("alt+up")


async def engine(chat: Chat) -> None:
    await settled(chat)
    rows = (
        RunningRequest("1", "prefill", 8_000, 3_000, 0, 512),
        RunningRequest("2", "decode", 900, 900, 51, 512),
    )
    chat.app._look = lambda: None
    await chat.press("ctrl+b")
    chat.app.driver.dispatch(
        EngineSeen(
            replace(
                read_engine(ENGINE, None),
                requests=(*rows, RunningRequest("3", "waiting", 40, 0, 0, 0)),
            )
        )
    )


async def models(chat: Chat) -> None:
    await settled(chat)
    await chat.press("ctrl+l")
    await chat.until(lambda: len(chat.app.screen_stack) == 2)


def kept(chat: Chat) -> Driver:
    history = chat.app.driver.history
    for number, title in enumerate(
        ("Blue skies", "A list of whales", "Rust lifetimes")
    ):
        history.add_chat(KeptChat(f"k{number}", title))
        history.add_message(
            ChatMessage(
                f"k{number}m",
                f"k{number}",
                None,
                "user",
                f"tell me of {title.lower()} [/x] \x1b[2J",
            )
        )
        with history._write() as db:
            db.execute(
                "UPDATE chat SET updated = ? WHERE id = ?",
                (NOW - 90_000 * number - 70, f"k{number}"),
            )
    return chat.app.driver


async def chats(chat: Chat) -> None:
    chat.app.push_screen(ChatsScreen(kept(chat), now=NOW))


async def search(chat: Chat) -> None:
    chat.app.push_screen(ChatsScreen(kept(chat), "whale", now=NOW))


async def parameters(chat: Chat) -> None:
    chat.app.driver.dispatch(
        ChatChanged({"system": "Be brief.", "params": {"temperature": 0.2, "seed": 7}})
    )
    await chat.press("ctrl+t")
    await chat.until(lambda: len(chat.app.screen_stack) == 2)
    await chat.until(lambda: chat.app.screen.query_one("#system").has_focus)
    # A cursor in its text is drawn or not by where a blink was stopped.
    chat.app.screen.query_one("#system", TextArea).show_cursor = False


async def help_(chat: Chat) -> None:
    await chat.press("f1")


async def find(chat: Chat) -> None:
    await settled(chat)
    await chat.press("ctrl+f", *"sky", "enter")


async def hints(chat: Chat) -> None:
    await chat.press("slash", "e")


async def confirm(chat: Chat) -> None:
    await settled(chat)
    await chat.app.driver.drain()
    await at_rest(chat)
    await chat.press("alt+up", "d")


async def hostile(chat: Chat) -> None:
    ask(chat, "[/x] \x1b[2J")
    answer(
        chat,
        "\x1b]52;c;eA==\x07 [bold]x[/] \x9b31m \u202eevil\u202c [ok](http://evil.example)\n\n```\nhalf \x1bopen",
    )


async def long_prompt(chat: Chat) -> None:
    await chat.type(
        "\n".join(f"line {number} of a long prompt" for number in range(20))
    )


async def compare(chat: Chat) -> None:
    """Two settled answers; nothing asks a server here."""
    await settled(chat)
    driver = chat.app.driver
    other = replace(chat.session.messages[-1], id="other", text="Light is scattered.")
    messages = (*chat.session.messages[:-1], other)
    driver.sessions.rival = replace(chat.session, model="large", messages=messages)
    chat.app.push_screen(compare_screen(driver))


async def at_the_side(chat: Chat) -> None:
    kept(chat)
    chat.app.shelf.move("k2", "Work")
    chat.app.shelf.toggle_pin("k1")
    await settled(chat)
    await chat.until(lambda: "★ A list of whales" in chat.screen())


async def first_start(chat: Chat) -> None:
    info = ModelInfo("qwen3-4b", size=2_300_000_000, license="Apache-2.0")
    chat.app.best = BestModel(replace(info, installed=False), 9.2)
    chat.app.show_welcome()


SCENES = {
    "empty": (empty, {}),
    "settled": (settled, {"size": (80, 30)}),
    "streaming": (streaming, {}),
    "prefill": (prefill, {}),
    "thinking": (thinking, {}),
    "folded": (folded, {}),
    "unfolded": (unfolded, {}),
    "tools": (tools, {}),
    "failed": (failed, {}),
    "versions": (versions, {}),
    "engine": (engine, {"size": (110, 36)}),
    "models": (models, {}),
    "chats": (chats, {}),
    "search": (search, {}),
    "parameters": (parameters, {"size": (80, 40)}),
    "help": (help_, {"size": (90, 56)}),
    "find": (find, {}),
    "hints": (hints, {}),
    "confirm": (confirm, {}),
    "hostile": (hostile, {}),
    "long_prompt": (long_prompt, {}),
    "temporary": (empty, {"is_temporary": True, "system": "Be brief."}),
    "small": (settled, {"size": (40, 10)}),
    "small_light": (settled, {"size": (40, 10), "theme": "light"}),
    "small_terminal": (settled, {"size": (40, 10), "theme": "terminal"}),
    "middle": (settled, {"size": (120, 40)}),
    "middle_light": (settled, {"size": (120, 40), "theme": "light"}),
    "middle_terminal": (settled, {"size": (120, 40), "theme": "terminal"}),
    "large": (at_the_side, {"size": (200, 60)}),
    "large_light": (at_the_side, {"size": (200, 60), "theme": "light"}),
    "large_terminal": (at_the_side, {"size": (200, 60), "theme": "terminal"}),
    "compare": (compare, {"size": (100, 24)}),
    "first_start": (first_start, {}),
    "light": (settled, {"theme": "light"}),
    "high_contrast": (settled, {"theme": "high-contrast"}),
    "terminal": (settled, {"theme": "terminal"}),
}


@pytest.mark.parametrize("name", SCENES)
def test_screen(still, name: str) -> None:
    scene, options = SCENES[name]
    still(name, scene, **options)


def test_a_reply_stands_where_it_stood_if_its_wait_was_shown(still) -> None:
    still("streaming", streaming_after_a_wait)
