"""The reply that is being written: progress, reasoning, tool calls, and Markdown that grows.

What has settled is rendered once and stays; only the end of the text is rendered again, and never so often that showing
takes more than a fixed share of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.strip import Strip
from textual.widgets import Static

from rvllm_local.tui.growing import Piece, cut
from rvllm_local.tui.render import render_piece, render_tool_call
from rvllm_local.tui.sanitise import clean, whole
from rvllm_local.tui.state import LiveReply
from rvllm_local.tui.status import bar, short_count
from rvllm_local.tui.widgets.growing_text import GrowingText

CUT_AT = 400  # characters of the growing end before its settled part moves out
PLAIN_AT = 16_000  # an end that can be cut nowhere is beyond this shown as plain text, its last part alone
PLAIN_TAIL = 2_000
REASONING_TAIL = 600
SHARE = 0.04  # of one core, for everything that the interface does while a reply comes
LONGEST_REST_S = 0.5
ROWS_A_LAYOUT = 4  # a reply grows by so many rows: each layout draws the whole screen
SILENT_S = 5.0  # after which a reply that does not go on says so


class FrameRate:
    """Tells how long to rest before the next showing, so that the thread stays under `SHARE` of a core.

    `clock` is wall time and `used` the thread's processor time, both in seconds: painting happens after the call that
    asked for it, so that only the whole thread's time tells what it cost.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock, self._used = clock, used
        self._shown_at, self._used_then = clock(), used()

    def rest(self) -> float:
        """Seconds that still have to pass."""
        rest = min((self._used() - self._used_then) / SHARE, LONGEST_REST_S)
        return max(0.0, self._shown_at + rest - self._clock())

    def shown(self) -> None:
        """A showing begins."""
        self._shown_at, self._used_then = self._clock(), self._used()


class LiveReplyView(Vertical):
    """Shows a `LiveReply`. `tell` may be called as often as there is something new."""

    virtual_size = Reactive(Size(0, 0))  # as in `GrowingText`

    def __init__(self) -> None:
        super().__init__(classes="live")
        self._head, self._foot = (
            Static("", markup=False),
            Static("", classes="apart", markup=False),
        )
        self._text = GrowingText()
        self._taken = 0  # characters of the text that were handed to the widgets
        self._piece = Piece(
            ""
        )  # what is rendered again and again, at the end of `_text`
        self._shown = Content("")
        self._news: tuple[LiveReply, float] | None = None
        self._told = asyncio.Event()
        self._frame_rate = FrameRate()

    def compose(self) -> Any:
        yield self._head
        yield self._text
        yield self._foot

    def on_mount(self) -> None:
        """Show what there is, then what is told."""
        self._head.display = self._text.display = self._foot.display = (
            False  # an empty one would still take a line
        )
        self.run_worker(self._follow())

    def tell(
        self,
        live: LiveReply,
        now: float,
    ) -> None:
        """The reply's present state, and the time of the session's clock."""
        self._news = live, now
        self._told.set()

    async def _follow(self) -> None:
        while True:
            await self._told.wait()
            while (rest := self._frame_rate.rest()) > 0:
                await asyncio.sleep(rest)
            self._frame_rate.shown()
            self._told.clear()
            if self._news is not None:
                self._show(*self._news)

    def _show(
        self,
        live: LiveReply,
        now: float,
    ) -> None:
        head = live_head(live, now)
        if not head.is_same(self._shown):
            self._shown = head
            _update(self._head, head)
            self._head.display = bool(head.plain)
        foot = live_foot(live, now)
        if foot.plain or self._foot.display:
            _update(self._foot, foot)
            self._foot.display = bool(foot.plain)
        # A gap above the foot would look like an end.
        self._text.grow_by(1 if foot.plain else rows_a_layout(self.app.size.height))
        fresh = whole(live.text[self._taken :])
        self._taken += len(fresh)
        self._head.set_class(self._taken > 0, "over-text")
        if not fresh:
            return
        self._piece = replace(self._piece, text=self._piece.text + clean(fresh))
        self._text.display = True
        if len(self._piece.text) > CUT_AT and (parts := cut(self._piece)):
            settled, self._piece = parts
            self._text.settle(
                render_piece(settled, self._width()),
                _render(self._piece, self._width()),
                self._piece.is_joined,
            )
        else:
            self._text.show(_render(self._piece, self._width()))

    def _width(self) -> int | None:
        """Cells for the text; None before the first layout."""
        return self.content_size.width or None

    def render_lines(self, crop: Region) -> list[Strip]:
        """The ground under the text: one row, as often as it is needed."""
        style = self.visual_style.background_style.rich_style
        ground = Strip.blank(crop.width, style)
        for line_filter in self.get_line_filters():
            ground = ground.apply_filter(line_filter, self.background_colors[1])
        return [ground] * crop.height


def rows_a_layout(height: int) -> int:
    """Rows by which a reply grows on a screen of some height: few on a low one."""
    return min(max(1, (height - 8) // 4), ROWS_A_LAYOUT)


def _render(piece: Piece, width: int | None) -> Content:
    if len(piece.text) <= PLAIN_AT:
        return render_piece(piece, width)
    return Content(
        f"… {len(piece.text) - PLAIN_TAIL:,} characters …\n{piece.text[-PLAIN_TAIL:]}"
    )


def _update(widget: Static, content: Content) -> None:
    """Show other text; the layout is made anew only where its height changes."""
    size = widget.content_size
    is_same_height = (
        widget.display
        and size.width
        and content.get_height({}, size.width) == size.height
    )
    widget.update(content, layout=not is_same_height)


def live_head(live: LiveReply, now: float) -> Content:
    """What stands above the growing text: the wait, the reasoning, the tool calls."""
    parts: list[Content] = []
    if live.first_at is None:
        waited = f"{now - live.began:.0f} s"
        if live.progress is not None:
            done, total = live.progress
            share = done / total
            parts.append(
                Content.styled(
                    f"reading {bar(share, 16)} {share:4.0%} of {short_count(total)} tokens  {waited}",
                    "$muted",
                )
            )
        else:
            parts.append(
                Content.styled(f"● waiting for the first word  {waited}", "$muted")
            )
    elif live.reasoning:
        ended = live.thought_until if live.thought_until is not None else now
        label = "thought for" if live.thought_until is not None else "thinking"
        parts.append(
            Content.styled(f"▸ {label} {ended - live.first_at:.1f} s", "$muted")
        )
        if live.thought_until is None and not live.text:
            tail = clean(live.reasoning[-REASONING_TAIL:]).strip()
            parts.append(
                Content.styled(
                    ("… " if len(live.reasoning) > REASONING_TAIL else "") + tail,
                    "italic $muted",
                )
            )
    parts += [render_tool_call(call) for call in live.tool_calls]
    return Content("\n").join(parts)


def live_foot(live: LiveReply, now: float) -> Content:
    """What stands below the growing text where it has stopped growing."""
    silent = 0.0 if live.last_at is None else now - live.last_at
    if silent < SILENT_S:
        return Content("")
    return Content.styled(
        f"… nothing has come for {silent:.0f} s; Esc stops and keeps this",
        "$muted",
    )
