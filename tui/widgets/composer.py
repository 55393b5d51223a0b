"""The box to write in: it grows with its text, and owns what is done while writing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from textual import events, work
from textual.message import Message

from rvllm_local.errors import ParameterError, RvllmError
from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.attach import mention, needs_reading
from rvllm_local.tui.commands import Command, parse_slash
from rvllm_local.tui.complete import Completer
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.editor import edit_text
from rvllm_local.tui.keymap import bindings
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.payload import estimate_tokens, typed_text
from rvllm_local.tui.prompts import PreparedPrompt, prepare
from rvllm_local.tui.screens.dialogs import Ask, Choice, Pick
from rvllm_local.tui.widgets.draft_area import DraftArea
from rvllm_local.tui.widgets.popup import CompletionPopup

RECALLED = 300  # earlier prompts
_PLACEHOLDER = "Ask anything. / for commands, @file to attach, F1 for help"
_SHORT_PLACEHOLDER = "Ask anything. F1 for help"


class Composer(DraftArea):
    """A draft that is sent on Enter.

    `editing` is the prompt whose replacement is being written. A key that is bound here
    reaches the app before the letters typed just before it have reached this widget:
    what it does waits in the widget's own queue, so that fast typing keeps its order.
    """

    BINDINGS = bindings("composer")

    class Sent(Message):
        """A prompt was sent."""

    class CommandTyped(Message):
        """A slash command was typed."""

        def __init__(
            self,
            command: Command,
            argument: str,
        ) -> None:
            self.command, self.argument = command, argument
            super().__init__()

    def __init__(
        self,
        driver: Driver,
        popup: CompletionPopup,
    ) -> None:
        super().__init__(id="composer", tab_behavior="focus", placeholder=_PLACEHOLDER)
        self.editing: ChatMessage | None = None
        self._driver, self._popup = driver, popup
        self._completer = Completer()
        self._stash = ""  # the draft that editing took the place of
        self._recalled: list[str] | None = None  # newest first, while walking them
        self._recall_index = -1
        self._warned_of = ""  # the text that was said to be too long

    def be_narrow(self, is_narrow: bool) -> None:
        """Say less on a narrow terminal."""
        self.placeholder = _SHORT_PLACEHOLDER if is_narrow else _PLACEHOLDER

    # Sending

    def action_composer_send(self) -> None:
        """Send the prompt, do the slash command, or take the marked completion."""
        self.call_later(self._send)

    async def _send(self) -> None:
        if self._takes_completion():
            return
        if self.before_cursor.endswith("\\") and self.cursor_at_end_of_text:
            self.action_delete_left()
            self.newline()
            return
        if not self.text.strip():
            return
        try:
            command = parse_slash(self.text)
            if command is not None:
                self.take()
                self.post_message(self.CommandTyped(*command))
                return
            prompt = await self._prepare()
        except ParameterError as error:
            tell(self, str(error), "warning")
            return
        if self._is_too_long(prompt.text):
            return
        editing = self.editing
        self.take()
        self.leave_editing()
        if editing is not None:
            self._driver.edit(editing.id, prompt.text, prompt.figures)
        else:
            self._driver.submit(prompt.text, prompt.figures)
        self.post_message(self.Sent())

    async def _prepare(self) -> PreparedPrompt:
        """The prompt with what it names, read on a thread: it may take seconds.

        Keys wait meanwhile, so that what is typed next is not sent with it.
        """
        text, pastes, folder = self.text, dict(self.pastes), Path.cwd()
        if not needs_reading(text):
            return prepare(text, pastes, folder)
        return await asyncio.to_thread(prepare, text, pastes, folder)

    def _takes_completion(self) -> bool:
        """Enter takes the marked command, unless one is already typed whole."""
        marked = self._popup.marked
        if marked is None or not self.cursor_at_end_of_text:
            return False
        if marked.text.strip() == self.text.strip():
            return False
        if self.text.startswith("/"):
            try:
                if parse_slash(self.text) is not None:
                    return False
            except ParameterError:
                pass
        self.replace_before_cursor(marked.text)
        return True

    def _is_too_long(self, text: str) -> bool:
        """Warn once of a prompt that the context will not hold."""
        length = self._driver.session.context_length
        num_tokens = estimate_tokens(text)
        if length is None or num_tokens <= length or text == self._warned_of:
            return False
        self._warned_of = text
        tell(
            self,
            f"about {num_tokens:,} tokens, and the context has {length:,}: shorten it,"
            " or press Enter again to send it all the same",
            "warning",
        )
        return True

    def action_composer_newline(self) -> None:
        """Begin a new line."""
        self.call_later(self.newline)

    def take(self) -> str:
        """The text, which is then gone."""
        self._recalled = None
        return super().take()

    # Editing an earlier prompt

    def begin_editing(self, message: ChatMessage) -> None:
        """Write in place of an earlier prompt; what was being written is put aside."""
        if self.editing is None:
            self._stash = self.draft
        self.editing = message
        self.add_class("editing")
        self.border_title = "editing: Enter makes a new branch, Esc leaves it"
        self.load_draft(typed_text(message))
        self.focus()

    def leave_editing(self) -> None:
        """Stop editing; the draft from before comes back."""
        if self.editing is None:
            return
        self.editing = None
        self.remove_class("editing")
        self.border_title = ""
        self.take()
        stash, self._stash = self._stash, ""
        self.load_draft(stash)

    @property
    def draft(self) -> str:
        """What is to be kept: the text, with its pastes; not an edited prompt."""
        if self.editing is not None:
            return self._stash
        return self.whole_text

    # Completion

    def show_completions(self) -> None:
        """Offer what the word before the cursor could become."""
        offers = []
        if self._recalled is None:
            typed, folder = self.before_cursor, Path.cwd()
            offers = self._completer.offers(typed, folder)
            if self._completer.is_stale(typed, folder):
                self._look_up(folder)
        self._popup.offer(offers)

    @work(group="files", exclusive=True)
    async def _look_up(self, folder: Path) -> None:
        """Find the folder's files on a thread, then offer anew."""
        await asyncio.to_thread(self._completer.look_up, folder)
        self.show_completions()

    def action_composer_complete(self) -> None:
        """Take the marked offer; with none, go to the next part of the screen."""
        self.call_later(self._complete)

    def _complete(self) -> None:
        marked = self._popup.marked
        if marked is not None:
            self.replace_before_cursor(marked.text)
        else:
            self.screen.focus_next()

    # Earlier prompts

    def action_composer_recall(self) -> None:
        """Mark the offer above, go up a line, or bring an earlier prompt back."""
        self.call_later(self._recall, 1)

    def action_composer_recall_next(self) -> None:
        """Mark the offer below, go down a line, or bring a later prompt back."""
        self.call_later(self._recall, -1)

    async def _recall(self, step: int) -> None:
        if self._popup.marked is not None:
            self._popup.move(-step)
        elif self._recalled is None and (step < 0 or self.text):
            self._move_line(step)
        elif step > 0 and self._driver.session.queue:
            self._driver.unqueue()
        else:
            await self._walk_prompts(step)

    def _move_line(self, step: int) -> None:
        if step > 0:
            self.action_cursor_up()
        else:
            self.action_cursor_down()

    async def _walk_prompts(self, step: int) -> None:
        if self._recalled is None:
            self._recalled = await self._earlier_prompts()
            self._recall_index = -1
        index = self._recall_index + step
        if index >= len(self._recalled):
            return
        prompts = self._recalled
        self._recall_index = max(index, -1)
        self.load_draft(prompts[index] if index >= 0 else "")
        self._recalled = prompts if index >= 0 else None

    async def _earlier_prompts(self) -> list[str]:
        """Prompts of this chat, then of all chats, newest first, each once."""
        mine = []
        for message in reversed(self._driver.session.messages):
            if message.role == "user" and "kind" not in message.figures:
                mine.append(typed_text(message))
        others = await attempt(self, self._driver.earlier_prompts(RECALLED))
        return list(dict.fromkeys([*mine, *(others or [])]))

    def on_key(self, event: events.Key) -> None:
        """Any other key ends the walk through earlier prompts."""
        if event.key not in ("up", "down"):
            self._recalled = None

    @work(group="command", exclusive=False)
    async def action_prompt_search(self, words: str = "") -> None:
        """Find an earlier prompt, of any chat."""
        prompts = await self._earlier_prompts()
        choices = [Choice(str(at), text) for at, text in enumerate(prompts)]
        note = "Enter brings it back   Esc closes"
        index = await self.app.push_screen_wait(
            Pick("Earlier prompts", choices, note, words)
        )
        if index is not None:
            self.put(prompts[int(index)])

    # Files and the editor

    @work(group="command", exclusive=False)
    async def action_editor_open(self, _argument: str = "") -> None:
        """Write the prompt in $VISUAL or $EDITOR."""
        try:
            text = await edit_text(self.app, self.whole_text)
        except (RvllmError, OSError) as error:
            tell(self, str(error), "error")
            return
        self.load_draft(text)

    def action_file_attach(self, path: str = "") -> None:
        """Name a file in the prompt."""

        def attach(path: str | None) -> None:
            if path:
                is_apart = not self.text or self.text[-1].isspace()
                self.insert(f"{'' if is_apart else ' '}{mention(path)} ")

        if path:
            attach(path)
        else:
            note = "a text file, a folder, a PDF or the address of a page"
            self.app.push_screen(Ask("File to attach", note=note), attach)
