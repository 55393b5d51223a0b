"""The column of messages: each settled one is a `Static`, and one reply is live.

Long chats are mounted from the end; older messages come when they are scrolled to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.widgets.live import LiveReplyView
from rvllm_local.tui.widgets.message_view import MessageView

# Messages that are mounted at first, and more each time the top is reached.
WINDOW = 60
MESSAGE_WIDTH, MESSAGE_FRAME = 110, 4  # cells, as in app.tcss
MOUNTED = 120  # beyond this, the oldest are taken away while the view follows the end


class MessageColumn(VerticalScroll, can_focus=True):
    """The messages of a chat, and at its end the live reply."""

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._messages: Sequence[ChatMessage] = ()
        self._siblings: Mapping[str, tuple[int, int]] = {}
        self._views: dict[str, MessageView] = {}
        self._first = 0  # the first message that is mounted
        self._welcome = Static("", id="welcome", markup=False)
        self.live: LiveReplyView | None = None
        self.live_id = ""  # the reply that `live` shows
        self._height_seen = 0  # lines there were when the view left the end
        self.selected: str | None = None

    def compose(self) -> ComposeResult:
        yield self._welcome

    def on_mount(self) -> None:
        self.anchor()

    def welcome(self, content: Content) -> None:
        """What an empty chat shows."""
        self._welcome.update(content)

    def show_messages(
        self,
        messages: Sequence[ChatMessage],
        siblings: Mapping[str, tuple[int, int]],
    ) -> None:
        """Bring the column to these messages with as little change as can be."""
        num_same = _num_same(self._messages, messages)
        if num_same < self._first or not self._views:
            self._first = max(0, len(messages) - WINDOW)
            self._remove(self._messages)
        else:
            self._remove(self._messages[num_same:])
        self._messages, self._siblings = messages, siblings
        fresh = []
        for message in messages[self._first :]:
            view = self._views.get(message.id)
            if view is None:
                fresh.append(self._view(message))
            else:
                view.show(message, siblings.get(message.id, (0, 1)))
        if fresh and self.live is not None:
            self.mount(*fresh, before=self.live)
        elif fresh:
            self.mount(*fresh)
        self._trim()
        self._welcome.display = not messages
        if self.selected not in self._views:
            self.selected = None

    @property
    def is_following(self) -> bool:
        """Whether the view stays at the end."""
        return bool(self.is_anchored and not self._anchor_released)

    def _trim(self) -> None:
        """Take the oldest views away: layout and focus cost by the widget.

        That is done where nobody is looking at them.
        """
        if len(self._views) > MOUNTED and self.is_following:
            first = len(self._messages) - WINDOW
            self._remove(self._messages[self._first : first])
            self._first = first

    def _view(self, message: ChatMessage) -> MessageView:
        version = self._siblings.get(message.id, (0, 1))
        view = MessageView(message, version, self._text_width())
        self._views[message.id] = view
        return view

    def _text_width(self) -> int | None:
        """Cells that a message's text will have; None before the first layout."""
        width = self.scrollable_content_region.width
        return min(width, MESSAGE_WIDTH) - MESSAGE_FRAME if width else None

    def _remove(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            if view := self._views.pop(message.id, None):
                view.remove()

    def show_earlier(self, target: int | None = None) -> None:
        """Mount older messages, and keep the view in its place.

        They reach to message number `target`, or one window further.
        """
        start = max(0, self._first - WINDOW)
        if target is not None:
            start = min(target, self._first)
        if start == self._first:
            return
        fresh = [self._view(message) for message in self._messages[start : self._first]]
        anchor = self._views[self._messages[self._first].id]
        self._first = start
        before = self.virtual_size.height

        def keep_view() -> None:
            grown = self.virtual_size.height - before
            self.scroll_to(y=self.scroll_y + grown, animate=False)

        self.mount(*fresh, before=anchor)
        if target is None:
            self.call_after_refresh(keep_view)

    def watch_scroll_y(
        self,
        old: float,
        new: float,
    ) -> None:
        """Reaching the top brings the messages before."""
        super().watch_scroll_y(old, new)
        if new <= 1 < old and self._first > 0:
            self.show_earlier()

    def follow(self) -> None:
        """Go to the end and stay there."""
        self.anchor()

    @property
    def lines_below(self) -> int:
        """Lines that came since the view left the end, and are below it."""
        if self.is_following or self.scroll_y >= self.max_scroll_y:
            self._height_seen = self.virtual_size.height
        return max(0, self.virtual_size.height - self._height_seen)

    def begin_reply(self, reply_id: str) -> LiveReplyView:
        """Mount the live reply."""
        self.live = LiveReplyView()
        self.live_id = reply_id
        self.mount(self.live)
        return self.live

    def end_reply(self) -> None:
        """Take the live reply away; its message takes its place."""
        if self.live is not None:
            self.live.remove()
            self.live = None
            self.live_id = ""

    def _index(self, message_id: str | None) -> int | None:
        for index, message in enumerate(self._messages):
            if message.id == message_id:
                return index
        return None


def _num_same(old: Sequence[ChatMessage], new: Sequence[ChatMessage]) -> int:
    """How many messages at the beginning are the same."""
    count = 0
    for before, after in zip(old, new, strict=False):
        if before.id != after.id:
            break
        count += 1
    return count
