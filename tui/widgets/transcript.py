"""The transcript: messages that can be selected, and what can be done with them."""

from __future__ import annotations

from textual.message import Message as WidgetMessage

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.keymap import bindings
from rvllm_local.tui.notices import attempt, copy_text, tell
from rvllm_local.tui.render import code_blocks
from rvllm_local.tui.widgets.message_column import MessageColumn
from rvllm_local.tui.widgets.message_view import MessageView


class Transcript(MessageColumn):
    """The messages of the chat, and at its end the live reply.

    `selected` is the message that keys act on; without one they do nothing here, and
    what is typed goes to the composer. Commands act on the last message then.
    """

    BINDINGS = bindings("transcript")

    class EditAsked(WidgetMessage):
        """A prompt is to be edited."""

        def __init__(self, message: ChatMessage) -> None:
            self.message = message
            super().__init__()

    class Selected(WidgetMessage):
        """Another message is selected, or none."""

    class Left(WidgetMessage):
        """The person is done with the messages and goes back to writing."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    # The selected message

    def check_action(
        self,
        action: str,
        parameters: tuple[object, ...],
    ) -> bool | None:
        """The keys of messages count only while one is selected."""
        if action.startswith("message_"):
            return self.selected is not None
        return super().check_action(action, parameters)

    def on_message_view_clicked(self, event: MessageView.Clicked) -> None:
        """Select what was clicked."""
        event.stop()
        self.focus()
        self.select(event.message_id, scroll=False)

    def select(
        self,
        message_id: str | None,
        scroll: bool = True,
    ) -> None:
        """Mark a message as the one that keys act on, or none."""
        old = self._views.get(self.selected or "")
        if old is not None:
            old.remove_class("selected")
        index = self._index(message_id)
        self.selected = message_id if index is not None else None
        self.post_message(self.Selected())
        if message_id is None or index is None:
            return
        self.bring(index)
        view = self._views[message_id]
        view.add_class("selected")
        if scroll:
            self.release_anchor()
            self.call_after_refresh(self.scroll_to_widget, view, animate=False)

    def _step(self, step: int) -> None:
        """Select the message before or after."""
        if not self._messages:
            return
        index = self._index(self.selected)
        if index is None:
            index = len(self._messages)
        index = max(index + step, 0)
        if index < len(self._messages):
            self.select(self._messages[index].id)
        else:
            self.select(None)
            self.follow()

    @property
    def target(self) -> ChatMessage | None:
        """The selected message, else the last one."""
        index = self._index(self.selected)
        if index is not None:
            return self._messages[index]
        return self._messages[-1] if self._messages else None

    def holding(self, words: str) -> list[str]:
        """The messages that hold some words, oldest first."""
        words = words.strip().lower()
        if not words:
            return []
        hits = (message for message in self._messages if words in message.text.lower())
        return [message.id for message in hits]

    def action_message_previous(self, _argument: str = "") -> None:
        """Select the message before."""
        self.focus()
        self._step(-1)

    def action_message_next(self, _argument: str = "") -> None:
        """Select the message after; beyond the last, go back to writing."""
        self._step(1)
        if self.selected is None:
            self.post_message(self.Left())

    def _told_target(self) -> ChatMessage | None:
        target = self.target
        if target is None:
            tell(self, "there is no message yet", "warning")
        return target

    # What can be done with it

    def action_message_copy(self, _argument: str = "") -> None:
        """Copy the message."""
        if target := self._told_target():
            copy_text(self, target.text)

    def action_message_copy_code(self, number: str = "") -> None:
        """Copy the message's code: all of it, or the block of that number."""
        target = self._told_target()
        if target is None:
            return
        blocks = code_blocks(target.text)
        if number.isdecimal() and 1 <= int(number) <= len(blocks):
            blocks = [blocks[int(number) - 1]]
        if blocks:
            copy_text(self, "\n".join(blocks).rstrip("\n"))
        else:
            tell(self, "this message has no code", "warning")

    def action_message_edit(self, _argument: str = "") -> None:
        """Bring a prompt into the composer; sending it makes a new branch."""
        index = self._index(self.target.id if self.target else None)
        while index is not None and index >= 0:
            if self._messages[index].role == "user":
                self.post_message(self.EditAsked(self._messages[index]))
                return
            index -= 1
        tell(self, "there is no prompt to edit", "warning")

    def action_message_regenerate(self, _argument: str = "") -> None:
        """Answer again from the message on."""
        if target := self._told_target():
            self.select(None)
            self._driver.regenerate(target.id)
            self.follow()
            self.post_message(self.Left())

    def action_reply_regenerate(self, _argument: str = "") -> None:
        """Answer the last prompt again."""
        if self._messages:
            self._driver.regenerate(self._messages[-1].id)
            self.follow()

    def action_reply_continue(self, _argument: str = "") -> None:
        """Let the last reply go on where it ended.

        A server that shows its engine is ours and writes on; another one is asked to.
        """
        last = self._messages[-1] if self._messages else None
        if last is None or last.role != "assistant":
            tell(self, "there is no reply to go on with", "warning")
            return
        view = self._driver.session.engine
        if view is not None and view.block_map and last.text.strip():
            self._driver.go_on(last.id)
        else:
            self._driver.submit("Go on exactly where you stopped.")
        self.follow()

    async def action_message_branch(self, _argument: str = "") -> None:
        """A new chat with the messages up to this one."""
        if target := self._told_target():
            await attempt(self, self._driver.branch(target.id))
            self.post_message(self.Left())

    async def action_message_sibling_previous(self, _argument: str = "") -> None:
        """Show the version before of the message."""
        await self._switch(-1)

    async def action_message_sibling_next(self, _argument: str = "") -> None:
        """Show the next version of the message."""
        await self._switch(1)

    async def _switch(self, step: int) -> None:
        target = self._told_target()
        if target is None or self._driver.session.live is not None:
            return
        if self.num_versions(target) < 2 and self.selected is None:
            branching = (
                message
                for message in reversed(self._messages)
                if self.num_versions(message) > 1
            )
            target = next(branching, target)
        if self.num_versions(target) < 2:
            tell(self, "this message has one version", "warning")
            return
        sibling = await attempt(self, self._driver.switch_sibling(target.id, step))
        if self.has_focus:
            self.select(sibling)

    def num_versions(self, message: ChatMessage) -> int:
        """How many versions of a message there are."""
        return self._siblings.get(message.id, (0, 1))[1]

    async def action_message_delete(self, _argument: str = "") -> None:
        """Forget the message and what follows it; it can be undone."""
        target = self._told_target()
        index = self._index(target.id if target else None)
        if target is None or index is None or self._driver.session.live is not None:
            return
        count = len(self._messages) - index
        await attempt(self, self._driver.delete_message(target.id))
        noun = "message" if count == 1 else "messages"
        tell(self, f"deleted {count} {noun}; Alt+Z or /undo brings them back")
        self.post_message(self.Left())

    def action_message_reasoning(self, _argument: str = "") -> None:
        """Show the reply's reasoning, or fold it."""
        target = self._told_target()
        view = self._views.get(target.id) if target else None
        if view is not None:
            view.toggle_reasoning()
            self.call_after_refresh(
                self.scroll_to_widget, view, animate=False, top=True
            )

    # Scrolling

    def action_scroll_page_up(self, _argument: str = "") -> None:
        """A page up; the view no longer follows."""
        self.release_anchor()
        self.scroll_page_up(animate=False)

    def action_scroll_page_down(self, _argument: str = "") -> None:
        """A page down."""
        self.scroll_page_down(animate=False)

    def action_scroll_follow(self, _argument: str = "") -> None:
        """Go to the end and follow."""
        self.follow()

    action_transcript_follow = action_scroll_follow
