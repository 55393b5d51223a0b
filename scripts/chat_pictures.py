"""Draws the chat's pictures for the README: the real app, against a server that really answers.

python scripts/chat_pictures.py [http://127.0.0.1:8473]

Without a server, only the Markdown sample is drawn.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.app import ChatApp
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.offers import catalogue_models
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.state import ConnectionState, ModelInfo

FOLDER = Path(__file__).parents[1] / "docs" / "images"
SIZE = (100, 32)
SHOWN = 250  # characters of a reply that is drawn while it comes
QUESTION = "Explain in a short numbered list why the sky is blue."
SAMPLE = """# Green tea

1. Boil water and let it stand until it has about 70 degrees, which takes some minutes in an open pot.
   - a thermometer helps, but small bubbles at the bottom of the pot say the same
2. Pour, wait, and serve.

> Water that boils makes the tea bitter, however good the leaves are, and nothing mends it later.

| Tea | °C | Minutes | Notes |
|:----|---:|:-------:|-------|
| Sencha | 70 | 1 | grassy, umami, and better in the second pot than in the first one |
| Gyokuro | 55 | 2 | sweet |

- [x] warm the pot
- [ ] \\(\\frac{t}{2} \\le x^2\\) minutes later

```python
def steep(minutes: float) -> str:
    return f"{minutes} minutes at 70 °C"
```
"""


class OfferingLauncher(ServerLauncher):
    """Offers the catalogue's models, as where the chat started the server itself."""

    def offers(self, served: Sequence[ModelInfo]) -> tuple[ModelInfo, ...]:
        return catalogue_models({info.id for info in served})


async def main(url: str) -> None:
    app = ChatApp(ChatOptions(is_temporary=True), OfferingLauncher(url, None))
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
        await _until(pilot, lambda: _num_shown(app) > SHOWN)
        _keep(app, "engine")
        await _until(pilot, lambda: app.driver.session.live is None)
        await pilot.press("ctrl+b")
        await pilot.press("ctrl+l")
        await pilot.pause(1.0)
        _keep(app, "models")
        await pilot.press("escape")
        # Else the same model gives the same answer.
        await pilot.press(*_keys("/set temperature 0.8"), "enter")
        await pilot.press(*_keys("/compare smollm2-135m"), "enter")
        await _until(pilot, lambda: app.driver.sessions.rival is not None)
        await _until(pilot, lambda: app.driver.sessions.rival.live is None)
        await pilot.pause(1.0)
        _keep(app, "compare")
        await pilot.press("escape")


def _num_shown(app: ChatApp) -> int:
    """Characters of the reply that is being written."""
    live = app.driver.session.live
    return 0 if live is None else len(live.text)


async def _text_picture() -> None:
    """The same Markdown in every width: lists in lists, quotes, tables, code, math."""
    app = ChatApp(ChatOptions(is_temporary=True), ServerLauncher("127.0.0.1:9", None))
    async with app.run_test(size=SIZE, notifications=False) as pilot:
        sample = ChatMessage("sample", "chat", None, "assistant", SAMPLE)
        await pilot.pause(1.0)
        app.workers.cancel_group(app, "connect")  # nobody is to answer
        present = app.driver.session
        app.driver.sessions.present = replace(
            present,
            messages=(sample,),
            connection=ConnectionState.READY,
            model="smollm2-135m",
        )
        app.transcript.show_messages((sample,), {})
        app.show_state()
        await pilot.pause(1.0)
        _keep(app, "text")


async def _until(pilot: object, condition: object) -> None:
    for _ in range(3000):
        if condition():  # type: ignore[operator]
            return
        await pilot.pause(0.1)  # type: ignore[attr-defined]
    raise SystemExit("the chat did not come so far within five minutes")


def _keys(text: str) -> list[str]:
    names = {
        " ": "space",
        "/": "slash",
        ".": "full_stop",
        "?": "question_mark",
        "_": "underscore",
        "-": "minus",
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
    asyncio.run(_text_picture())
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
