"""The column of messages. Settled messages are one `Static` each; only the reply being written is live.

Long chats are mounted from the end; older messages come when they are scrolled to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.keymap import bindings
from rvllm_local.tui.render import render_message
from rvllm_local.tui.widgets.live import LiveReplyView

WINDOW = 60  # messages that are mounted at first, and more each time the top is reached
MOUNTED = 120  # beyond this, the oldest are taken away while the view follows the end


class MessageView(Static):
    """One settled message."""

    def __init__(
        self, message: ChatMessage, place: tuple[int, int], show_reasoning: bool = False
    ) -> None:
        self.message, self.place, self.show_reasoning = message, place, show_reasoning
        super().__init__(
            render_message(message, place, show_reasoning),
            classes=f"message {message.role}",
        )

    def show(self, message: ChatMessage, place: tuple[int, int]) -> None:
        """Show another state of the message."""
        if (message, place) != (self.message, self.place):
            self.message, self.place = message, place
            self.update(render_message(message, place, self.show_reasoning))

    def toggle_reasoning(self) -> None:
        """Unfold the reasoning, or fold it."""
        self.show_reasoning = not self.show_reasoning
        self.update(render_message(self.message, self.place, self.show_reasoning))


class Transcript(VerticalScroll, can_focus=True):
    """The messages of the chat, and at its end the live reply. `selected` is the message that keys act on."""

    BINDINGS = bindings("transcript")

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._messages: Sequence[ChatMessage] = ()
        self._siblings: Mapping[str, tuple[int, int]] = {}
        self._views: dict[str, MessageView] = {}
        self._first = 0  # the first message that is mounted
        self._welcome = Static("", id="welcome", markup=False)
        self.live: LiveReplyView | None = None
        self.selected: str | None = None

    def compose(self) -> Any:
        yield self._welcome

    def on_mount(self) -> None:
        self.anchor()

    def welcome(self, content: Content) -> None:
        """What an empty chat shows."""
        self._welcome.update(content)

    def show_messages(
        self, messages: Sequence[ChatMessage], siblings: Mapping[str, tuple[int, int]]
    ) -> None:
        """Bring the column to these messages with as little change as can be."""
        same = next(
            (
                at
                for at, (old, new) in enumerate(
                    zip(self._messages, messages, strict=False)
                )
                if old.id != new.id
            ),
            min(len(self._messages), len(messages)),
        )
        if same < self._first or not self._views:
            self._first = max(0, len(messages) - WINDOW)
            self._remove(self._messages)
        else:
            self._remove(self._messages[same:])
        self._messages, self._siblings = messages, siblings
        fresh = [
            self._view(message)
            for message in messages[self._first :]
            if message.id not in self._views
        ]
        for message in messages[self._first :]:
            self._views[message.id].show(message, siblings.get(message.id, (0, 1)))
        if fresh:
            self.mount(
                *fresh, before=self.live
            ) if self.live is not None else self.mount(*fresh)
        self._trim()
        self._welcome.display = not messages
        if self.selected not in self._views:
            self.selected = None

    def _trim(self) -> None:
        """Take the oldest views away where nobody is looking at them: layout and focus cost by the widget."""
        if (
            len(self._views) > MOUNTED
            and self.is_anchored
            and not self._anchor_released
        ):
            first = len(self._messages) - WINDOW
            self._remove(self._messages[self._first : first])
            self._first = first

    def _view(self, message: ChatMessage) -> MessageView:
        view = MessageView(message, self._siblings.get(message.id, (0, 1)))
        self._views[message.id] = view
        return view

    def _remove(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            if view := self._views.pop(message.id, None):
                view.remove()

    def show_earlier(self, target: int | None = None) -> None:
        """Mount older messages, to message number `target` or one window more, and keep the view in its place."""
        start = (
            max(0, self._first - WINDOW) if target is None else min(target, self._first)
        )
        if start == self._first:
            return
        fresh = [self._view(message) for message in self._messages[start : self._first]]
        anchor = self._views[self._messages[self._first].id]
        self._first = start
        before = self.virtual_size.height

        def keep_place() -> None:
            self.scroll_to(
                y=self.scroll_y + self.virtual_size.height - before, animate=False
            )

        self.mount(*fresh, before=anchor)
        if target is None:
            self.call_after_refresh(keep_place)

    def watch_scroll_y(self, old: float, new: float) -> None:
        """Reaching the top brings the messages before."""
        super().watch_scroll_y(old, new)
        if new <= 1 < old and self._first > 0:
            self.show_earlier()

    def follow(self) -> None:
        """Go to the end and stay there."""
        self.anchor()

    def begin_reply(self) -> LiveReplyView:
        """Mount the live reply."""
        self.live = LiveReplyView()
        self.mount(self.live)
        return self.live

    def end_reply(self) -> None:
        """Take the live reply away; its message takes its place."""
        if self.live is not None:
            self.live.remove()
            self.live = None

    # The selected message

    def select(self, message_id: str | None) -> None:
        """Mark a message as the one that keys act on."""
        if (old := self._views.get(self.selected or "")) is not None:
            old.remove_class("selected")
        self.selected = message_id
        if message_id is None:
            return
        if message_id not in self._views:
            place = next(
                (at for at, one in enumerate(self._messages) if one.id == message_id),
                None,
            )
            if place is None:
                self.selected = None
                return
            self.show_earlier(place)
        view = self._views[message_id]
        view.add_class("selected")
        self.release_anchor()
        self.call_after_refresh(self.scroll_to_widget, view, animate=False)

    def step(self, step: int) -> None:
        """Select the message before or after."""
        ids = [message.id for message in self._messages]
        if not ids:
            return
        at = (
            ids.index(self.selected) + step
            if self.selected in ids
            else (len(ids) - 1 if step < 0 else len(ids))
        )
        if at >= len(ids):
            self.select(None)
            self.follow()
        else:
            self.select(ids[max(at, 0)])

    @property
    def chosen(self) -> ChatMessage | None:
        """The selected message, else the last one."""
        found = next((one for one in self._messages if one.id == self.selected), None)
        return found or (self._messages[-1] if self._messages else None)

    def toggle_reasoning(self, message_id: str) -> None:
        """Unfold or fold a message's reasoning."""
        if view := self._views.get(message_id):
            view.toggle_reasoning()
