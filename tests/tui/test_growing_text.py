"""What is drawn while a reply grows: counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from textual.app import App, ComposeResult
from textual.content import Content
from textual.selection import SELECT_ALL
from textual.widgets import Static

from rvllm_local.tui.widgets.growing_text import GrowingText
from rvllm_local.tui.widgets.kept_lines import KeptStatic
from tests.tui.screens import screen_text


class Page(App[None]):
    """A growing text above a plain one."""

    CSS = "GrowingText { width: 1fr; height: auto; }"

    def compose(self) -> ComposeResult:
        yield GrowingText()
        yield KeptStatic("below", markup=False)


async def shown(app: Page, pilot: Any, words: str) -> None:
    """Wait until these words are on the screen, in rows of their own or not."""
    async with asyncio.timeout(60):
        while words not in " ".join(screen_text(app).split()):
            await pilot.pause(0.01)


def on_page(scenario: Callable[[Page, GrowingText, Any], Any]) -> None:
    async def main() -> None:
        app = Page()
        async with app.run_test(size=(20, 12)) as pilot:
            text = app.query_one(GrowingText)
            await shown(app, pilot, "below")
            await scenario(app, text, pilot)

    asyncio.run(main())


def test_only_rows_that_changed_are_drawn() -> None:
    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        text.show(Content("one\ntwo\nthree"))
        await shown(app, pilot, "one two three below")
        before = text.num_drawn
        wrapped = text.num_wrapped
        text.show(Content("one\ntwo\nthree and"))
        await shown(app, pilot, "three and below")
        assert text.num_drawn == before + 1
        assert text.num_wrapped == wrapped + 1
        text.show(Content("one\ntwo\nthree and\nfour"))
        await shown(app, pilot, "one two three and four below")
        assert text.num_drawn == before + 2

    on_page(scenario)


def test_what_has_settled_is_wrapped_no_more() -> None:
    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        text.show(Content("one\ntwo"))
        text.settle(Content("one\ntwo"), Content("th"), is_joined=False)
        await shown(app, pilot, "one two th below")
        wrapped = text.num_wrapped
        drawn = text.num_drawn
        text.show(Content("three"))
        await shown(app, pilot, "one two three below")
        assert text.num_wrapped == wrapped + 1
        assert text.num_drawn == drawn + 1
        assert screen_text(app).splitlines()[:5] == ["one", "two", "", "three", "below"]

    on_page(scenario)


def test_blank_rows_are_filled_without_a_layout() -> None:
    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        below = app.query_one(KeptStatic)

        async def at(row: int) -> None:
            async with asyncio.timeout(60):
                while below.region.y != row:
                    await pilot.pause(0.01)

        text.grow_by(4)
        text.show(Content("one\ntwo"))
        await at(4)
        layouts: list[None] = []
        app.screen.screen_layout_refresh_signal.subscribe(
            text, lambda _: layouts.append(None), immediate=True
        )
        text.show(Content("one\ntwo\nthree"))
        await shown(app, pilot, "one two three below")
        text.settle(Content("one\ntwo\nthree"), Content("four"), is_joined=True)
        await shown(app, pilot, "one two three four below")
        text.show(Content(""))
        await shown(app, pilot, "one two three below")
        text.show(Content("four"))
        await shown(app, pilot, "one two three four below")
        assert layouts == []
        text.show(Content("four\nfive"))
        await at(8)
        rows = screen_text(app).splitlines()[4:9]
        assert rows == ["five", "", "", "", "below"]
        text.grow_by(1)
        await at(5)

    on_page(scenario)


def test_another_width_wraps_all_of_it() -> None:
    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        text.settle(Content("a b c d e f g"), Content("the end"), is_joined=True)
        await shown(app, pilot, "g the end below")
        await pilot.resize_terminal(8, 12)
        async with asyncio.timeout(60):
            while app.query_one(KeptStatic).region.y != 3:
                await pilot.pause(0.01)
        rows = [row.strip() for row in screen_text(app).splitlines()]
        assert rows[:4] == ["a b c d", "e f g", "the end", "below"]

    on_page(scenario)


def test_it_looks_as_a_static_does() -> None:
    content = Content.assemble(
        ("bold words ", "bold"), "that are wrapped, ", ("and muted", "italic $accent")
    )

    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        text.show(content)
        await app.mount(Static(content, markup=False))
        words = "bold words that are wrapped, and muted"
        await shown(app, pilot, f"{words} below {words}")
        rows = app.screen._compositor.render_strips()
        for row in range(2):
            grown, plain = rows[row].simplify(), rows[3 + row].simplify()
            assert grown.text == plain.text
            assert colours(grown) == colours(plain)

    on_page(scenario)


def colours(strip: Any) -> list[Any]:
    return [segment.style.color for segment in strip if segment.style]


def test_marked_text_is_copied_as_it_was_written() -> None:
    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        text.settle(Content("one long line that wraps"), Content("end"), is_joined=True)
        await shown(app, pilot, "wraps end below")
        app.screen.selections = {text: SELECT_ALL}
        assert app.screen.get_selected_text() == "one long line that wraps\nend"
        await shown(app, pilot, "wraps end below")

    on_page(scenario)


def test_a_widget_at_rest_is_not_drawn_again() -> None:
    async def scenario(app: Page, text: GrowingText, pilot: Any) -> None:
        still = app.query_one(KeptStatic)
        crop = still.size.region
        kept = still.render_lines(crop)
        assert still.render_lines(crop) is kept
        still.update("changed")
        assert still.render_lines(crop) is not kept
        await shown(app, pilot, "changed")

    on_page(scenario)
