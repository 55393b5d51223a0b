"""Chats to files and back, for the app and the plain mode alike."""

from __future__ import annotations

from pathlib import Path

from rvllm_local.errors import HistoryError, ParameterError
from rvllm_local.history.export_chat import to_json, to_markdown
from rvllm_local.history.import_chats import MAX_IMPORT_BYTES, import_json
from rvllm_local.tui.driver import Driver


async def export_chat(driver: Driver, path: Path) -> None:
    """Write the present chat; the file's ending chooses Markdown or JSON.

    Raises `ParameterError` for another ending, or a file that is there.
    """
    if path.suffix not in (".md", ".json"):
        raise ParameterError("path", f"{path} must end in .md or .json")
    if path.exists():
        raise ParameterError("path", f"{path} exists; name another file")
    await driver.drain()
    write = to_json if path.suffix == ".json" else to_markdown
    text = await driver.in_thread(write, driver.store, driver.session.chat.id)
    path.write_text(text, encoding="utf-8", errors="replace")


async def import_chats(driver: Driver, path: Path) -> int:
    """Add the chats of a JSON file and open the last; returns their number."""
    if driver.history is None:
        raise HistoryError("there is no history in this session to import into")
    if path.stat().st_size > MAX_IMPORT_BYTES:
        raise ParameterError(
            "path", f"{path} is larger than {MAX_IMPORT_BYTES >> 20} MiB"
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    chat_ids = await driver.in_thread(import_json, driver.history, text)
    await driver.open_chat(chat_ids[-1])
    return len(chat_ids)
