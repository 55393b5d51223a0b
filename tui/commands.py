"""The one registry of what a person can do.

Bindings, slash commands, the palette and the help are made from it. Plain values; what a
command does is the action of the same name.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from rvllm_local.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to do. `scope` is where its keys count: app, composer or transcript.

    `argument` names what may follow the slash command. `is_hidden` keeps it from the
    palette. `owner` is what has the action, where that is not the scope.
    """

    id: str
    title: str
    keys: str = ""
    slash: str = ""
    argument: str = ""
    scope: str = "app"
    is_hidden: bool = False
    owner: str = ""

    @property
    def home(self) -> str:
        """What has the action: app, composer or transcript."""
        return self.owner or self.scope

    @property
    def action(self) -> str:
        """The name of the action, without `action_`."""
        return self.id.replace(".", "_")


COMMANDS: tuple[Command, ...] = (
    Command("chat.new", "New chat", "ctrl+n", "/new"),
    Command(
        "chat.temporary", "New temporary chat, which is not kept", "", "/temporary"
    ),
    Command("chat.list", "Chats and search", "ctrl+s", "/chats", "[words]"),
    Command("chat.rename", "Rename this chat", "", "/rename", "[title]"),
    Command("chat.delete", "Delete this chat", "", "/delete"),
    Command("chat.export", "Export this chat (.md or .json)", "", "/export", "[path]"),
    Command("chat.import", "Import chats from JSON", "", "/import", "[path]"),
    Command("chat.system", "System prompt of this chat", "", "/system", "[text]"),
    Command("chat.pin", "Pin this chat, or unpin it", "", "/pin"),
    Command("chat.folder", "Folder of this chat", "", "/folder", "[name]"),
    Command("chat.compare", "Compare with another model", "", "/compare", "[model]"),
    Command("sidebar.toggle", "The chats at the side", "", "/sidebar"),
    Command("engine.more", "The engine's counters", "", "/more"),
    Command("model.best", "Fetch the best model that fits", "f3", "/best"),
    Command("download.toggle", "Pause the download, or go on", "f4", "/pause"),
    Command("download.cancel", "Cancel the download", "", "/cancel"),
    Command("model.pick", "Models", "ctrl+l", "/model", "[name]"),
    Command(
        "chat.parameters", "Parameters and presets", "ctrl+t", "/set", "[name value]"
    ),
    Command("chat.preset", "Use a preset", "", "/preset", "[name]"),
    Command("editor.open", "Write in $EDITOR", "ctrl+g", "/editor", owner="composer"),
    Command("file.attach", "Attach a file", "", "/attach", "[path]", owner="composer"),
    Command("find.open", "Find in this chat", "ctrl+f", "/find", "[words]"),
    Command("engine.toggle", "The engine at work", "ctrl+b,f2", "/engine"),
    Command("server.retry", "Look for the server again", "", "/retry"),
    Command("theme.pick", "Theme", "", "/theme", "[name]"),
    Command("palette.open", "All commands", "ctrl+p", is_hidden=True),
    Command("help.open", "Help", "f1", "/help"),
    Command("reply.stop", "Stop the reply", "escape", "/stop"),
    Command(
        "reply.regenerate",
        "Answer the last prompt again",
        "alt+r",
        "/regenerate",
        owner="transcript",
    ),
    Command(
        "copy.or_quit",
        "Copy, stop, or quit when pressed twice",
        "ctrl+c",
        is_hidden=True,
    ),
    Command("app.quit", "Quit", "ctrl+q", "/quit"),
    Command("chat.undo", "Undo the last deletion", "alt+z", "/undo"),
    Command("chat.compact", "Go on from a summary of this chat", "", "/compact"),
    Command(
        "prompt.search",
        "Earlier prompts of all chats",
        "ctrl+r",
        "/prompts",
        owner="composer",
    ),
    Command(
        "reply.continue",
        "Let the last reply go on",
        "",
        "/continue",
        owner="transcript",
    ),
    Command(
        "message.previous",
        "Previous message",
        "alt+up",
        is_hidden=True,
        owner="transcript",
    ),
    Command(
        "message.next", "Next message", "alt+down", is_hidden=True, owner="transcript"
    ),
    Command("scroll.page_up", "Page up", "pageup", is_hidden=True, owner="transcript"),
    Command(
        "scroll.page_down", "Page down", "pagedown", is_hidden=True, owner="transcript"
    ),
    Command(
        "scroll.follow",
        "Go to the end and follow",
        "ctrl+end",
        is_hidden=True,
        owner="transcript",
    ),
    Command("composer.send", "Send", "enter", scope="composer", is_hidden=True),
    Command(
        "composer.newline",
        "New line",
        "ctrl+j,shift+enter,alt+enter",
        scope="composer",
        is_hidden=True,
    ),
    Command(
        "composer.complete",
        "Complete a command or the name of a file",
        "tab",
        scope="composer",
        is_hidden=True,
    ),
    Command(
        "composer.recall",
        "An earlier prompt, from the first line",
        "up",
        scope="composer",
        is_hidden=True,
    ),
    Command(
        "composer.recall_next",
        "A later prompt, from the last line",
        "down",
        scope="composer",
        is_hidden=True,
    ),
    Command("message.copy", "Copy the message", "c", "/copy", scope="transcript"),
    Command("message.copy_code", "Copy its code", "C", "/copycode", scope="transcript"),
    Command(
        "message.edit",
        "Edit the prompt: a new branch",
        "e",
        "/edit",
        scope="transcript",
    ),
    Command(
        "message.regenerate",
        "Answer again from here",
        "r",
        scope="transcript",
        is_hidden=True,
    ),
    Command(
        "message.branch", "A new chat from here", "b", "/branch", scope="transcript"
    ),
    Command(
        "message.sibling_previous",
        "Previous version",
        "left_square_bracket",
        "/previous",
        scope="transcript",
    ),
    Command(
        "message.sibling_next",
        "Next version",
        "right_square_bracket",
        "/next",
        scope="transcript",
    ),
    Command(
        "message.delete",
        "Delete the message and what follows",
        "delete",
        scope="transcript",
        is_hidden=True,
    ),
    Command(
        "message.reasoning",
        "Show or fold its reasoning",
        "t",
        "/reasoning",
        scope="transcript",
    ),
    Command(
        "transcript.follow",
        "Go to the end and follow",
        "end",
        scope="transcript",
        is_hidden=True,
    ),
)
BY_ID = {command.id: command for command in COMMANDS}
_BY_SLASH = {command.slash: command for command in COMMANDS if command.slash}


