"""What the word before the cursor could become: a slash command, or a file after `@`."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.tui.attach import mention
from rvllm_local.tui.commands import complete_slash
from rvllm_local.tui.file_search import best_matches, find_files
from rvllm_local.tui.sanitise import clean_line

SHOWN = 6
FRESH_S = 5.0  # a folder's files are looked up again after this time
_LOOKED_AT = 2_000  # entries of one folder
_FILE = re.compile(r'(?<!\S)@(?:"([^"\n]*)|([^\s"]*))\Z')


@dataclass(frozen=True, slots=True)
class Completion:
    """`text` takes the place of what was typed before the cursor.

    `name` and `note` are shown.
    """

    text: str
    name: str
    note: str = ""


class Completer:
    """Knows the files of the present folder for a while, so that typing stays quick."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._paths: list[str] = []
        self._looked_at = 0.0

    def is_stale(self, typed: str, folder: Path) -> bool:
        """Whether `look_up` would help to complete what was typed."""
        if not _typed_path(typed):
            return False
        is_old = time.monotonic() - self._looked_at > FRESH_S
        return folder != self._folder or is_old

    def look_up(self, folder: Path) -> None:
        """Find the folder's files. Takes its time: call it on a thread."""
        self._paths = find_files(folder)
        self._folder, self._looked_at = folder, time.monotonic()

    def offers(self, typed: str, folder: Path) -> list[Completion]:
        """What `typed`, the text before the cursor, could become.

        All commands, or the first few files.
        """
        commands = _commands(typed)
        if commands:
            return commands
        match = _FILE.search(typed)
        if match is None:
            return []
        path = match[1] if match[1] is not None else match[2]
        before = typed[: match.start()]
        exact = _beginning_so(path, folder)
        offers = [_file(before, name) for name in exact]
        if len(offers) < SHOWN and path and folder == self._folder:
            for name in best_matches(self._paths, path, SHOWN):
                if name not in exact:
                    offers.append(_file(before, name))
        return offers[:SHOWN]


def completions(typed: str, folder: Path) -> list[Completion]:
    """The first few things that `typed`, the text before the cursor, could become."""
    completer = Completer()
    if completer.is_stale(typed, folder):
        completer.look_up(folder)
    return completer.offers(typed, folder)


def _typed_path(typed: str) -> str:
    """The path that is being typed after `@`, or nothing; no address of a page."""
    match = _FILE.search(typed)
    if match is None:
        return ""
    path = match[1] if match[1] is not None else match[2]
    return "" if "://" in path else path


def _commands(typed: str) -> list[Completion]:
    offers = []
    for command in complete_slash(typed):
        shown = f"{command.slash} {command.argument}".strip()
        offers.append(Completion(f"{command.slash} ", shown, command.title))
    return offers


def _beginning_so(path: str, folder: Path) -> list[str]:
    """What one folder has that begins as was typed; folders end with "/"."""
    parent, slash, prefix = path.rpartition("/")
    parent += slash
    names: list[str] = []
    try:
        with os.scandir(folder / Path(parent or ".").expanduser()) as entries:
            for number, entry in enumerate(entries):
                if number == _LOOKED_AT:
                    break
                if _is_offered(entry.name, prefix):
                    ending = "/" if entry.is_dir() else ""
                    names.append(f"{parent}{entry.name}{ending}")
    except (OSError, ValueError):
        return []
    names.sort()
    return names[:SHOWN]


def _is_offered(name: str, prefix: str) -> bool:
    """Hidden files are offered to those who type their dot."""
    is_hidden = name.startswith(".") and not prefix
    return name.startswith(prefix) and name.isprintable() and not is_hidden


def _file(before: str, path: str) -> Completion:
    name = f"@{clean_line(path, 60)}"
    if path.endswith("/"):
        # A name with spaces goes on inside its quotes.
        opened = mention(path).removesuffix('"')
        return Completion(before + opened, name)
    return Completion(f"{before}{mention(path)} ", name)
