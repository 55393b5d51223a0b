"""The column of messages: each settled one is a `Static`, and one reply is live.

Only messages near the view are mounted, since layout, focus and resize cost by the
widget. The others come when they are scrolled to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.reactive import Reactive
from textual.widgets import Static

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.widgets.kept_lines import KeptLines
from rvllm_local.tui.widgets.live import LiveReplyView
from rvllm_local.tui.widgets.message_view import MessageView

WINDOW = 24  # messages that are mounted at first, and more each time an end is reached
MESSAGE_WIDTH, MESSAGE_FRAME = 110, 4  # cells, as in app.tcss
LAYOUTS = 3  # within which what was mounted has its place
MOUNTED = 48  # beyond this, those furthest from the view are taken away


class MessageColumn(KeptLines, VerticalScroll, can_focus=True):
    """The messages of a chat, and at its end the live reply."""

    virtual_size = Reactive(Size(0, 0))  # as in `GrowingText`

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._messages: Sequence[ChatMessage] = ()
        self._siblings: Mapping[str, tuple[int, int]] = {}
        self._views: dict[str, MessageView] = {}
        # The messages that are mounted: from the first up to the last, without it.
        self._first = self._last = 0
        self._welcome = Static("", id="welcome", markup=False)
        self.live: LiveReplyView | None = None
        self.live_id = ""  # the reply that `live` shows
        self._height_seen = 0  # lines there were when the view left the end
        self.selected: str | None = None

    def compose(self) -> ComposeResult:
        yield self._welcome

    def on_mount(self) -> None:
        self.anchor()

    def on_resize(self) -> None:
        """A view that is larger may want more messages."""
        if self._first > 0:
            self.call_after_refresh(self._fill)

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
        last = len(messages) if self.is_at_end else min(self._last, len(messages))
        old = self._messages
        self._messages, self._siblings = messages, siblings
        if num_same <= self._first or len(messages) - num_same > WINDOW:
            self._remove(old)
            last = len(messages)
            self._first = self._last = max(0, last - WINDOW)
        else:
            self._remove(old[num_same:])
            self._last = min(self._last, num_same)
        for message in messages[self._first : self._last]:
            version = siblings.get(message.id, (0, 1))
            self._views[message.id].show(message, version)
        self._mount_later(last)
        self._trim()
        self._show_ends()
        self._welcome.display = not messages
        if self._index(self.selected) is None:
            self.selected = None

    @property
    def is_at_end(self) -> bool:
        """Whether the last message is mounted."""
        return self._last == len(self._messages)

    @property
    def is_following(self) -> bool:
        """Whether the view stays at the end."""
        is_anchored = self.is_anchored and not self._anchor_released
        return bool(is_anchored and self.is_at_end)

    def _trim(self) -> None:
        """Take the oldest views away while nobody is looking at them."""
        if self._is_large and self.is_following:
            self._remove_earlier(self._last - WINDOW)

    @property
    def _is_large(self) -> bool:
        """Whether so much is mounted that some of it can go."""
        height = self.virtual_size.height
        return len(self._views) > MOUNTED and height > 4 * self.container_size.height

    def _remove_earlier(self, first: int) -> None:
        """Let the mounted messages begin with message number `first`."""
        self._remove(self._messages[self._first : first])
        self._first = first

    def _mount_later(self, last: int) -> None:
        """Mount the messages up to number `last`, without it."""
        fresh = [self._view(message) for message in self._messages[self._last : last]]
        self._last = last
        if fresh and self.live is not None:
            self.mount(*fresh, before=self.live)
        elif fresh:
            self.mount(*fresh)

    def _show_ends(self) -> None:
        """Show the live reply where the messages before it are, and fill the screen."""
        if self.live is not None:
            self.live.display = self.is_at_end
        if self._first > 0 or not self.is_at_end:
            self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        """Mount more where there is nothing to scroll."""
        if self.virtual_size.height > self.container_size.height + 1:
            return
        if self._first > 0:
            self.show_earlier()
        elif not self.is_at_end:
            self.show_later()

    def _view(self, message: ChatMessage) -> MessageView:
        version = self._siblings.get(message.id, (0, 1))
        view = MessageView(message, version, self._text_width())
        if message.id == self.selected:
            view.add_class("selected")
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

    def bring(self, target: int) -> None:
        """Mount message number `target` and its neighbours, if it is not."""
        if self._first <= target < self._last:
            return
        first = max(0, target - WINDOW // 2)
        self._show_window(first, min(first + WINDOW, len(self._messages)))

    def _show_window(
        self,
        first: int,
        last: int,
    ) -> None:
        """Mount these messages and no others."""
        self._remove(self._messages)
        self._first = self._last = first
        self._mount_later(last)
        self._show_ends()

    def show_earlier(self) -> None:
        """Mount older messages, and keep the view in its place."""
        first = max(0, self._first - WINDOW)
        if first == self._first:
            return
        fresh = [self._view(message) for message in self._messages[first : self._first]]
        edge = self._views[self._messages[self._first].id]
        self._first = first
        before = edge.virtual_region.y
        self.mount(*fresh, before=edge)
        self._keep_in_place(edge, before)
        if self._is_large and not self.is_following:
            last = first + MOUNTED
            self._remove(self._messages[last : self._last])
            self._last = last
        self._show_ends()

    def show_later(self) -> None:
        """Mount newer messages, and keep the view in its place."""
        edge = self._views[self._messages[self._last - 1].id]
        self.release_anchor()
        self._mount_later(min(self._last + WINDOW, len(self._messages)))
        if self._is_large:
            before = edge.virtual_region.y
            self._remove_earlier(self._last - MOUNTED)
            self._keep_in_place(edge, before)
        self._show_ends()

    def _keep_in_place(
        self,
        view: MessageView,
        before: int,
        patience: int = LAYOUTS,
    ) -> None:
        """Scroll so that a view stays where it is once the others have changed.

        `before` is its row until then. What was mounted may come with more layouts than one.
        """

        def scroll() -> None:
            if not view.is_mounted:
                return
            row = view.virtual_region.y
            if row != before:
                self.scroll_to(y=self.scroll_y + row - before, animate=False)
            if patience > 0:
                self._keep_in_place(view, row, patience - 1)

        if not self.is_following:
            self.call_after_refresh(scroll)

    def watch_scroll_y(
        self,
        old: float,
        new: float,
    ) -> None:
        """Reaching an end brings the messages beyond it."""
        super().watch_scroll_y(old, new)
        if new <= 1 < old and self._first > 0:
            self.show_earlier()
        elif new > old and new >= self.max_scroll_y - 1 and not self.is_at_end:
            self.show_later()

    def follow(self) -> None:
        """Go to the end and stay there."""
        if not self.is_at_end:
            last = len(self._messages)
            self._show_window(max(0, last - WINDOW), last)
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
