"""The reply that is being written: progress, reasoning, tool calls, and Markdown that grows.

What has settled moves out of the Markdown widget in pieces, so that the cost of a flush does not grow with the reply.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from rvllm_local.tui.render import render_markdown, render_tool_call, split_point
from rvllm_local.tui.sanitise import clean
from rvllm_local.tui.state import Live
from rvllm_local.tui.status import bar, short_count

if TYPE_CHECKING:
    from textual.widgets import Markdown
    from textual.widgets.markdown import MarkdownStream

SPLIT_AT = 1_200  # characters of growing Markdown before its settled part moves out
PLAIN_AT = 16_000  # one block that grows beyond this is shown as plain text, its end alone
PLAIN_TAIL = 2_000
REASONING_TAIL = 600


class LiveReply(Vertical):
    """Shows a `Live`. `show` is called at most some eight times a second."""

    def __init__(self) -> None:
        super().__init__(id="live")
        self._head = Static("", classes="live-head", markup=False)
        self._plain: Static | None = None
        self._markdown: Markdown | None = None
        self._stream: MarkdownStream | None = None
        self._taken = 0  # characters of the text that were handed to the widgets
        self._tail = ""  # what the Markdown widget holds
        self._shown = Content("")
        self.showing = asyncio.Lock()  # one update at a time: each awaits its widgets

    def compose(self) -> Any:
        yield self._head

    async def show(self, live: Live, now: float) -> None:
        """Bring the widgets to the reply's present state."""
        head = live_head(live, now)
        if not head.is_same(self._shown):
            self._shown = head
            self._head.update(head)
            self._head.display = bool(head.plain)
        fresh = live.text[self._taken :]
        if not fresh or not self.is_attached:
            return
        if fresh[-1] == "\r" or "\ud800" <= fresh[-1] <= "\udbff":
            fresh = fresh[:-1]  # its other half is still to come
        self._taken += len(fresh)
        await self._append(clean(fresh))

    async def _append(self, text: str) -> None:
        self._tail += text
        if len(self._tail) > SPLIT_AT and (point := split_point(self._tail)):
            await self._move_out(point)
            return
        if len(self._tail) > PLAIN_AT or self._plain is not None:
            await self._show_plain()
            return
        if self._stream is None:
            await self._open()
        assert self._stream is not None
        await self._stream.write(text)

    async def _open(self) -> None:
        from textual.widgets import Markdown

        self._markdown = Markdown("", open_links=False, classes="live-markdown")
        await self.mount(self._markdown)
        self._stream = Markdown.get_stream(self._markdown)

    async def _move_out(self, point: int) -> None:
        """The text before `point` becomes settled; the rest goes on growing."""
        head, self._tail = self._tail[:point], self._tail[point:]
        await self.finish()
        settled = Static(render_markdown(head), classes="live-settled")
        with self.app.batch_update():
            await self.mount(settled, before=self._markdown or self._plain)
            await self._clear()
            if self._tail:
                await self._append_all()

    async def _append_all(self) -> None:
        text, self._tail = self._tail, ""
        await self._append(text)

    async def _clear(self) -> None:
        for widget in (self._markdown, self._plain):
            if widget is not None:
                await widget.remove()
        self._markdown = self._plain = None

    async def _show_plain(self) -> None:
        await self.finish()
        if self._plain is None:
            await self._clear()
            self._plain = Static("", classes="live-settled", markup=False)
            await self.mount(self._plain)
        left_out = len(self._tail) - PLAIN_TAIL
        self._plain.update(Content(f"… {left_out:,} characters …\n{self._tail[-PLAIN_TAIL:]}"))

    async def finish(self) -> None:
        """Let the Markdown stream end."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()

    async def on_unmount(self) -> None:
        await self.finish()


def live_head(live: Live, now: float) -> Content:
    """What stands above the growing text: the wait, the reasoning, the tool calls."""
    parts: list[Content] = []
    if live.first_at is None:
        waited = f"{now - live.began:.0f} s"
        if live.progress is not None:
            done, total = live.progress
            share = done / total
            parts.append(
                Content.styled(
                    f"reading {bar(share, 16)} {share:4.0%} of {short_count(total)} tokens  {waited}", "$text-muted"
                )
            )
        else:
            parts.append(Content.styled(f"● waiting for the first word  {waited}", "$text-muted"))
    elif live.reasoning:
        ended = live.thought_until if live.thought_until is not None else now
        label = "thought for" if live.thought_until is not None else "thinking"
        parts.append(Content.styled(f"▸ {label} {ended - live.first_at:.1f} s", "$text-muted"))
        if live.thought_until is None and not live.text:
            tail = clean(live.reasoning[-REASONING_TAIL:]).strip()
            parts.append(
                Content.styled(("… " if len(live.reasoning) > REASONING_TAIL else "") + tail, "italic $text-muted")
            )
    parts += [render_tool_call(call) for call in live.tool_calls]
    return Content("\n").join(parts)
