"""Every theme at every size: it is drawn, nothing leaves its column, all text is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from rich.color import Color, ColorSystem
from rich.segment import Segment

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.themes import CHOICES
from tests.tui.conftest import Chat, opened
from tests.tui.fake_endpoint import FakeEndpoint
from tests.tui.test_blocks import LONG, SAMPLE, TABLE

SIZES = [(40, 10), (80, 24), (120, 40), (200, 60)]
CODE = "```python\ndef f(x):  # a comment\n    return 'text'\n```\n"
DIFF = "```diff\n- old\n+ new\n@@ here @@\n```\n- [ ] open\n- [x] done\n"
REPLY = f"{SAMPLE}\n{TABLE}\n{CODE}\n{DIFF}\n**bold** *italic* `code` [link](https://x.org) $x^2$\n"
THREAD = (
    ChatMessage("a", "c", None, "user", LONG),
    ChatMessage("b", "c", "a", "assistant", REPLY, reasoning="hm"),
    ChatMessage("d", "c", "b", "user", "short"),
)
LEAST_CONTRAST = 3.0  # of words; what is read at length has more, see test_blocks


def segments(chat: Chat) -> Iterator[Segment]:
    for strip in chat.app.screen._compositor.render_strips():
        for segment in strip:
            if any(letter.isalnum() for letter in segment.text):
                yield segment


def transcript_rows(chat: Chat) -> list[str]:
    """The rows of the messages, each from the transcript's own left edge."""
    region = chat.app.transcript.region
    rows = chat.screen().split("\n")[region.y : region.bottom]
    return [row[region.x :] for row in rows]


async def whole_thread(chat: Chat) -> Iterator[None]:
    """Show the messages part by part, from the first line to the last."""
    transcript = chat.app.transcript
    transcript.show_messages(THREAD, {})
    transcript.release_anchor()
    await chat.pilot.pause()
    for part in range(3):
        transcript.scroll_to(y=transcript.max_scroll_y * part / 2, animate=False)
        await chat.pilot.pause()
        yield


@pytest.mark.parametrize("name", CHOICES)
def test_a_theme_is_drawn_at_every_size(name: str) -> None:
    async def scenario() -> None:
        async with opened(fake, None, theme=name) as chat:
            for width, height in SIZES:
                await chat.pilot.resize_terminal(width, height)
                async for _ in whole_thread(chat):
                    check_indent(chat)
                    for segment in segments(chat):
                        check_is_seen(segment)

    with FakeEndpoint() as fake:
        asyncio.run(scenario())


def check_indent(chat: Chat) -> None:
    """No line of a message begins left of the messages' own column."""
    for row in transcript_rows(chat):
        text = row.rstrip()
        assert not text or text[0] in " ▌▍▎│", repr(row)


def check_is_seen(segment: Segment) -> None:
    """The text is another colour than its ground, with sixteen colours too."""
    style = segment.style
    assert style is not None, segment
    if style.color is None or style.color.is_default:
        return  # the terminal's own, which its owner can read
    if style.bgcolor is None or style.bgcolor.is_default:
        return
    if style.color.triplet is not None and style.bgcolor.triplet is not None:
        ratio = contrast(style.color.triplet, style.bgcolor.triplet)
        assert ratio >= LEAST_CONTRAST, (segment, ratio)
    for system in (ColorSystem.EIGHT_BIT, ColorSystem.STANDARD):
        text = style.color.downgrade(system)
        ground = style.bgcolor.downgrade(system)
        assert text.number != ground.number, (segment, system)


def ground_of(chat: Chat, word: str) -> Color | None:
    """The ground of the first text of a dialog that holds a word."""
    for segment in segments(chat):
        if word in segment.text and segment.style is not None:
            return segment.style.bgcolor
    return None


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(triplet: tuple[int, int, int]) -> float:
    parts = []
    for value in triplet:
        share = value / 255
        low = share / 12.92
        parts.append(low if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4)
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("name", CHOICES)
def test_without_colours_all_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def scenario() -> None:
        async with opened(fake, None, size=(80, 24), theme=name) as chat:
            assert chat.app.no_color
            async for _ in whole_thread(chat):
                check_indent(chat)
                for segment in segments(chat):
                    check_is_seen(segment)
                    for colour in (segment.style.color, segment.style.bgcolor):
                        if colour is not None and colour.triplet is not None:
                            assert len(set(colour.triplet)) == 1, segment
            await chat.press("ctrl+l")
            await chat.until(lambda: "Enter chooses" in chat.screen())
            assert ground_of(chat, "● small") != ground_of(chat, "  large")

    with FakeEndpoint() as fake:
        asyncio.run(scenario())
