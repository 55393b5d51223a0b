"""Much at once: sizes of the terminal, chats in the list, and text that is hard to lay out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual import events
from textual.geometry import Size

from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage
from rvllm_local.tui.render import render_markdown
from tests.tui.fake_endpoint import FakeEndpoint

HARD = {
    "wide": "漢字かな交じり文" * 40,
    "emoji": "👩‍👩‍👧‍👦👍🏽🇩🇪 " * 30,
    "combining": "e\u0301a\u0308" * 80,
    "piled": "a" + "\u0301" * 300,
    "right to left": "שלום עולם مرحبا بالعالم " * 20,
    "long word": "x" * 5_000,
    "tabs": "\t".join("abcdef"),
    "deep list": "\n".join("  " * depth + f"- level {depth}" for depth in range(30)),
    "deep quote": "> " * 40 + "deep",
    "mixed": "> - 1. > - **a** `b` [c](https://d)\n>   - | x |\n>     ```py\n>     1\n",
    "table": "| 漢字 | b |\n|--|--|\n| " + "长" * 200 + " | " + "y" * 300 + " |",
    "wide table": "|" + "a|" * 60 + "\n|" + "-|" * 60 + "\n|" + "b|" * 60,
    "math": r"\(" + r"\frac{" * 20 + "x" + "}{y}" * 20 + r"\) and \[ \unknown{x} \]",
    "open": "**bold `code [link](http://x\n\n```py\nhalf",
    "nothing": "\u200b\u200b",
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("width", [1, 8, 40])
def test_no_text_is_wider_than_its_place(name: str, width: int) -> None:
    """All of it is there, and what is laid out here fits where that can be done."""
    text = HARD[name]
    plain = render_markdown(text, width).plain
    for word in ("level 29", "deep", "half", "长" * min(width - 2, 8)):
        if word in text:
            assert word in plain
    if width == 40 and name in ("table", "wide table", "mixed"):
        assert max(map(cell_len, plain.split("\n"))) <= 40


def test_what_is_nested_too_deep_is_shown_as_it_is() -> None:
    text = "> " * 300 + "hidden"
    assert render_markdown(text, 80).plain == text


def test_hundreds_of_sizes_while_a_reply_is_written(play) -> None:
    fake = FakeEndpoint({"hi": [*HARD.values(), "hold", "\n\nthe end"]})
    sizes = [(1, 1), (10, 3), (3, 40), (500, 2), (80, 24), (200, 60)]
    choose = random.Random(20)
    sizes += [(choose.randint(1, 220), choose.randint(1, 70)) for _ in range(300)]

    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(fake.holding.is_set)
        for number, size in enumerate(sizes):
            chat.app._driver._size = Size(*size)
            chat.app.post_message(events.Resize(Size(*size), Size(*size)))
            if number % 25 == 0:
                await chat.pilot.pause()
        fake.release.set()
        await chat.pilot.resize_terminal(80, 24)
        await chat.until(lambda: chat.session.live is None)
        await chat.until(lambda: "the end" in chat.screen())
        await chat.until(lambda: max(map(cell_len, chat.screen().splitlines())) <= 80)

    play(scenario, fake)


@pytest.mark.parametrize("size", [(1, 1), (10, 3)])
def test_the_smallest_terminals_take_every_dialog(play, size) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        for key in ("f1", "ctrl+s", "ctrl+l", "ctrl+t", "ctrl+p", "ctrl+r", "f2"):
            await chat.press(key)
            await chat.pilot.pause()
            await chat.press("escape")
        await chat.press("alt+up", "ctrl+f")
        await chat.pilot.resize_terminal(80, 24)
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        await chat.until(lambda: "Hello there." in chat.screen())

    play(scenario, size=size)


def test_a_hundred_chats_are_listed_and_narrowed(play, tmp_path: Path) -> None:
    history = ChatHistory(tmp_path / "history.db")
    for number in range(100):
        history.add_chat(Chat(f"c{number}", f"chat {number} {'long ' * 20}"))
        text = f"all about subject {number}"
        history.add_message(ChatMessage(f"m{number}", f"c{number}", None, "user", text))
    history.close()

    async def scenario(chat) -> None:
        await chat.until(
            lambda: "chat 99 long" in chat.screen()
        )  # the list at the side
        await chat.press("ctrl+s")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        await chat.press(*"subject", "space", "7", "7")
        await chat.until(lambda: "all about subject 77" in chat.screen())
        await chat.press("enter")
        await chat.until(lambda: chat.texts == ["all about subject 77"])

    play(scenario, size=(180, 40))
