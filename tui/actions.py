"""What a person can do in the app: one action a command of the registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import work

from rvllm_local.errors import ParameterError, RvllmError
from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.attach import expand, mention
from rvllm_local.tui.commands import as_prompt, parse_slash
from rvllm_local.tui.complete import completions
from rvllm_local.tui.render import code_blocks
from rvllm_local.tui.sanitise import clean_copy
from rvllm_local.tui.screens.dialogs import Ask, Confirm

if TYPE_CHECKING:
    from textual.app import App

    from rvllm_local.tui.driver import Driver
    from rvllm_local.tui.widgets.composer import Composer
    from rvllm_local.tui.widgets.engine_panel import EnginePanel
    from rvllm_local.tui.widgets.transcript import Transcript

    Base = App[int]
else:
    Base = object

INTERRUPT_S = 2.0  # within this a second Ctrl+C quits


class Actions(Base):
    """Mixed into the app. Each action takes its command's argument, empty when it came from a key."""

    driver: Driver
    composer: Composer
    transcript: Transcript
    panel: EnginePanel
    presets: dict[str, Mapping[str, Any]]
    keymap: Mapping[str, str]
    editing: str | None
    last_interrupt: float
    server: Any
    options: Any

    if TYPE_CHECKING:

        def tell(self, text: str, severity: Any = "information") -> None: ...
        async def shut(self) -> None: ...
        def _show_status(self) -> None: ...
        async def _attach_server(self, connecting: Any) -> None: ...
        def _loading(self, text: str) -> None: ...

    async def attempt(self, doing: Awaitable[Any]) -> Any:
        """Do something, and tell if it cannot be done."""
        try:
            return await doing
        except (RvllmError, OSError) as error:
            self.tell(str(error), "error")
            return None

    # The composer

    # A key that is bound here reaches the app before the letters typed just before it have reached the composer: what
    # it does waits in the composer's own queue, so that fast typing and pasting are taken in order.

    def action_composer_send(self) -> None:
        """Send the prompt, or do the slash command."""
        self.composer.call_later(self._send)

    async def _send(self) -> None:
        typed = self.composer.text
        if not typed.strip():
            return
        try:
            command = parse_slash(typed)
            if command is not None:
                self.composer.take()
                self._run_slash(command[0].action, command[1])
                return
            prompt = expand(as_prompt(typed), Path.cwd())
        except ParameterError as error:
            self.tell(str(error), "warning")
            return
        self.composer.take()
        editing, self.editing = self.editing, None
        if editing is not None:
            self.driver.edit(editing, prompt)
        else:
            self.driver.submit(prompt)
        self.transcript.follow()

    @work(group="command", exclusive=False)
    async def _run_slash(self, action: str, argument: str) -> None:
        done = getattr(self, f"action_{action}")(*((argument,) if argument else ()))
        if done is not None and hasattr(done, "__await__"):
            await done

    def action_composer_newline(self) -> None:
        """Begin a new line."""
        self.composer.call_later(self.composer.newline)

    def action_composer_complete(self) -> None:
        """Take the first of what is offered; with no offer, go to the next part of the screen."""
        self.composer.call_later(self._complete)

    def _complete(self) -> None:
        if found := completions(self.composer.before_cursor, Path.cwd()):
            self.composer.replace_before_cursor(found[0].text)
        else:
            self.screen.focus_next()

    def action_composer_recall(self) -> None:
        """Bring the last prompt back into an empty composer; else move the cursor up."""
        self.composer.call_later(self._recall)

    def _recall(self) -> None:
        if self.composer.text:
            self.composer.action_cursor_up()
            return
        prompts = [one for one in self.driver.session.messages if one.role == "user"]
        if prompts:
            self.composer.put(prompts[-1].text)

    async def action_editor_open(self, _argument: str = "") -> None:
        """Write the prompt in $VISUAL or $EDITOR."""
        editor = (
            os.environ.get("VISUAL")
            or os.environ.get("EDITOR")
            or shutil.which("nano")
            or shutil.which("vi")
        )
        if not editor:
            self.tell("no editor is known; set EDITOR", "warning")
            return
        self.composer.load_text(
            clean_copy(
                await self.attempt(self._edit(editor, self.composer.text))
                or self.composer.text
            )
        )
        self.composer.move_cursor(self.composer.document.end)

    async def _edit(self, editor: str, text: str) -> str:
        import shlex

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "prompt.md")
            path.write_text(text, encoding="utf-8")
            with self.suspend():
                done = subprocess.run([*shlex.split(editor), str(path)], check=False)
            if done.returncode:
                raise ParameterError(
                    "editor",
                    f"{editor} ended with status {done.returncode}; the prompt is unchanged",
                )
            return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")

    def action_file_attach(self, path: str = "") -> None:
        """Name a file in the prompt."""

        def attach(path: str | None) -> None:
            if path:
                space = (
                    ""
                    if not self.composer.text or self.composer.text[-1].isspace()
                    else " "
                )
                self.composer.put(f"{self.composer.take()}{space}{mention(path)} ")

        if path:
            attach(path)
        else:
            self.push_screen(
                Ask("File to attach", note="a text file of at most 256 KiB"), attach
            )

    # The reply

    def action_reply_stop(self, _argument: str = "") -> None:
        """Stop the reply and keep what came; else leave finding, editing and the selection."""
        if self.driver.session.live is not None:
            self.driver.stop()
        else:
            self.query_one("#find").display = False
            self.editing = None
            self.transcript.select(None)
            self.composer.focus()

    def action_reply_regenerate(self, _argument: str = "") -> None:
        """Answer the last prompt again."""
        if messages := self.driver.session.messages:
            self.driver.regenerate(messages[-1].id)
            self.transcript.follow()

    async def action_copy_or_quit(self) -> None:
        """Copy a selection, else stop the reply, else quit when pressed twice."""
        selected = self.screen.get_selected_text() or getattr(
            self.focused, "selected_text", ""
        )
        if selected:
            self.copy(selected)
            self.screen.clear_selection()
        elif self.driver.session.live is not None:
            self.driver.stop()
        elif self.driver.clock() - self.last_interrupt < INTERRUPT_S:
            await self.action_app_quit()
        else:
            self.last_interrupt = self.driver.clock()
            self.tell("press Ctrl+C again to quit")

    async def action_app_quit(self, _argument: str = "") -> None:
        """Quit; a server that was there before stays."""
        await self.shut()
        self.exit(0)

    def copy(self, text: str) -> None:
        """Put text on the clipboard, through the system's own tool where the terminal may not do it."""
        text = clean_copy(text)
        if sys.platform == "darwin" and shutil.which("pbcopy"):
            subprocess.run(["pbcopy"], input=text.encode(), check=False)
        else:
            self.copy_to_clipboard(text)
        self.tell(f"copied {len(text):,} characters")

    # Messages

    def action_message_previous(self) -> None:
        """Choose the message before."""
        self.transcript.focus()
        self.transcript.step(-1)

    def action_message_next(self) -> None:
        """Choose the message after; beyond the last, go back to writing."""
        self.transcript.step(1)
        if self.transcript.selected is None:
            self.composer.focus()

    def _chosen(self) -> ChatMessage | None:
        chosen = self.transcript.chosen
        if chosen is None:
            self.tell("there is no message yet", "warning")
        return chosen

    def action_message_copy(self, _argument: str = "") -> None:
        """Copy the chosen message, or the last one."""
        if chosen := self._chosen():
            self.copy(chosen.text)

    def action_message_copy_code(self, _argument: str = "") -> None:
        """Copy the code of the chosen message."""
        if chosen := self._chosen():
            blocks = code_blocks(chosen.text)
            if blocks:
                self.copy("\n".join(blocks).rstrip("\n"))
            else:
                self.tell("this message has no code", "warning")

    def action_message_edit(self, _argument: str = "") -> None:
        """Bring a prompt into the composer; sending it makes a new branch."""
        messages = self.driver.session.messages
        chosen = self.transcript.chosen
        if chosen is not None and chosen.role != "user":
            at = next((at for at, one in enumerate(messages) if one.id == chosen.id), 0)
            chosen = next(
                (one for one in reversed(messages[:at]) if one.role == "user"), None
            )
        if chosen is None:
            self.tell("there is no prompt to edit", "warning")
            return
        self.editing = chosen.id
        self.composer.load_text("")
        self.composer.put(chosen.text)
        self.composer.focus()
        self.tell("sending makes a new branch; Esc leaves the old one")

    def action_message_regenerate(self) -> None:
        """Answer again from the chosen message."""
        if chosen := self._chosen():
            self.driver.regenerate(chosen.id)
            self.transcript.follow()

    async def action_message_branch(self, _argument: str = "") -> None:
        """A new chat with the messages up to the chosen one."""
        if chosen := self._chosen():
            await self.attempt(self.driver.branch(chosen.id))

    async def _switch(self, step: int) -> None:
        chosen = self._chosen()
        siblings = self.driver.session.siblings
        if chosen is None or self.driver.session.live is not None:
            return
        if siblings.get(chosen.id, (0, 1))[1] < 2:
            versions = [
                one
                for one in self.driver.session.messages
                if siblings.get(one.id, (0, 1))[1] > 1
            ]
            if self.transcript.selected is not None or not versions:
                self.tell("this message has one version", "warning")
                return
            chosen = versions[-1]
        sibling = await self.attempt(self.driver.switch_sibling(chosen.id, step))
        if self.transcript.has_focus:
            self.transcript.select(sibling)

    async def action_message_sibling_previous(self, _argument: str = "") -> None:
        """Show the version before of the chosen message."""
        await self._switch(-1)

    async def action_message_sibling_next(self, _argument: str = "") -> None:
        """Show the next version of the chosen message."""
        await self._switch(1)

    def action_message_delete(self) -> None:
        """Forget the chosen message and what follows it, once confirmed."""
        chosen = self._chosen()
        if chosen is None:
            return

        async def delete(is_sure: bool | None) -> None:
            if is_sure:
                await self.attempt(self.driver.delete_message(chosen.id))

        self.push_screen(Confirm("Delete this message and all that follow it?"), delete)

    def action_message_reasoning(self, _argument: str = "") -> None:
        """Show the chosen reply's reasoning, or fold it."""
        if chosen := self._chosen():
            self.transcript.toggle_reasoning(chosen.id)

    def action_scroll_page_up(self) -> None:
        """A page up; the view no longer follows."""
        self.transcript.release_anchor()
        self.transcript.scroll_page_up(animate=False)

    def action_scroll_page_down(self) -> None:
        """A page down."""
        self.transcript.scroll_page_down(animate=False)

    def action_scroll_follow(self) -> None:
        """Go to the end and follow."""
        self.transcript.follow()

    action_transcript_follow = action_scroll_follow
