"""What a person can do with chats: begin, find, name, shelve, move to files.

An action takes its command's argument, empty when it came from a key.
"""

from __future__ import annotations

from pathlib import Path

from rvllm_local.tui.chat_files import export_chat, import_chats
from rvllm_local.tui.compare_actions import CompareActions
from rvllm_local.tui.events import ChatChanged
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.screens.dialogs import Ask, Confirm


class ChatActions(CompareActions):
    """The actions on chats."""

    def action_chat_new(self, _argument: str = "") -> None:
        """Start a new chat."""
        self.composer.call_later(self._begin_chat)

    def action_chat_temporary(self, _argument: str = "") -> None:
        """Start a chat that is not kept."""
        self.composer.call_later(self._begin_chat, True)

    def _begin_chat(self, is_temporary: bool = False) -> None:
        """It comes behind what the composer still has to send."""
        self.driver.new_chat(is_temporary)
        self.composer.focus()

    def action_chat_list(self, words: str = "") -> None:
        """Show and search the chats."""
        from rvllm_local.tui.screens.chats import ChatsScreen

        driver = self.driver
        if driver.history is None:
            tell(self, "there is no history in this session", "warning")
            return
        screen = ChatsScreen(driver, words, shelf=self.shelf)

        async def opened(answer: str | None) -> None:
            await self.keep_shelf()
            if answer is None:
                if driver.session.chat.id in screen.deleted:
                    driver.new_chat()
                return
            chat_id, _, message_id = answer.partition(" ")
            await attempt(self, driver.open_chat(chat_id))
            if message_id and driver.session.chat.id == chat_id:
                await attempt(self, self._show_hit(message_id))
            else:
                self.transcript.follow()
            self.composer.focus()

        self.push_screen(screen, opened)

    async def _show_hit(self, message_id: str) -> None:
        """Go to a message that a search found, whatever branch it is on."""
        messages = self.driver.session.messages
        if all(message.id != message_id for message in messages):
            await self.driver.switch_sibling(message_id, 0)
        self.transcript.select(message_id)

    def action_chat_rename(self, title: str = "") -> None:
        """Give this chat another title."""

        def rename(title: str | None) -> None:
            if title:
                self.driver.dispatch(ChatChanged({"title": title}))

        if title:
            rename(title)
        else:
            present = self.driver.session.chat.title
            self.push_screen(Ask("Title of this chat", present), rename)

    def action_chat_delete(self, _argument: str = "") -> None:
        """Forget this chat, once confirmed; it can be undone."""
        session = self.driver.session
        if not session.is_kept:
            tell(self, "there is nothing to delete yet", "warning")
            return

        async def delete(is_sure: bool | None) -> None:
            if is_sure:
                await attempt(self, self.driver.delete_chat(session.chat.id))
                tell(self, "deleted this chat; Alt+Z or /undo brings it back")

        self.push_screen(Confirm("Delete this chat and all its messages?"), delete)

    async def action_chat_undo(self, _argument: str = "") -> None:
        """Bring back what was deleted last."""
        if await attempt(self, self.driver.undo()):
            tell(self, "what was deleted is back")
        else:
            tell(self, "there is no deletion to undo", "warning")

    def action_chat_compact(self, _argument: str = "") -> None:
        """Go on from a summary; nothing is deleted."""
        self.driver.compact()
        self.transcript.follow()

    async def action_chat_export(self, name: str = "") -> None:
        """Write this chat to a file; its ending chooses Markdown or JSON."""
        if not self.driver.session.is_kept:
            tell(self, "there is nothing to export yet", "warning")
            return

        async def export(name: str | None) -> None:
            if name:
                await attempt(self, self._export(Path(name).expanduser()))

        if name:
            await export(name)
        else:
            note = "the ending .md or .json chooses the form"
            self.push_screen(Ask("Export to", "chat.md", note), export)

    async def _export(self, path: Path) -> None:
        await export_chat(self.driver, path)
        tell(self, f"exported to {path}")

    async def action_chat_import(self, name: str = "") -> None:
        """Add the chats of a JSON file."""

        async def bring(name: str | None) -> None:
            if name:
                await attempt(self, self._import(Path(name).expanduser()))

        if name:
            await bring(name)
        else:
            note = "a JSON file with messages, or ChatGPT's or Open WebUI's export"
            self.push_screen(Ask("Import from", "", note), bring)

    async def _import(self, path: Path) -> None:
        count = await import_chats(self.driver, path)
        tell(self, f"imported {count} chat{'s' if count > 1 else ''}")

    async def action_chat_pin(self, _argument: str = "") -> None:
        """Let this chat stand first in the list, or no longer."""
        if self.shelf.toggle_pin(self.driver.session.chat.id):
            tell(self, "this chat stands first from now on")
        else:
            tell(self, "this chat is no longer pinned")
        await self.keep_shelf()

    async def action_chat_folder(self, name: str = "") -> None:
        """Put this chat into a folder; an empty name takes it out."""

        async def move(name: str | None) -> None:
            self.shelf.move(self.driver.session.chat.id, name or "")
            tell(self, f"this chat is in {name}" if name else "it is in no folder")
            await self.keep_shelf()

        if name:
            await move(name)
        else:
            present = self.shelf.folders.get(self.driver.session.chat.id, "")
            note = "an empty name takes the chat out of its folder"
            self.push_screen(Ask("Folder of this chat", present, note), move)
