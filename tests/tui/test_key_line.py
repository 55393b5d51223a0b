"""The row of keys: what it shows, what a click does, and when it is drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.pilot import Pilot
from textual.widgets import Input

from rvllm_local.tui.widgets.key_line import KeyLine, ShownKey, fitting
from tests.tui.screens import screen_text


class Page(App[None]):
    """Two fields above the row; one binding is disabled, one is not shown."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "note", "Note"),
        Binding("f3", "note", "Note again"),
        Binding("f4", "refused", "Refused"),
        Binding("f5", "hidden", "Hidden", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.noted = 0

    def compose(self) -> ComposeResult:
        yield Input(id="one")
        yield Input(id="two")
        yield KeyLine()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return None if action == "refused" else True

    def action_note(self) -> None:
        self.noted += 1


def on_page(scenario: Callable[[Page, KeyLine, Pilot[None]], Awaitable[None]]) -> None:
    async def main() -> None:
        app = Page()
        async with app.run_test(size=(40, 10)) as pilot:
            await until(pilot, lambda: "Refused" in row(app))
            await scenario(app, app.query_one(KeyLine), pilot)

    asyncio.run(main())


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await pilot.pause(0.01)


def row(app: Page) -> str:
    return screen_text(app).splitlines()[-1]


def test_each_action_is_shown_once() -> None:
    async def scenario(app: Page, line: KeyLine, pilot: Pilot[None]) -> None:
        assert row(app).split() == ["f2", "Note", "f4", "Refused"]

    on_page(scenario)


def test_a_click_presses_the_key() -> None:
    async def scenario(app: Page, line: KeyLine, pilot: Pilot[None]) -> None:
        await pilot.click(KeyLine, offset=(2, 0))
        await until(pilot, lambda: app.noted == 1)
        await pilot.click(KeyLine, offset=(row(app).index("Refused"), 0))
        await pilot.click(KeyLine, offset=(39, 0))  # beside the keys
        await pilot.click(KeyLine, offset=(row(app).index("Note"), 0))
        await until(pilot, lambda: app.noted == 2)

    on_page(scenario)


def test_the_row_is_not_drawn_again_while_its_keys_stay() -> None:
    async def scenario(app: Page, line: KeyLine, pilot: Pilot[None]) -> None:
        drawn = []
        refresh = line.refresh

        def counted(*regions: object, **options: object) -> KeyLine:
            drawn.append(regions)
            return refresh()

        line.refresh = counted  # type: ignore[method-assign, assignment]
        for _ in range(3):
            await pilot.press("tab")
        await pilot.pause()
        assert not drawn
        app.bind("f6", "note_more", description="More")
        app.refresh_bindings()
        await until(pilot, lambda: "f6 More" in " ".join(row(app).split()))
        assert len(drawn) == 1

    on_page(scenario)


def test_keys_are_shown_whole_and_the_last_one_always() -> None:
    keys = [ShownKey("a", "^a", word, True) for word in ("New", "Chats", "Help")]
    widths = [key.width for key in keys]
    assert widths == [8, 10, 9]
    assert fitting(keys, 27) == keys
    assert fitting(keys, 26) == [keys[0], keys[2]]
    assert fitting(keys, 16) == fitting(keys, 1) == [keys[2]]
    assert fitting((), 80) == []
