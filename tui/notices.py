"""How the widgets tell the person something, and put text on the clipboard."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any, Literal, TypeVar

from textual.app import App
from textual.dom import DOMNode

from rvllm_local.errors import RvllmError
from rvllm_local.tui.sanitise import clean_copy, clean_line

Severity = Literal["information", "warning", "error"]
NOTICE_S = 8.0
_T = TypeVar("_T")


def tell(
    node: DOMNode,
    text: str,
    severity: Severity = "information",
    timeout: float = NOTICE_S,
) -> None:
    """Tell the person something; the text is never parsed."""
    app: App[Any] = node if isinstance(node, App) else node.app
    app.notify(clean_line(text, 400), severity=severity, markup=False, timeout=timeout)


async def attempt(node: DOMNode, doing: Awaitable[_T]) -> _T | None:
    """Do something, and tell if it cannot be done."""
    try:
        return await doing
    except (RvllmError, OSError) as error:
        tell(node, str(error), "error")
        return None


def copy_text(node: DOMNode, text: str) -> None:
    """Copy, through the system's own tool where the terminal may not do it."""
    text = clean_copy(text)
    app: App[Any] = node if isinstance(node, App) else node.app
    if sys.platform == "darwin" and shutil.which("pbcopy"):
        subprocess.run(["pbcopy"], input=text.encode(), check=False)
    else:
        app.copy_to_clipboard(text)
    tell(node, f"copied {len(text):,} characters")
