"""Draws the chat's pictures for the README: the real app, against a server that really answers.

python scripts/chat_pictures.py http://127.0.0.1:8473
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from rvllm_local.tui.app import ChatApp
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.state import ConnectionState

FOLDER = Path(__file__).parents[1] / "docs" / "images"
SIZE = (100, 32)
QUESTION = "Explain in a short numbered list why the sky is blue."


async def main(url: str) -> None:
    app = ChatApp(ChatOptions(is_temporary=True), ServerLauncher(url, None))
    async with app.run_test(size=SIZE, notifications=False) as pilot:
        await _until(
            pilot, lambda: app.driver.session.connection is ConnectionState.READY
        )
        for line in ("/set max_tokens 110", "/set temperature 0", QUESTION):
            await pilot.press(*_keys(line), "enter")
            await pilot.pause(0.3)
        await _until(pilot, lambda: app.driver.session.live is not None)
        await _until(pilot, lambda: app.driver.session.live is None)
        await pilot.pause(1.0)
        _keep(app, "chat")
        await pilot.press("ctrl+b")
        await pilot.press(*_keys("And why is it red in the evening?"), "enter")
        await _until(pilot, lambda: app.driver.session.live is not None)
        await pilot.pause(3.0)
        _keep(app, "engine")
        await _until(pilot, lambda: app.driver.session.live is None)
        await pilot.press("ctrl+b")
        await pilot.press("ctrl+l")
        await pilot.pause(1.0)
        _keep(app, "models")
        await pilot.press("escape")


async def _until(pilot: object, condition: object) -> None:
    for _ in range(1200):
        if condition():  # type: ignore[operator]
            return
        await pilot.pause(0.1)  # type: ignore[attr-defined]
    raise SystemExit("the chat did not come so far within two minutes")


def _keys(text: str) -> list[str]:
    names = {
        " ": "space",
        "/": "slash",
        ".": "full_stop",
        "?": "question_mark",
        "_": "underscore",
        ",": "comma",
    }
    return [names.get(char, char) for char in text]


def _keep(app: ChatApp, name: str) -> None:
    """An SVG without the web fonts that it would load: a picture asks nobody for anything."""
    svg = app.export_screenshot(title="rvllm chat")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
