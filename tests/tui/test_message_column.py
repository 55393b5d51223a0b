"""Of a long chat, only the messages near the view are mounted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from textual.app import App, ComposeResult

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.widgets import message_view
from rvllm_local.tui.widgets.message_column import MOUNTED, WINDOW, MessageColumn
from tests.tui.screens import screen_text

MOST = MOUNTED + WINDOW


class Page(App[None]):
    """A column alone on the screen."""

    CSS = """
    #transcript { height: 1fr; }
    .message, .live { height: auto; width: 100%; }
    """

    def compose(self) -> ComposeResult:
        yield MessageColumn()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {"muted": "#888888"}


def messages(count: int) -> tuple[ChatMessage, ...]:
    text = "message {}\n\nmore"
    return tuple(
        ChatMessage(f"m{number}", "c", None, "assistant", text.format(number))
        for number in range(count)
    )


def on_page(scenario: Callable[[MessageColumn, Any], Any]) -> None:
    async def main() -> None:
        app = Page()
        app.animation_level = "none"
        async with app.run_test(size=(40, 20)) as pilot:
            await pilot.pause()
            column = app.query_one(MessageColumn)
            column.show_messages(messages(120), {})
            await until(pilot, lambda: "message 119" in screen_text(app))
            await scenario(column, pilot)

    asyncio.run(main())


async def until(pilot: Any, condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await pilot.pause(0.01)


def mounted(column: MessageColumn) -> list[str]:
    return list(column._views)


def test_all_of_it_can_be_scrolled_through() -> None:
    async def scenario(column: MessageColumn, pilot: Any) -> None:
        def scroll(rows: int) -> str:
            assert len(column._views) <= MOST
            y = min(max(0, column.scroll_y + rows), column.max_scroll_y)
            column.scroll_to(y=y, animate=False)
            return screen_text(pilot.app)

        assert "m119" in mounted(column)
        await until(pilot, lambda: "message 0\n" in scroll(-40))
        assert "m119" not in mounted(column)
        await until(pilot, lambda: "message 119" in scroll(40))
        assert "m0" not in mounted(column)

    on_page(scenario)


def test_a_message_far_away_is_brought_with_its_neighbours() -> None:
    async def scenario(column: MessageColumn, pilot: Any) -> None:
        column.bring(50)
        assert "m50" in mounted(column) and len(column._views) <= MOST
        assert not column.is_at_end and not column.is_following
        column.follow()
        await until(pilot, lambda: "message 119" in screen_text(pilot.app))
        assert column.is_following

    on_page(scenario)


def test_what_is_added_is_mounted_where_the_end_is_in_view() -> None:
    async def scenario(column: MessageColumn, pilot: Any) -> None:
        column.show_messages(messages(121), {})
        await until(pilot, lambda: "message 120" in screen_text(pilot.app))
        column.bring(0)
        live = column.begin_reply("r")
        column.show_messages(messages(122), {})
        assert "m121" not in mounted(column) and not live.display
        column.follow()
        assert "m121" in mounted(column) and live.display

    on_page(scenario)


def test_another_branch_takes_the_place_of_what_is_mounted() -> None:
    async def scenario(column: MessageColumn, pilot: Any) -> None:
        column.bring(0)
        branch = ChatMessage("b", "c", None, "assistant", "another branch")
        column.show_messages((*messages(10), branch), {})
        assert mounted(column)[-1] == "b" and column.is_at_end
        await until(pilot, lambda: "another branch" in screen_text(pilot.app))
        column.show_messages((), {})
        assert mounted(column) == []

    on_page(scenario)


def test_a_message_is_laid_out_once_for_a_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[tuple[str, int | None]] = []

    def render(message: ChatMessage, *rest: Any) -> Any:
        widths.append((message.id, rest[-1]))
        return real(message, *rest)

    real = message_view.render_message
    monkeypatch.setattr(message_view, "render_message", render)

    async def scenario(column: MessageColumn, pilot: Any) -> None:
        await pilot.resize_terminal(30, 20)
        await until(pilot, lambda: column.size.width == 30)
        await until(pilot, lambda: "message 119" in screen_text(pilot.app))
        assert len(widths) == len(set(widths)) >= len(mounted(column))

    on_page(scenario)
