"""What the word before the cursor could become: a slash command, or a file after `@`."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.tui.attach import mention
from rvllm_local.tui.commands import complete_slash
from rvllm_local.tui.sanitise import clean_line

SHOWN = 6
_LOOKED_AT = 2_000  # entries of one folder
_FILE = re.compile(r'(?<!\S)@(?:"([^"\n]*)|([^\s"]*))\Z')


@dataclass(frozen=True, slots=True)
class Completion:
    """`text` takes the place of what was typed before the cursor; `name` and `note` are shown."""

    text: str
    name: str
    note: str = ""


def completions(typed: str, folder: Path) -> list[Completion]:
    """The first few things that `typed`, the text before the cursor, could go on to."""
    commands = [
        Completion(f"{one.slash} ", f"{one.slash} {one.argument}".strip(), one.title)
        for one in complete_slash(typed)
    ]
    found = _FILE.search(typed)
    return (
        commands[:SHOWN]
        if commands or found is None
        else _files(typed[: found.start()], found, folder)
    )


def _files(before: str, found: re.Match[str], folder: Path) -> list[Completion]:
    path = found[1] if found[1] is not None else found[2]
    parent, _, prefix = path.rpartition("/")
    parent += "/" if "/" in path else ""
    try:
        with os.scandir(folder / Path(parent or ".").expanduser()) as entries:
            rows = sorted(
                (one.name, one.is_dir())
                for one in itertools.islice(entries, _LOOKED_AT)
                if one.name.startswith(prefix)
                and (prefix or not one.name.startswith("."))
                and one.name.isprintable()
            )
    except (OSError, ValueError):
        return []
    return [_file(before, parent, name, is_folder) for name, is_folder in rows[:SHOWN]]


def _file(before: str, parent: str, name: str, is_folder: bool) -> Completion:
    if is_folder:
        opened = mention(f"{parent}{name}/").removesuffix(
            '"'
        )  # a name with spaces goes on inside its quotes
        return Completion(before + opened, f"@{clean_line(name, 60)}/")
    return Completion(f"{before}{mention(parent + name)} ", f"@{clean_line(name, 60)}")