def parse_slash(text: str) -> tuple[Command, str] | None:
    """The command that a line means and its argument, or None for a prompt.

    "//x" is a prompt that begins with "/x". Raises `ParameterError` that names the
    nearest command, if there is none of that name.
    """
    typed = text.strip()
    match = re.match(r"/([a-z]+)(?:\s+(.*))?\s*\Z", typed, re.DOTALL)
    if match is None or "\n" in typed.split(" ")[0]:
        return None
    name = f"/{match[1]}"
    command = _BY_SLASH.get(name)
    if command is None:
        near = difflib.get_close_matches(name, _BY_SLASH, 1)
        hint = f"did you mean {near[0]}?" if near else "F1 lists the commands"
        problem = f"there is no command {name}; {hint}"
        raise ParameterError("command", f"{problem} (begin with // to send it as text)")
    return command, (match[2] or "").strip()


def complete_slash(text: str) -> list[Command]:
    """The commands that begin as `text` does, else those that hold its letters."""
    if not re.match(r"/[a-z]*\Z", text):
        return []
    commands = [command for command in COMMANDS if command.slash.startswith(text)]
    if not commands:
        commands = [command for command in COMMANDS if text[1:] in command.slash]
    return commands


def as_prompt(text: str) -> str:
    """The prompt behind what was typed: "//x" means "/x"."""
    return text[1:] if text.startswith("//") else text
