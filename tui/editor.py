"""The prompt in the person's own editor, while the app is out of the way."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from textual.app import App

from rvllm_local.errors import ParameterError
from rvllm_local.scratch import temporary_folder


def find_editor() -> str:
    """The editor's command. Raises `ParameterError` where there is none."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    editor = named or shutil.which("nano") or shutil.which("vi")
    if not editor:
        raise ParameterError("editor", "no editor is known; set EDITOR")
    return editor


async def edit_text(app: App[Any], text: str) -> str:
    """The text as it was left in the editor.

    Raises `ParameterError` where the editor is missing or fails.
    """
    editor = find_editor()
    with temporary_folder() as folder:
        path = Path(folder, "prompt.md")
        path.write_text(text, encoding="utf-8")
        # An error that left `suspend` early would leave the app suspended for good.
        with app.suspend():
            problem = _run(editor, path)
        if problem:
            raise ParameterError("editor", f"{problem}; the prompt is unchanged")
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")


def _run(editor: str, path: Path) -> str:
    """Run the editor; returns what went wrong, or nothing."""
    try:
        finished = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:
        return f"{editor} cannot be run: {error}"
    if finished.returncode:
        return f"{editor} ended with status {finished.returncode}"
    return ""
